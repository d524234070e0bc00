"""Inspection: what a directory of ours holds, as tables for people or one JSON object for scripts.

The modules that read the three kinds (`pipeline/inspect_checkpoint.py`, `export/inspect_bundle.py`,
`scoring/inspect_run.py`) return an `Inspection`; here is what they share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import FileDigest, directory_kind
from pipeline.metrics import Comparison, Measure
from pipeline.report import print_facts, print_table

KINDS = {"checkpoint": "pipeline train", "bundle": "pipeline export", "run": "pipeline score"}
"""Kinds of directories, and what writes them."""


Tables = dict[str, Mapping[str, object] | pl.DataFrame]
"""For people, by title: names and values, or rows."""


class Inspection(NamedTuple):
    """What was found."""

    facts: dict[str, object]
    """The JSON object: `kind`, `path`, the fields of the manifest by their names, and what the kind adds."""
    tables: Tables


def kind_of(directory: Path) -> str:
    """The kind of a directory, of `KINDS`.

    Raises:
        InputError: it is none of them.
    """
    kind = directory_kind(directory)
    if isinstance(kind, str) and kind in KINDS:
        return kind
    writers = ", ".join(f"`{command}`" for command in KINDS.values())
    found = f"it has no {MANIFEST} that says so" if kind is None else f"its {MANIFEST} says kind {kind!r:.80}"
    raise InputError(
        f"{directory} is no checkpoint, bundle or run: {found}. Name a folder that one of {writers} wrote."
    )


def print_inspection(found: Inspection, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print(json.dumps(found.facts))
        return
    for title, table in found.tables.items():
        if isinstance(table, pl.DataFrame):
            print_table(title, table, digits=4)
        else:
            print_facts(title, table, as_json=False)


def file_rows(files: Mapping[str, FileDigest]) -> pl.DataFrame:
    """One row per file."""
    rows = [(name, f"{file.size:,}", file.sha256) for name, file in sorted(files.items())]
    return pl.DataFrame(rows, schema=dict.fromkeys(("file", "bytes", "SHA-256"), pl.String), orient="row")


def config_rows(config: Config) -> pl.DataFrame:
    """One row per field."""
    fields = config.fields()
    return pl.DataFrame({"field": list(fields), "value": [str(value) for value in fields.values()]})


def metric_rows(metrics: Mapping[str, Measure], baselines: Mapping[str, Comparison]) -> pl.DataFrame:
    """One row per metric: the model's value, its 95% interval, and the values of baselines."""
    rows = [
        {"metric": name, "model": measure.mean, "low": measure.low, "high": measure.high}
        | {other: baseline.metrics[name].mean for other, baseline in baselines.items()}
        for name, measure in metrics.items()
    ]
    schema = {"metric": pl.String} | dict.fromkeys(("model", "low", "high", *baselines), pl.Float64)
    return pl.DataFrame(rows, schema=schema)
