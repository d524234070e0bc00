"""What commands print when they are done: tables for people, or one JSON object for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.metrics import Measure


def print_facts(title: str, facts: Mapping[str, object], as_json: bool) -> None:
    """Names and values."""
    if as_json:
        print(json.dumps(facts, default=str))
        return
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    _print(title, table)


def print_metrics(title: str, metrics: Mapping[str, Measure], facts: Mapping[str, object], as_json: bool) -> None:
    """One row per metric, with its standard error and its 95% interval over users; the facts go into the JSON only."""
    if as_json:
        measured = {name: asdict(measure) for name, measure in metrics.items()}
        print(json.dumps({**facts, "metrics": measured}, default=str))
        return
    table = Table("metric", box=box.SIMPLE)
    for name in ("value", "standard error", "95% interval"):
        table.add_column(name, justify="right")
    for name, measure in metrics.items():
        interval = f"{measure.low:.4f} .. {measure.high:.4f}"
        table.add_row(name, f"{measure.mean:.4f}", f"{measure.standard_error:.4f}", interval)
    _print(title, table)


def print_table(title: str, rows: pl.DataFrame) -> None:
    """A small table, numbers to the right."""
    table = Table(box=box.SIMPLE)
    for name, dtype in rows.schema.items():
        table.add_column(name.replace("_", " "), justify="right" if dtype.is_numeric() else "left")
    for row in rows.iter_rows():
        table.add_row(*(_cell(value) for value in row))
    _print(title, table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print(title: str, table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 110
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
