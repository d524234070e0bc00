"""Export, gate and score at a large catalogue: time and peak memory of each step, in processes of their own.

    python benchmarks/large_catalogue.py [--items 1000000] [--precision fp32] [--folder FOLDER]

Random weights (D = 100, 7 concepts, 600 hidden units). The weights of a million items take 2.8 GB, so the ONNX graph
keeps them in a file beside it. The last step opens the bundle as `pipeline score` does and ranks 256 histories of 100
items, top 100, the history excluded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

USERS, HISTORY, K = 256, 100, 100


def checkpoint(items: int, folder: Path) -> None:
    """Write a checkpoint of random weights with a few held-out users."""
    import polars as pl
    import torch

    from pipeline.checkpoint import write_checkpoint
    from pipeline.config import Config, ModelConfig
    from pipeline.histories import Histories
    from pipeline.model import MacridVAE
    from pipeline.split import HeldOut
    from pipeline.vocabulary import Vocabulary

    config = Config(model=ModelConfig(n_concepts=7, embedding_size=100, encoder_hidden_sizes=[600]))
    model = MacridVAE.empty(items, config.model, "cpu")
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.encoder.input.weight.mul_(100)
    rng = np.random.default_rng(0)
    whole = [np.sort(rng.choice(items, HISTORY, replace=False)) for _ in range(64)]
    hidden = [rng.permutation(HISTORY) < 20 for _ in whole]
    held_out = HeldOut(
        Histories.of([w[~h].tolist() for w, h in zip(whole, hidden, strict=True)]),
        Histories.of([w[h].tolist() for w, h in zip(whole, hidden, strict=True)]),
    )
    write_checkpoint(
        folder / "checkpoint",
        config=config,
        vocabulary=Vocabulary.of(pl.Series(np.arange(items)), rng.integers(1, 1000, items)),
        weights=model.state_dict(),
        training=Histories.of([w.tolist() for w in whole]),
        validation=HeldOut(Histories.of([]), Histories.of([])),
        test=held_out,
        counts={},
        best_epoch=None,
        metrics={},
        metrics_lines="",
    )


def export(precision: str, folder: Path) -> None:
    """Export and gate."""
    from export.exporter import export_bundle
    from scoring.runtimes import open_scorer

    manifest = export_bundle(folder / "checkpoint", folder / "bundle", ["onnx"], open_scorer, precision)  # type: ignore[arg-type]
    print(manifest.parity()["onnx"].sentence())


def score(folder: Path) -> None:
    """Open the bundle and rank a batch three times."""
    from export.bundle import read_bundle
    from pipeline.histories import Histories
    from scoring.runtimes import open_scorer

    started = time.perf_counter()
    bundle = read_bundle(folder / "bundle")
    scorer = open_scorer(bundle.directory, "onnx", "cpu")
    print(f"opened in {time.perf_counter() - started:.1f} s")
    rng = np.random.default_rng(1)
    items = len(bundle.vocabulary)
    histories = Histories.of([sorted(rng.choice(items, HISTORY, replace=False).tolist()) for _ in range(USERS)])
    for _ in range(3):
        started = time.perf_counter()
        top = scorer(histories, K, excluded=histories)
        print(f"{USERS} users in {time.perf_counter() - started:.2f} s")
    assert (top.items >= 0).all()


def peak_gib() -> float:
    """Of this process, the peak of resident memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    """Run the steps one after another, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary one otherwise")
    parser.add_argument("--step", choices=["checkpoint", "export", "score"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step = {
            "checkpoint": lambda: checkpoint(arguments.items, arguments.folder),
            "export": lambda: export(arguments.precision, arguments.folder),
            "score": lambda: score(arguments.folder),
        }[arguments.step]
        started = time.perf_counter()
        step()
        print(f"{arguments.step}: {time.perf_counter() - started:.1f} s, peak {peak_gib():.2f} GiB", flush=True)
        return
    with TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for step_name in ("checkpoint", "export", "score"):
            command = [sys.executable, __file__, "--items", str(arguments.items), "--precision", arguments.precision]
            subprocess.run([*command, "--folder", str(folder), "--step", step_name], check=True)
        for file in sorted((folder / "bundle").iterdir()):
            print(f"{file.stat().st_size:>14,} {file.name}")


if __name__ == "__main__":
    main()
