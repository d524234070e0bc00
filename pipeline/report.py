"""What commands print when they are done: tables for people, or one JSON object for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.metrics import Comparison, Measure


def print_facts(title: str, facts: Mapping[str, object], as_json: bool) -> None:
    """Names and values."""
    if as_json:
        print(json.dumps(facts, default=str))
        return
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in facts.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        table.add_row(name.replace("_", " "), f"{value:,}" if number else str(value))
    _print(title, table)


def print_metrics(title: str, metrics: Mapping[str, Measure], facts: Mapping[str, object], as_json: bool) -> None:
    """One row per metric, with its standard error and its 95% interval over users; the facts go into the JSON only."""
    if as_json:
        print(json.dumps({**facts, "metrics": _plain(metrics)}, default=str))
        return
    table = Table("metric", box=box.SIMPLE)
    for name in ("value", "standard error", "95% interval"):
        table.add_column(name, justify="right")
    for name, measure in metrics.items():
        interval = f"{measure.low:.4f} .. {measure.high:.4f}"
        table.add_row(name, f"{measure.mean:.4f}", f"{measure.standard_error:.4f}", interval)
    _print(title, table)


def print_comparison(
    title: str,
    metrics: Mapping[str, Measure],
    baselines: Mapping[str, Comparison],
    facts: Mapping[str, object],
    as_json: bool,
) -> None:
    """The model's metrics beside those of baselines, by name; below, by how much the model leads each.

    The JSON is that of `print_metrics` and `baselines`.
    """
    if as_json:
        others = {
            name: {
                "l2": baseline.l2,
                "metrics": _plain(baseline.metrics),
                "ndcg@100_advantage": asdict(baseline.advantage),
            }
            for name, baseline in baselines.items()
        }
        print(json.dumps({**facts, "metrics": _plain(metrics), "baselines": others}, default=str))
        return
    headings = [name if b.l2 is None else f"{name.upper()} (l2 = {b.l2:g})" for name, b in baselines.items()]
    table = Table("metric", box=box.SIMPLE)
    for heading in ("model", *headings):
        table.add_column(heading, justify="right")
    for name in metrics:
        found = [metrics[name], *(baseline.metrics[name] for baseline in baselines.values())]
        table.add_row(name, *(f"{measure.mean:.4f} ± {measure.standard_error:.4f}" for measure in found))
    _print(title, table)
    for heading, baseline in zip(headings, baselines.values(), strict=True):
        lead = baseline.advantage
        value = f"{lead.mean:+.4f} ± {lead.standard_error:.4f}, 95% interval {lead.low:+.4f} .. {lead.high:+.4f}"
        print(f"ndcg@100 of the model minus {heading}: {value}")


def print_rows(title: str, rows: pl.DataFrame, facts: Mapping[str, object], as_json: bool) -> None:
    """A table; the facts go into the JSON only."""
    if as_json:
        print(json.dumps({**facts, "rows": rows.to_dicts()}, default=str))
        return
    print_table(title, rows, digits=4)


def print_concepts(
    title: str,
    concepts: pl.DataFrame,
    measures: Mapping[str, float | int | None],
    facts: Mapping[str, object],
    as_json: bool,
) -> None:
    """One row per concept, then what is measured of all of them; the facts go into the JSON only."""
    if as_json:
        print(json.dumps({**facts, "measures": dict(measures), "concepts": concepts.to_dicts()}, default=str))
        return
    print_table(title, concepts.with_columns(pl.col("examples").list.join(", ")), digits=2)
    print_table("", pl.DataFrame({"measure": list(measures), "value": [_cell(v, 3) for v in measures.values()]}))


def print_table(title: str, rows: pl.DataFrame, digits: int = 3) -> None:
    """A small table, numbers to the right, with so many digits after the point."""
    table = Table(box=box.SIMPLE)
    for name, dtype in rows.schema.items():
        table.add_column(name.replace("_", " "), justify="right" if dtype.is_numeric() else "left")
    for row in rows.iter_rows():
        table.add_row(*(_cell(value, digits) for value in row))
    _print(title, table)


def _plain(metrics: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    return {name: asdict(measure) for name, measure in metrics.items()}


def _cell(value: object, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _print(title: str, table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 110
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
