"""Formats and precisions of a bundle: size of the file, what the gate measured, and speed against float32 ONNX.

    python benchmarks/precision.py [CHECKPOINT] [--threads 2] [--rounds 5]

CHECKPOINT is a trained one; without it, random weights over 20,000 items show sizes and speeds. Batches of 256 users
with the checkpoint's own histories (or 100 random items), top 100, history excluded; rounds alternate between the
files, and the median counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

USERS, K = 256, 100
KINDS = [("onnx", "fp32"), ("torchscript", "fp32"), ("pt2", "fp32"), ("onnx", "fp16"), ("onnx", "int8")]


def main() -> None:
    """Export every kind, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch
    from large_catalogue import checkpoint as random_checkpoint

    from export.bundle import FILES
    from export.exporter import export_bundle
    from pipeline.checkpoint import read_checkpoint
    from pipeline.histories import Histories
    from scoring.runtimes import open_scorer

    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.checkpoint is None:
            random_checkpoint(20_000, folder)
        source = arguments.checkpoint or folder / "checkpoint"
        opened = read_checkpoint(source)
        users = opened.test.histories if len(opened.test) else opened.training
        histories = Histories.of([users[row % len(users)].tolist() for row in range(USERS)])
        scorers, rows = {}, {}
        for form, precision in KINDS:
            bundle = folder / f"{form}-{precision}"
            manifest = export_bundle(source, bundle, [form], open_scorer, precision)  # type: ignore[arg-type]
            scorers[form, precision] = open_scorer(bundle, form, "cpu")
            rows[form, precision] = (manifest.formats[form].parity, (bundle / FILES[form]).stat().st_size)
        seconds = defaultdict(list)
        for turn in range(arguments.rounds + 1):
            for kind, scorer in scorers.items():
                started = time.perf_counter()
                scorer(histories, K, excluded=histories)
                if turn:
                    seconds[kind].append(time.perf_counter() - started)
        print(f"{manifest.n_items:,} items, {opened.manifest.config.model}, {arguments.threads} threads")
        print("| format | precision | MB | score off by | overlap | NDCG@100 lost | users/s | time, ONNX fp32 = 1 |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        base = median(seconds["onnx", "fp32"])
        for kind, (parity, size) in rows.items():
            lost = parity.metrics["ndcg@100"].model - parity.metrics["ndcg@100"].artefact if parity.metrics else np.nan
            print(
                f"| {kind[0]} | {kind[1]} | {size / 1e6:.2f} | {parity.largest_score_difference:.1e} "
                f"| {parity.mean_overlap:.5f} | {lost:+.5f} | {USERS / median(seconds[kind]):.0f} "
                f"| {median(seconds[kind]) / base:.2f} |"
            )


if __name__ == "__main__":
    main()
