"""What each way to start and to train does to concepts, and what it costs in accuracy.

    python benchmarks/concepts.py FOLDER [--set planted ml-1m] [--method random spectral] [--seeds 3]

FOLDER holds the data sets as for quality.py; `planted`, the demo's shop, is generated. Every run is one line of
concepts.jsonl, made once; the table is of all lines so far, and says how many seeds they are. `stability` compares a
run with the runs of other seeds that left their assignments in --assignments.

- planted: the demo's config and data, 10 seeds; 7 categories
- ml-1m: default.toml with bfloat16 products, at most 40 epochs, paper's protocol, 3 seeds; 18 genres
- ml-100k: the same on RecBole's split of every rating, at most 60 epochs, 3 seeds; 19 genres
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from quality import load

from pipeline.categories import read_categories
from pipeline.concept_report import report
from pipeline.concepts import stability
from pipeline.config import Config, load_config
from pipeline.dataset import Dataset, load_dataset
from pipeline.demo_data import write_demo
from pipeline.eager import EagerScorer
from pipeline.evaluation import evaluate
from pipeline.fitting import Fitting
from pipeline.model import MacridVAE

RESULTS = Path(__file__).with_suffix(".jsonl")
SEEDS = {"planted": 10, "ml-100k": 3, "ml-1m": 3}
EPOCHS = {"ml-100k": 60, "ml-1m": 40}
METHODS: dict[str, dict[str, object]] = {
    "random": {"training.initialisation": "random"},
    "spectral": {"training.initialisation": "spectral"},
    "spectral, no Gumbel": {"training.initialisation": "spectral", "model.gumbel": False},
    "spectral, sharpness 0.5": {"training.initialisation": "spectral", "training.sharpness_weight": 0.5},
}
ACCURACY = {"ndcg": (100,), "recall": (50,)}
COLUMNS = (
    *("ndcg@100", "recall@50", "best_epoch"),
    *("median_largest_share", "matched_purity", "purity", "nmi", "ari", "macro_score", "stability"),
    *("item_independence", "user_independence"),
    *("mass_disentanglement", "mass_completeness", "mass_informativeness"),
    *("code_disentanglement", "code_completeness", "code_informativeness"),
)


def setting(name: str, folder: Path, scratch: Path) -> tuple[Config, Dataset, str]:
    """Config, data and the column of categories of a set."""
    if name == "planted":
        write_demo(scratch)
        config = load_config(scratch / "pipeline.toml")
        files = {f"data.{field}": str(scratch / getattr(config.data, field)) for field in ("input", "items")}
        config = config.updated(files)
        (scratch / "rows").mkdir()
        return config, load_dataset(config.data, scratch / "rows"), "category"
    data = load(name, 0, folder, scratch)
    vocabulary = data.vocabulary.with_items(folder / name / "items.parquet")
    data = Dataset(vocabulary, data.train, data.validation, data.test, data.counts)
    fields = {"training.precision": "bfloat16", "training.epochs": EPOCHS[name]}
    return load_config(Path(__file__).parents[1] / "configs" / "default.toml").updated(fields), data, "genres"


def run(name: str, method: str, seed: int, folder: Path, assignments: Path) -> dict[str, object]:
    """Train once and measure."""
    with tempfile.TemporaryDirectory(prefix="macrid-bench-") as scratch:
        config, data, column = setting(name, folder, Path(scratch))
        config = config.updated({**METHODS[method], "training.seed": seed})
        started = time.monotonic()
        model = MacridVAE.empty(len(data.vocabulary), config.model, "cpu")
        fitting = Fitting(model, data.train, data.validation, config)
        for epoch in fitting.epochs():
            print(f"  epoch {epoch.epoch}, NDCG@100 {epoch.validation_ndcg_100}, {epoch.seconds:.1f} s", flush=True)
        seconds = round(time.monotonic() - started)
        measures = report(
            model, data.vocabulary, data.test.histories, read_categories(data.vocabulary, column)
        ).measures
        accuracy = evaluate(EagerScorer(model), data.test.histories, data.test.targets, cutoffs=ACCURACY)
    np.save(assignments / f"{name}, {method}, {seed}.npy", model.assignment().detach().numpy())
    facts = {"best_epoch": fitting.best_epoch, "validation": round(fitting.best_ndcg, 5), "seconds": seconds}
    measures = {metric: of.mean for metric, of in accuracy.items()} | measures
    rounded = {key: value if value is None else round(value, 5) for key, value in measures.items()}
    return {"set": name, "method": method, "seed": seed, **facts, **rounded}


def overlaps(name: str, method: str, assignments: Path) -> dict[int, float]:
    """Mean stability of each seed's concepts with those of the other seeds, as far as their assignments are there."""
    files = sorted(assignments.glob(f"{name}, {method}, *.npy"))
    found = defaultdict(list)
    for one, other in combinations(files, 2):
        value = stability(np.load(one), np.load(other))
        for file in (one, other):
            found[int(file.stem.rsplit(", ", 1)[1])].append(value)
    return {seed: round(mean(values), 5) for seed, values in found.items()}


def table(results: list[dict[str, object]]) -> str:
    """Markdown, a section per set."""
    lines = []
    for name in SEEDS:
        rows = {m: [r for r in results if (r["set"], r["method"]) == (name, m)] for m in METHODS}
        rows = {method: found for method, found in rows.items() if found}
        if not rows:
            continue
        lines += [f"| {name} | {' | '.join(rows)} |", f"|---|{'---:|' * len(rows)}"]
        lines.append(f"| seeds | {' | '.join(str(len(found)) for found in rows.values())} |")
        for column in COLUMNS:
            cells = [_cell([run[column] for run in found if run.get(column) is not None]) for found in rows.values()]
            if any(cells):
                lines.append(f"| {column.replace('_', ' ')} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def read_results() -> list[dict[str, object]]:
    """All lines so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def write_results(results: list[dict[str, object]]) -> None:
    """Replace the lines."""
    temporary = RESULTS.with_suffix(".new")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in results))
    temporary.replace(RESULTS)


def main() -> None:
    """Make the runs that are missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("MACRID_DATA", ""))
    parser.add_argument("--set", nargs="*", default=list(SEEDS))
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--assignments", type=Path, default=Path(tempfile.gettempdir(), "macrid-concepts"))
    given = parser.parse_args()
    if not given.folder or not Path(given.folder).is_dir():
        print("skipped: name the folder of data sets as an argument or in MACRID_DATA")
        given.set = []
    else:
        given.assignments.mkdir(exist_ok=True)
    for name, method in product(given.set, given.method):
        for seed in range(1, 1 + min(given.seeds, SEEDS[name])):
            if (name, method, seed) in {(r["set"], r["method"], r["seed"]) for r in read_results()}:
                continue
            print(f"{name}, {method}, seed {seed}", flush=True)
            results = [*read_results(), run(name, method, seed, Path(given.folder), given.assignments)]
            stable = overlaps(name, method, given.assignments)
            for line in results:
                if (line["set"], line["method"]) == (name, method) and line["seed"] in stable:
                    line["stability"] = stable[line["seed"]]
            write_results(results)
    print(table(read_results()))


if __name__ == "__main__":
    main()
