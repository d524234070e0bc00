"""Recommendation quality: data sets x methods, means and deviations over seeds, as the table of docs/benchmarks.md.

    python benchmarks/quality.py [FOLDER] [--set NAME ...] [--method NAME ...] [--seeds 5] [--epochs 200]

FOLDER holds the data sets; without it, MACRID_DATA names it. Every finished run is a line of benchmarks/quality.jsonl;
runs that are there already are not made again, so the script may be stopped, or started several times at once with
different sets or methods. It ends by printing the table of all lines.

A method is a config of configs/ (its [model] and [training]; at most --epochs epochs; bfloat16 products), ease (its l2
chosen on validation users), or popularity. Seeds draw first weights, order and noise; the split is the same for all.

- ml-1m, ml-latest-small: the MacridVAE paper's protocol, ratings of 4 and 5, 500 (50) users each held out for
  validation and test.
- ml-1m-splits: the same, but each seed holds out other users and targets too.
- ml-100k: RecBole's own split (ml-100k-recbole/): fitted on train, the epoch chosen on valid; test shows both.
- gowalla: the published split: fitted on train, the epoch chosen on valid items of 2,000 users; test shows both.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from pipeline.baselines import choose_ease, popularity
from pipeline.config import Config, load_config
from pipeline.dataset import Dataset, load_dataset
from pipeline.eager import EagerScorer
from pipeline.evaluation import evaluate
from pipeline.fitting import Fitting
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.scorer import Scorer
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).with_suffix(".jsonl")
METHODS = ("popularity", "ease", "paper", "recbole", "default", "concepts")
PAPER_METRICS = ("ndcg@100", "recall@20", "recall@50")
METRICS = {
    "ml-1m": PAPER_METRICS,
    "ml-1m-splits": PAPER_METRICS,
    "ml-latest-small": PAPER_METRICS,
    "ml-100k": ("plain_recall@10", "ndcg@10", "mrr@10", "ndcg@100"),
    "gowalla": ("plain_recall@20", "ndcg@20"),
}
CUTOFFS = {"ndcg": (10, 20, 100), "recall": (20, 50), "plain_recall": (10, 20), "mrr": (10,)}
PRINTED = {
    "ml-1m": {"MacridVAE, printed in its paper": (0.42740, 0.36046, 0.49039)},
    "ml-1m-splits": {},
    "ml-latest-small": {"MacridVAE, printed in its paper": (0.28895, 0.30951, 0.41309)},
    "ml-100k": {"MacridVAE, RecBole's quick start": (0.2469, 0.2771, 0.4537, 0.4113)},
    "gowalla": {"LightGCN, printed in its paper": (0.1830, 0.1554)},
}
VALIDATED_USERS = 2_000


def load(name: str, seed: int, folder: Path, scratch: Path) -> Dataset:
    """One set, split; the seed matters to ml-1m-splits only."""
    if name in ("ml-1m", "ml-1m-splits", "ml-latest-small"):
        held_out = 50 if name == "ml-latest-small" else 500
        paper = load_config(CONFIGS / "paper.toml")
        data = paper.updated(
            {
                "data.input": str(folder / name.removesuffix("-splits") / "interactions.parquet"),
                "data.seed": seed if name == "ml-1m-splits" else paper.data.seed,
                "data.validation": held_out,
                "data.test": held_out,
            }
        ).data
        return load_dataset(data, scratch)
    if name == "ml-100k":
        parts = [pl.read_parquet(folder / "ml-100k-recbole" / f"{part}.parquet") for part in ("train", "valid", "test")]
    else:
        rows = pl.read_parquet(folder / name / "interactions.parquet")
        parts = [rows.filter(pl.col("split") == part) for part in ("train", "valid", "test")]
    return given_split(*parts)


def given_split(train: pl.DataFrame, valid: pl.DataFrame, test: pl.DataFrame) -> Dataset:
    """A set that comes split inside its users; the catalogue is what train holds."""
    counts = train.group_by("item_id").len().sort("item_id")
    vocabulary = Vocabulary.of(counts["item_id"], counts["len"].to_numpy().astype(np.int64))
    users = train.select("user_id").unique().sort("user_id")
    shown, wanted = _lists(users, train, vocabulary), _lists(users, valid, vocabulary)
    both, asked = _lists(users, pl.concat([train, valid]), vocabulary), _lists(users, test, vocabulary)
    some = np.flatnonzero(wanted.lengths > 0)
    some = np.sort(np.random.default_rng(0).permutation(some)[:VALIDATED_USERS])
    tested = np.flatnonzero(asked.lengths > 0)
    return Dataset(
        vocabulary,
        shown,
        HeldOut(shown.take(some), wanted.take(some)),
        HeldOut(both.take(tested), asked.take(tested)),
        {},
    )


def _lists(users: pl.DataFrame, rows: pl.DataFrame, vocabulary: Vocabulary) -> Histories:
    """Each user's known items, ascending."""
    known = rows.select("user_id", item=vocabulary.numbers(rows["item_id"])).drop_nulls("item").unique()
    lists = known.group_by("user_id").agg(pl.col("item").sort())
    joined = users.join(lists, on="user_id", how="left", maintain_order="left")["item"]
    return Histories.of([items if items is not None else [] for items in joined.to_list()])


