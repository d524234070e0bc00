"""Prepare: other people's files -> the Parquet that `pipeline train` reads.

`interactions.parquet` holds `user_id, item_id[, rating, timestamp]`; `items.parquet`, where the source describes items,
`item_id` and what is known of them, for `data.items`. Everything is checked before anything is written, and each file
appears whole. Files that a source says nothing about are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.movielens import read_movielens, unpack
from pipeline.publish import publish_file, scratch_directory
from pipeline.recbole_files import interaction_files, open_atomic
from pipeline.text_rows import LINE, TextRows, read_csv, typed

Form = Literal["movielens", "recbole", "csv"]
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_CANONICAL = r"^(0|-?[1-9][0-9]{0,17})$"
"""An integer as it would be printed again, of at most 18 digits: Int64 loses nothing."""


def prepare(source: Path, form: Form, output: Path, columns: Sequence[str] = ()) -> dict[str, int]:
    """Write a source's interactions, and its items, as Parquet.

    Args:
        source: a file or folder; of movielens, also the zip archive.
        form: what it is.
        output: folder for `interactions.parquet` and `items.parquet`, made when missing; files of these names are
            replaced. Splits of RecBole's besides `train`, which becomes `interactions.parquet`, have their own names.
        columns: what `user_id`, `item_id`, `rating` and `timestamp` are called in the source, in this order; only
            these are read. Empty: they are called so, and the last two may be missing.

    Returns:
        Rows written, by the name of the file.

    Raises:
        InputError: the source is missing, or a line of it does not fit.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist. Name the file or folder to prepare.")
    if columns and form == "movielens":
        raise InputError("--columns does not go with --from movielens: its columns are known. Leave it out.")
    if columns and not (2 <= len(set(columns)) == len(columns) <= len(COLUMNS)):
        raise InputError(
            f"--columns {','.join(columns)} names {len(columns)} columns: expected two to four different ones, of "
            "users, items, ratings and timestamps, in this order."
        )
    output.mkdir(parents=True, exist_ok=True)
    with scratch_directory(output / "prepare") as scratch:
        if form == "movielens":
            interactions, items = read_movielens(unpack(source, scratch) if source.is_file() else source)
            tables = {"interactions": interactions}
        elif form == "recbole":
            tables, items = _recbole(source, columns)
        else:
            tables, items = {"interactions": _csv(source, columns)}, None
        for name, rows in tables.items():
            if rows.head(1).collect(engine="streaming").is_empty():
                raise InputError(f"{source} holds no rows for {name}.parquet. Check the job that wrote it.")
        if items is not None:
            tables = {"items": items, **tables}
        return {name: _write(output / f"{name}.parquet", rows) for name, rows in tables.items()}


def _write(path: Path, rows: pl.LazyFrame) -> int:
    publish_file(path, rows.sink_parquet)
    return int(pq.read_metadata(path).num_rows)


def _csv(file: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """CSV declares no types: a column of ids is Int64 where every value is an integer as Int64 prints it."""
    if not file.is_file():
        raise InputError(f"{file} is a folder. Name one CSV file.")
    rows = read_csv(file, "\t" if file.suffix == ".tsv" else ",")
    sources = _sources(file, rows.frame.collect_schema().names(), columns)
    integers = [pl.col(sources[name]).str.contains(_CANONICAL).all().alias(name) for name in COLUMNS[:2]]
    whole = rows.frame.select(integers).collect(engine="streaming").row(0, named=True)
    types = {name: pl.Int64() if is_whole else pl.String() for name, is_whole in whole.items()}
    return _interactions(rows, sources, types | {"rating": pl.Float64(), "timestamp": pl.Int64()})


def _recbole(source: Path, columns: Sequence[str]) -> tuple[dict[str, pl.LazyFrame], pl.LazyFrame | None]:
    files = interaction_files(source)
    tables = {}
    for split, file in files.items():
        atomic = open_atomic(file)
        sources = _sources(file, list(atomic.types), columns)
        types = {"user_id": pl.String(), "item_id": pl.String(), "rating": pl.Float64(), "timestamp": pl.Float64()}
        tables["interactions" if split in ("", "train") else split] = _interactions(atomic.rows, sources, types)
    first = next(iter(files.values()))
    described = first.with_name(f"{first.name.partition('.')[0]}.item")
    return tables, _items(described, columns) if described.is_file() else None


def _items(file: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """Every field of a `.item` file under its own name, only a lone `..._title` becomes `title`."""
    atomic = open_atomic(file)
    called = columns[1] if columns else "item_id"
    if called not in atomic.types:
        raise InputError(f"{file} has no field {called}, only {', '.join(atomic.types)}. Rename it, or move it away.")
    titles = [name for name in atomic.types if name.endswith("title")]
    sources = {"item_id": called, **{name: name for name in atomic.types if name != called}}
    if len(titles) == 1:
        sources = {"title" if name == titles[0] else name: source for name, source in sources.items()}
    types = {name: atomic.types[source] for name, source in sources.items()}
    rows = typed(atomic.rows, types | {"item_id": pl.String()}, sources, may_lack=True)
    return rows.unique("item_id", keep="first", maintain_order=True)  # as RecBole does


def _sources(file: Path, found: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """What our columns are called in the file."""
    named = dict(zip(COLUMNS, columns, strict=False)) or {name: name for name in COLUMNS if name in found}
    wanted = {"user_id": "user_id", "item_id": "item_id", **named}
    if absent := [source for source in wanted.values() if source not in found]:
        names = [name for name in found if name != LINE]
        raise InputError(
            f"{file} has no column {', '.join(absent)}, only {', '.join(names)}. "
            "Say with --columns what users, items, ratings and timestamps are called, such as --columns uid,iid,stars."
        )
    return wanted


def _interactions(rows: TextRows, sources: dict[str, str], types: dict[str, pl.DataType]) -> pl.LazyFrame:
    return typed(rows, {name: types[name] for name in sources}, sources)
