"""The paper's protocol on MovieLens-1M.

    python benchmarks/ml_1m.py FOLDER [CONFIG [EPOCHS]]

FOLDER holds ml-1m/interactions.parquet (user_id, item_id, rating); without arguments, MACRID_DATA names it. Trains,
exports both formats, and compares the top 100 of every user between the eager model, ONNX and TorchScript.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from export.exporter import export_bundle
from pipeline.checkpoint import read_checkpoint
from pipeline.config import load_config
from pipeline.eager import EagerScorer
from pipeline.histories import Histories, batches
from pipeline.scorer import Scorer, TopK
from pipeline.train import train
from scoring.runtimes import open_scorer

K = 100
TIE = 1e-5


def all_histories(interactions: Path, checkpoint: Path, min_rating: float) -> Histories:
    """Every user's history in item numbers, users without a known item included."""
    vocabulary = read_checkpoint(checkpoint).vocabulary
    rows = pl.read_parquet(interactions)
    numbers = vocabulary.numbers(rows["item_id"])
    known = rows.select("user_id", pl.when(pl.col("rating") >= min_rating).then(numbers).alias("item"))
    lists = known.group_by("user_id").agg(pl.col("item").drop_nulls().unique().sort()).sort("user_id")
    return Histories.of(lists["item"].to_list())


def compare(name: str, scorer: Scorer, model: EagerScorer, histories: Histories) -> None:
    """Print how far a format's top 100 of every user are from the eager model's."""
    same, within_ties, worst = 0, 0, 0.0
    for users in batches(histories.lengths, scorer.n_items):
        batch = histories.take(users)
        found, wanted = scorer(batch, K, excluded=batch), model(batch, K + 50, excluded=batch)
        for row in range(len(users)):
            ours, theirs = _scores(found, row, K), _scores(wanted, row, K + 50)
            last = wanted.scores[row, K - 1]
            same += ours.keys() == _scores(wanted, row, K).keys()
            within_ties += all(theirs.get(item, -np.inf) >= last - TIE for item in ours)
            worst = max([worst, *(abs(score - theirs[item]) for item, score in ours.items() if item in theirs)])
    n = len(histories)
    print(f"{name}: {same:,} of {n:,} users get the same top {K}, {within_ties:,} up to ties of {TIE:g}")
    print(f"{name}: scores within {worst:.1e} of the model's")


def _scores(top: TopK, row: int, k: int) -> dict[int, float]:
    return {int(i): float(s) for i, s in zip(top.items[row, :k], top.scores[row, :k], strict=True) if i >= 0}


def main() -> None:
    """Train, export, compare, print."""
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MACRID_DATA", "")
    interactions = Path(folder) / "ml-1m" / "interactions.parquet"
    if not folder or not interactions.is_file():
        print(f"skipped: {interactions} is not there; name the folder of data sets as an argument or in MACRID_DATA")
        return
    config = load_config(Path(sys.argv[2] if len(sys.argv) > 2 else "configs/paper.toml"))
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 150
    config = config.updated({"data.input": str(interactions), "training.epochs": min(epochs, config.training.epochs)})
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        checkpoint, bundle = Path(scratch, "checkpoint"), Path(scratch, "bundle")
        started = time.monotonic()
        manifest = train(config, checkpoint, "cpu")
        print(f"trained in {time.monotonic() - started:.0f} s, best epoch {manifest.best_epoch}, {manifest.counts}")
        for name in ("ndcg@100", "recall@20", "recall@50"):
            measure = manifest.metrics[name]
            print(f"{name}: {measure.mean:.4f} +- {measure.standard_error:.4f}")
        export_bundle(checkpoint, bundle, ["onnx", "torchscript"], open_scorer)
        model = EagerScorer(read_checkpoint(checkpoint).model())
        histories = all_histories(interactions, checkpoint, config.data.min_rating or 0.0)
        for name in ("onnx", "torchscript"):
            compare(name, open_scorer(bundle, name, "cpu"), model, histories)


if __name__ == "__main__":
    main()
