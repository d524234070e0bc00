"""The demo: a generated shop, the three commands of a nightly job, and what they made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
from rich.console import Console

from pipeline.categories import agreement, read_categories
from pipeline.checkpoint import read_checkpoint
from pipeline.demo_data import COLD_USER, KNOWN_USERS, write_demo
from pipeline.errors import JobError
from pipeline.report import print_table

COMMANDS = ("pipeline train", "pipeline export --format onnx", "pipeline score --input users.parquet")
SHOWN_USERS = {
    "a customer seen in training": "user-00003",
    "a new customer, never seen in training": f"user-{KNOWN_USERS + 4:05d}",
    "a customer without a history": COLD_USER,
}
SHOWN_ITEMS = 5


def run_demo(workspace: Path) -> None:
    """Generate data, run the three commands in the workspace, print recommendations and how well concepts were found.

    Raises:
        JobError: a command failed; its own message was shown.
    """
    console = Console()
    write_demo(workspace)
    console.print(f"Generated a shop in {workspace}/: interactions, items and users as Parquet.", highlight=False)
    for command in COMMANDS:
        console.print(f"\n[bold]$ {command}[/bold]", highlight=False)
        arguments = command.split()[1:]
        done = subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=workspace, check=False)  # noqa: S603
        if done.returncode:
            raise JobError(f"`{command}` ended with exit code {done.returncode} in {workspace}. See its message above.")
    concepts = _show_concepts(workspace)
    for who, user in SHOWN_USERS.items():
        _show_user(workspace, who, user, concepts)


def _show_concepts(workspace: Path) -> pl.DataFrame:
    """Print how concepts match the planted categories; returns the category of each concept."""
    checkpoint = read_checkpoint(workspace / "checkpoint")
    assignment_IC = checkpoint.model().assignment().detach().numpy()
    match = agreement(assignment_IC, read_categories(checkpoint.vocabulary, "category"))
    title = f"Concepts found, without reading a title: purity {match.purity:.3f}, NMI {match.nmi:.3f}"
    print_table(title, match.table)
    return match.table.select(pl.col("concept").cast(pl.Int16), pl.col("category").alias("concept_name"))


def _show_user(workspace: Path, who: str, user: str, concepts: pl.DataFrame) -> None:
    items = pl.read_parquet(workspace / "items.parquet")
    history = pl.read_parquet(workspace / "users.parquet").filter(pl.col("user_id") == user)["history"].item()
    counts = items.filter(pl.col("item_id").is_in(history.to_list()))["category"].value_counts(sort=True)
    liked = ", ".join(f"{n} {category}" for category, n in counts.iter_rows()) or "nothing yet"
    rows = (
        pl.scan_parquet(workspace / "recommendations" / "data")
        .filter((pl.col("user_id") == user) & (pl.col("rank") <= SHOWN_ITEMS))
        .collect()
        .join(items, on="item_id", how="left", maintain_order="left")
        .join(concepts, on="concept", how="left", maintain_order="left")
        .select("rank", "title", "score", "concept", pl.col("concept_name").alias("named after"), "concept_share")
    )
    print_table(f"{user}, {who} (history: {liked})", rows)
