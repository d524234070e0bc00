"""An epoch of training: seconds and memory beside RecBole's MacridVAE, and beside the matrix products it cannot avoid.

    python benchmarks/training.py [FOLDER] [--set NAME ...] [--recbole PYTHON] [--recbole-gowalla] [--config FILE]
                                  [--threads 2] [--epochs 3] [--rounds 2]

FOLDER holds NAME/interactions.parquet; without it, MACRID_DATA names it. NAME: ml-1m and gowalla unless given. PYTHON
is an interpreter with RecBole; without it, RecBole's side is left out. What it needs (a CPU build of torch will do):

    python -m venv recbole
    recbole/bin/pip install torch==2.13.0 recbole==1.2.1 numpy==1.26.4 pandas==2.2.3 scipy==1.13.1

RecBole holds matrices of batch x catalogue for every concept: some 3 GiB on ml-1m, by which gowalla's eleven times as
many items would take over 30 GiB (not measured). So it runs on gowalla only with --recbole-gowalla.

Both sides have RecBole's defaults (ours: those of configs/recbole.toml, with float32 and with bfloat16 products), a
random 8:1:1 split of all interactions, batches of 2,048 users, and no evaluation. Each round starts a fresh process per
side, in turn; the first epoch of each is not counted. Without RecBole there is one round. Peak memory is resident
memory of the process; "of it, training" is what it grew by after the data and the model were there.

The floor: per batch, the decoder's product of user vectors and items and its two gradients, [C B, D] x [D, I] each, in
float32. Everything else, the encoder's sums of rows included, is left out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

CONFIG = Path(__file__).parents[1] / "configs" / "recbole.toml"
RECBOLE = "RecBole 1.2.1"


def ours(config_file: Path, interactions: str, precision: str, epochs: int, threads: int) -> dict[str, object]:
    """Train in this process."""
    import torch

    from pipeline.config import load_config
    from pipeline.dataset import load_dataset
    from pipeline.fitting import Fitting
    from pipeline.histories import Histories
    from pipeline.model import MacridVAE
    from pipeline.split import HeldOut

    torch.set_num_threads(threads)
    config = load_config(config_file).updated(
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


def floor(config_file: Path, users: int, items: int, threads: int) -> float:
    """Seconds of an epoch's unavoidable products."""
    import torch

    from pipeline.config import load_config

    torch.set_num_threads(threads)
    config = load_config(config_file)
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


def side(given: argparse.Namespace, interactions: str) -> dict[str, object]:
    """What a child does: convert the data, time the bare products, or train."""
    kind, _, rest = given.side.partition(":")
    if kind == "atomic":
        write_atomic(interactions, Path(rest))
        return {}
    if kind == "floor":
        users, items = map(int, rest.split(":"))
        return {"seconds": floor(given.config, users, items, given.threads)}
    return ours(given.config, interactions, kind, given.epochs + 1, given.threads)


def run(command: list[str], threads: int, folder: str) -> dict[str, object]:
    """Run one side in a process of its own; what RecBole writes beside its work goes into the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, recbole: str | None, given: argparse.Namespace) -> None:
    """Run the sides on one data set in turn and print a table.

    This process stays small: on Linux, a child's peak memory starts at that of the process that started it.
    """
    numbers = ["--threads", str(given.threads), "--epochs", str(given.epochs), "--config", str(given.config)]
    this = [sys.executable, __file__, given.folder, "--set", name, *numbers, "--side"]
    sides = {"float32": [*this, "float32"], "bfloat16": [*this, "bfloat16"]}
    found: dict[str, list[dict[str, object]]] = {side: [] for side in sides}
    floors: list[float] = []
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        if recbole:
            run([*this, f"atomic:{scratch}"], given.threads, scratch)
            script = str(Path(__file__).parent / "recbole" / "epoch.py")
            sides[RECBOLE] = [recbole, script, scratch, str(given.epochs + 1), str(given.threads)]
            found[RECBOLE] = []
        for _ in range(given.rounds if recbole else 1):
            for side, command in sides.items():
                found[side].append(run(command, given.threads, scratch))
            size = found["float32"][0]
            bare = run([*this, f"floor:{size['users']}:{size['items']}"], given.threads, scratch)
            floors.append(float(str(bare["seconds"])))
    least = median(floors)
    print(f"\n{name}: {size['users']:,} users, {size['items']:,} items, {size['interactions']:,} interactions")
    print(f"threads: {given.threads}; bare float32 products: {least:.2f} s an epoch\n")
    print("| side | s/epoch | / bare products | / RecBole | peak MiB | of it, training |")
    print("|---|---:|---:|---:|---:|---:|")
    seconds = {
        side: median([second for one in runs for second in one["seconds"][1:]])  # type: ignore[index]
        for side, runs in found.items()
    }
    for side, runs in found.items():
        peak = max(float(str(one["peak_mib"])) for one in runs)
        grown = max(float(str(one["peak_mib"])) - float(str(one["before_mib"])) for one in runs)
        ratio = f"{seconds[side] / seconds[RECBOLE]:.2f}" if RECBOLE in seconds else ""
        cells = (side, f"{seconds[side]:.2f}", f"{seconds[side] / least:.2f}", ratio, f"{peak:,.0f}", f"{grown:,.0f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """A table per data set; or, as a child, one side's JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("MACRID_DATA", ""))
    parser.add_argument("--set", nargs="+", default=["ml-1m", "gowalla"], dest="sets")
    parser.add_argument("--recbole")
    parser.add_argument("--recbole-gowalla", action="store_true")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.config = given.config.absolute()
    given.folder = str(Path(given.folder).absolute()) if given.folder else ""
    files = {name: Path(given.folder) / name / "interactions.parquet" for name in given.sets}
    if given.side:
        print(json.dumps(side(given, str(files[given.sets[0]]))))
        return
    recbole = shutil.which(given.recbole) if given.recbole else None
    if recbole:
        recbole = str(Path(recbole).absolute())  # not resolved: a link decides which environment it is
    else:
        missing = f"{given.recbole} is not there" if given.recbole else "no interpreter was named"
        print(f"RecBole's side is left out: {missing}; name one that has RecBole with --recbole")
    for name, file in files.items():
        if not given.folder or not file.is_file():
            print(f"skipped: {file} is not there; name the folder of data sets as an argument or in MACRID_DATA")
            continue
        may = name != "gowalla" or given.recbole_gowalla
        if recbole and not may:
            print(f"RecBole's side is left out on {name}: it needs much memory; --recbole-gowalla runs it")
        compare(name, recbole if may else None, given)


if __name__ == "__main__":
    main()
