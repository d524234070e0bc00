"""Peak memory and time of `pipeline score` as users grow.

    python benchmarks/score_memory.py [MILLIONS ...]

Generates interactions in long form, unsorted (20 per user, 20,000 items), a bundle of random weights, and scores every
user for the top 100 in a process of its own. The model is small on purpose: memory is what is measured.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from export.exporter import export_bundle
from pipeline.checkpoint import write_checkpoint
from pipeline.config import Config, ModelConfig
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary
from scoring.runtimes import open_scorer

N_ITEMS = 20_000
PER_USER = 20
CHUNK = 5_000_000
MODEL = ModelConfig(n_concepts=2, embedding_size=16, encoder_hidden_sizes=[16])


def write_interactions(path: Path, n_users: int) -> None:
    """Every user 20 times, in an order in which no two rows of a user stand together (an affine permutation)."""
    n_rows = n_users * PER_USER
    step = 2_147_483_647  # prime, so it shares no factor with n_rows
    schema = pa.schema({"user_id": pa.int64(), "item_id": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_rows, CHUNK):
            at = np.arange(start, min(start + CHUNK, n_rows)) * step % n_rows
            user, nth = at // PER_USER, at % PER_USER
            item = (user * 7919 + nth * nth * 104_729 + nth) % N_ITEMS
            writer.write_table(pa.table({"user_id": user, "item_id": item}, schema=schema))


def write_bundle(folder: Path) -> Path:
    """A bundle of random weights."""
    nothing = Histories.of([])
    model = MacridVAE(N_ITEMS, MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    counts = np.random.default_rng(0).integers(1, 1000, N_ITEMS).astype(np.int64)
    write_checkpoint(
        folder / "checkpoint",
        config=Config(model=MODEL),
        vocabulary=Vocabulary.of(pl.Series(range(N_ITEMS), dtype=pl.Int64), counts),
        weights=model.state_dict(),
        training=nothing,
        validation=HeldOut(nothing, nothing),
        test=HeldOut(nothing, nothing),
        counts={},
        best_epoch=None,
        metrics={},
        metrics_lines="",
    )
    export_bundle(folder / "checkpoint", folder / "bundle", ["onnx"], open_scorer)
    return folder / "bundle"


def measure(folder: Path, bundle: Path, n_users: int) -> tuple[float, float]:
    """Seconds, and peak resident MiB of the scoring process alone."""
    users = folder / "users.parquet"
    write_interactions(users, n_users)
    arguments = ["score", "--input", str(users), "--bundle", str(bundle), "--output", str(folder / "run")]
    watch = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'pipeline.cli', *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", watch, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    rows = pl.scan_parquet(folder / "run" / "users").select(pl.len()).collect().item()
    if rows != n_users:
        raise SystemExit(f"{rows} users came out, {n_users} went in")
    return seconds, int(done.stdout) / 1024


def main() -> None:
    """Print one row per number of users."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    millions = [float(argument) for argument in sys.argv[1:]] or [0.2, 1.0]
    print("| users | interactions | seconds | users/s | peak MiB |\n|---:|---:|---:|---:|---:|")
    with TemporaryDirectory(prefix="macrid-bench-", dir=Path.cwd()) as scratch:
        bundle = write_bundle(Path(scratch))
        for n_users in (int(amount * 1e6) for amount in millions):
            seconds, peak = measure(Path(scratch), bundle, n_users)
            cells = (
                f"{n_users:,}",
                f"{n_users * PER_USER:,}",
                f"{seconds:.0f}",
                f"{n_users / seconds:,.0f}",
                f"{peak:.0f}",
            )
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
