"""An epoch of training: seconds and memory beside RecBole's MacridVAE, and beside the matrix products it cannot avoid.

    python benchmarks/training.py [FOLDER] [--set ml-1m] [--recbole PYTHON] [--threads 2] [--epochs 3] [--rounds 2]

FOLDER holds SET/interactions.parquet; without it, MACRID_DATA names it. PYTHON is an interpreter with RecBole, see
benchmarks/recbole/epoch.py; without it, RecBole's side is left out. Both sides have RecBole's defaults (ours: those of
configs/recbole.toml, with float32 and with bfloat16 products), a random 8:1:1 split of all interactions, batches of
2,048 users, and no evaluation. Each round starts a fresh process per side, in turn; the first epoch of each is not
counted.

The floor: per batch, the decoder's product of user vectors and items and its two gradients, [C B, D] x [D, I] each, in
float32. Everything else, the encoder's sums of rows included, is left out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

CONFIG = Path(__file__).parents[1] / "configs" / "recbole.toml"


def ours(interactions: str, precision: str, epochs: int, threads: int) -> dict[str, object]:
    """Train in this process."""
    import torch

    from pipeline.config import load_config
    from pipeline.dataset import load_dataset
    from pipeline.fitting import Fitting
    from pipeline.histories import Histories
    from pipeline.model import MacridVAE
    from pipeline.split import HeldOut

    torch.set_num_threads(threads)
    config = load_config(CONFIG).updated(
        {"data.input": interactions, "training.epochs": epochs, "training.precision": precision}
    )
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        data = load_dataset(config.data, Path(scratch))
        nobody = HeldOut(Histories.of([]), Histories.of([]))
        fitting = Fitting(MacridVAE.empty(len(data.vocabulary), config.model, "cpu"), data.train, nobody, config)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = [epoch.seconds for epoch in fitting.epochs()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"users": len(data.train), "items": len(data.vocabulary), "interactions": len(data.train.items_N)}
    return {**facts, "seconds": seconds, "before_mib": before / 1024, "peak_mib": peak / 1024}


def floor(users: int, items: int, threads: int) -> float:
    """Seconds of an epoch's unavoidable products."""
    import torch

    from pipeline.config import load_config

    torch.set_num_threads(threads)
    config = load_config(CONFIG)
    n_vectors = config.model.n_concepts * min(users, config.training.train_batch_size)
    items_ID = torch.randn(items, config.model.embedding_size)
    z = torch.randn(n_vectors, config.model.embedding_size)
    width = min(items, 2**24 // n_vectors)
    out, columns = torch.randn(n_vectors, width), items_ID[:width]

    def products() -> None:
        torch.mm(z, columns.T, out=out)
        torch.mm(out, columns)
        torch.mm(out.T, z)

    products()
    started = time.perf_counter()
    for _ in range(3):
        products()
    batches = users * config.model.n_concepts / n_vectors
    return (time.perf_counter() - started) / 3 * items / width * batches


def write_atomic(interactions: str, folder: Path) -> None:
    """RecBole's form of the interactions."""
    import polars as pl

    (folder / "data").mkdir()
    rows = pl.scan_parquet(interactions).select(
        pl.col("user_id").alias("user_id:token"), pl.col("item_id").alias("item_id:token")
    )
    rows.sink_csv(folder / "data" / "data.inter", separator="\t")


def run(command: list[str], threads: int) -> dict[str, object]:
    """Run one side in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{command[:2]} failed:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("MACRID_DATA", ""))
    parser.add_argument("--set", default="ml-1m")
    parser.add_argument("--recbole")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    interactions = str(Path(given.folder) / given.set / "interactions.parquet")
    if given.side:
        print(json.dumps(ours(interactions, given.side, given.epochs + 1, given.threads)))
        return
    if not given.folder or not Path(interactions).is_file():
        print(f"skipped: {interactions} is not there; name the folder of data sets as an argument or in MACRID_DATA")
        return
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        numbers = ["--threads", str(given.threads), "--epochs", str(given.epochs)]
        this = [sys.executable, __file__, given.folder, "--set", given.set, *numbers, "--side"]
        sides = {"float32": [*this, "float32"], "bfloat16": [*this, "bfloat16"]}
        if given.recbole:
            write_atomic(interactions, Path(scratch))
            script = str(Path(__file__).parent / "recbole" / "epoch.py")
            sides["RecBole 1.2.1"] = [given.recbole, script, scratch, str(given.epochs + 1), str(given.threads)]
        else:
            print("RecBole's side is left out: name an interpreter that has it with --recbole")
        found: dict[str, list[dict[str, object]]] = {name: [] for name in sides}
        floors = []
        for _ in range(given.rounds):
            for name, command in sides.items():
                found[name].append(run(command, given.threads))
            size = found["float32"][0]
            floors.append(floor(int(str(size["users"])), int(str(size["items"])), given.threads))
    least = median(floors)
    print(f"{given.set}: {size['users']:,} users, {size['items']:,} items, {size['interactions']:,} interactions")
    print(f"threads: {given.threads}; bare float32 products: {least:.2f} s an epoch\n")
    print("| side | s/epoch | / bare products | peak MiB | of it, training |\n|---|---:|---:|---:|---:|")
    for name, runs in found.items():
        seconds = median([second for one in runs for second in one["seconds"][1:]])  # type: ignore[index]
        peak = max(float(str(one["peak_mib"])) for one in runs)
        grown = max(float(str(one["peak_mib"])) - float(str(one["before_mib"])) for one in runs)
        print(f"| {name} | {seconds:.2f} | {seconds / least:.2f} | {peak:,.0f} | {grown:,.0f} |")


if __name__ == "__main__":
    main()
