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
    """Names and values; nothing of a nested value is left out of the JSON."""
    if as_json:
        print(json.dumps(facts, default=str))
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


def print_metrics(title: str, metrics: Mapping[str, Measure], facts: Mapping[str, object], as_json: bool) -> None:
    """One row per metric, with its standard error and its 95% interval over users; the facts go into the JSON only."""
    if as_json:
        print(
            json.dumps({**facts, "metrics": {name: asdict(measure) for name, measure in metrics.items()}}, default=str)
        )
        return
    table = Table("metric", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("value", "standard error", "95% interval"):
        table.add_column(name, justify="right")
    for name, measure in metrics.items():
        interval = f"{measure.low:.4f} .. {measure.high:.4f}"
        table.add_row(name, f"{measure.mean:.4f}", f"{measure.standard_error:.4f}", interval)
    Console().print(table)


def print_table(title: str, rows: pl.DataFrame) -> None:
    """A small table, numbers to the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name, dtype in rows.schema.items():
        table.add_column(name.replace("_", " "), justify="right" if dtype.is_numeric() else "left")
    for row in rows.iter_rows():
        table.add_row(
            *("" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row)
        )
    Console().print(table)