def fitted(method: str, seed: int, epochs: int, data: Dataset) -> tuple[Scorer, dict[str, object]]:
    """A scorer, and what is worth knowing about how it came about."""
    if method == "popularity":
        return popularity(data.vocabulary.items["n_interactions"].to_numpy()), {}
    if method == "ease":
        scorer, l2 = choose_ease(data)
        return scorer, {"l2": l2}
    config: Config = load_config(CONFIGS / f"{method}.toml")
    epochs = min(epochs, config.training.epochs)
    config = config.updated({"training.seed": seed, "training.precision": "bfloat16", "training.epochs": epochs})
    fitting = Fitting(MacridVAE.empty(len(data.vocabulary), config.model, "cpu"), data.train, data.validation, config)
    for epoch in fitting.epochs():
        print(f"  epoch {epoch.epoch}, NDCG@100 {epoch.validation_ndcg_100:.4f}, {epoch.seconds:.1f} s", flush=True)
    return EagerScorer(fitting.model), {"best_epoch": fitting.best_epoch, "validation": fitting.best_ndcg}


def table(results: list[dict[str, object]]) -> str:
    """Markdown, a section per set."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for result in results:
        found[str(result["set"]), str(result["method"])].append(result["metrics"])  # type: ignore[arg-type]
    lines = []
    for name, metrics in METRICS.items():
        if not any(key[0] == name for key in found):
            continue
        lines += [f"| {name} | seeds | {' | '.join(metrics)} |", f"|---|---:|{'---:|' * len(metrics)}"]
        for method in METHODS:
            runs = found.get((name, method), [])
            if runs:
                cells = [[run[metric] for run in runs] for metric in metrics]
                shown = [f"{mean(c):.4f}" + (f" ± {stdev(c):.4f}" if len(c) > 1 else "") for c in cells]
                label = f"MacridVAE, {method}.toml" if method not in ("popularity", "ease") else method
                lines.append(f"| {label} | {len(runs)} | {' | '.join(shown)} |")
        for label, values in PRINTED[name].items():
            lines.append(f"| {label} | | {' | '.join(f'{value:.4f}' for value in values)} |")
        lines.append("")
    return "\n".join(lines)


def read_results() -> list[dict[str, object]]:
    """All lines so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(name: str, method: str, seed: int, epochs: int, folder: Path) -> None:
    """Make one run and append its line."""
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        data = load(name, seed, folder, Path(scratch))
        started = time.monotonic()
        scorer, facts = fitted(method, seed, epochs, data)
        measured = evaluate(scorer, data.test.histories, data.test.targets, cutoffs=CUTOFFS)
    line = {"set": name, "method": method, "seed": seed, **facts, "seconds": round(time.monotonic() - started)}
    line["metrics"] = {metric: round(of.mean, 5) for metric, of in measured.items()}
    with RESULTS.open("a") as lines:
        print(json.dumps(line), file=lines)


def main() -> None:
    """Make the runs that are missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("MACRID_DATA", ""))
    parser.add_argument("--set", nargs="*", default=list(METRICS))
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=200)
    given = parser.parse_args()
    if not given.folder or not Path(given.folder).is_dir():
        print("skipped: name the folder of data sets as an argument or in MACRID_DATA")
        given.set = []
    for name, method in product(given.set, given.method):
        drawn = name == "ml-1m-splits" or method not in ("popularity", "ease")
        for seed in range(1, 1 + (given.seeds if drawn else 1)):
            if (name, method, seed) not in {(r["set"], r["method"], r["seed"]) for r in read_results()}:
                print(f"{name}, {method}, seed {seed}", flush=True)
                run(name, method, seed, given.epochs, Path(given.folder))
    print(table(read_results()))


if __name__ == "__main__":
    main()
