"""Numbering: which item RecBole gave which number. A checkpoint of RecBole's does not say; its data and config do.

RecBole 1.2.1 (`recbole.data.dataset.Dataset`) reads the `.inter` file, drops rows without user or item, rows outside
`val_interval`, rows of users or items that a loaded `.user` or `.item` file lacks, and, again and again until none is
left, rows of users and items with too few or too many. Then it numbers item tokens by first appearance, from 1 (0 is
padding): those of the interactions, in the order of the file, and after them those only the `.item` file has. Files
named by `benchmark_filename` are read one after the other, without any filter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from pipeline.errors import InputError
from pipeline.recbole_files import AtomicFile, interaction_files, open_atomic

PADDING = "[PAD]"
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""What pandas, by which RecBole reads, takes for a missing value."""
_VALUE = "value of "
"""Before the names of fields that `val_interval` looks at."""
BY_FILE = "Give RecBole's own numbering with --tokens."
_UNFOLLOWED = ("rm_dup_inter", "alias_of_item_id", "alias_of_user_id")


class Numbered(NamedTuple):
    """What RecBole trained on."""

    interactions: pl.DataFrame
    """`user_id`, `item_id`, String."""
    tokens: pl.Series
    """Item ids, String; position i has RecBole's number i + 1."""


def number_items(source: Path, settings: Mapping[str, Any]) -> Numbered:
    """Repeat RecBole's numbering.

    Args:
        source: the data set's folder, or its `.inter` file.
        settings: RecBole's, the final ones; what is missing changes nothing.

    Raises:
        InputError: a file is missing or faulty, or the settings ask for more than is repeated here.
    """
    if asked := [name for name in _UNFOLLOWED if settings.get(name)]:
        raise InputError(f"The model was trained with {', '.join(asked)}, which is not repeated here. {BY_FILE}")
    called, separator = _layout(settings)
    benchmark = settings.get("benchmark_filename")
    files = interaction_files(source)
    if benchmark and (absent := [name for name in benchmark if name not in files]):
        raise InputError(f"{source} lacks the .inter file of {', '.join(absent)}, which the model was trained with.")
    intervals = {} if benchmark else dict(settings.get("val_interval") or {})
    read = [files[name] for name in benchmark] if benchmark else list(files.values())
    rows = pl.concat([_tokens(open_atomic(file, separator), called, intervals) for file in read])
    _refuse_quotes(source, rows)
    stem = read[0].with_name(read[0].name.partition(".")[0])
    described = _described(stem, separator, called, settings.get("load_col", {"inter": "*"}))
    if not benchmark:
        if rows["user_id"].null_count() and rows["item_id"].null_count():
            raise InputError(
                f"{source} has rows without user and rows without item (empty, or NA and the like), of which RecBole "
                f"drops others in their place. {BY_FILE}"
            )
        rows = rows.drop_nulls(["user_id", "item_id"])
        for name, interval in intervals.items():
            rows = rows.filter(_within(pl.col(f"{_VALUE}{name}"), interval))
        if settings.get("filter_inter_by_user_or_item", True):
            for column, ids in described.items():
                rows = rows.filter(pl.col(column).is_in(ids.implode()))
        rows = _frequent(rows, described, settings)
    tokens = pl.concat([rows["item_id"], *(ids for column, ids in described.items() if column == "item_id")])
    interactions = rows.select("user_id", "item_id").drop_nulls()
    return Numbered(interactions, tokens.drop_nulls().unique(maintain_order=True))


def all_interactions(source: Path, settings: Mapping[str, Any]) -> pl.DataFrame:
    """The data set's `user_id` and `item_id`, unfiltered: for a numbering that is known.

    Raises:
        InputError: a file is missing or faulty.
    """
    called, separator = _layout(settings)
    files = interaction_files(source).values()
    return pl.concat([_tokens(open_atomic(file, separator), called) for file in files]).drop_nulls()


def _layout(settings: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """What users and items are called in the files, and what separates fields."""
    called = {"user_id": settings.get("USER_ID_FIELD", "user_id"), "item_id": settings.get("ITEM_ID_FIELD", "item_id")}
    return called, settings.get("field_separator", "\t")


def _refuse_quotes(where: Path, rows: pl.DataFrame) -> None:
    ids = [name for name in ("user_id", "item_id") if name in rows.columns]
    if rows.select(pl.any_horizontal(pl.col(ids).str.starts_with('"').any())).item():
        raise InputError(f"{where} has ids that begin with a quote, which RecBole reads in its own way. {BY_FILE}")


def _tokens(atomic: AtomicFile, called: Mapping[str, str], fields: Iterable[str] = ()) -> pl.DataFrame:
    """Columns as pandas reads them: tokens with nulls, and the fields in their types."""
    file, columns = atomic.rows.file, [pl.col(name).alias(column) for column, name in called.items()]
    if absent := [name for name in (*called.values(), *fields) if name not in atomic.types]:
        raise InputError(f"{file} has no field {', '.join(absent)}, which the model was trained with. {BY_FILE}")
    floats = [
        pl.col(name).cast(pl.Float64, strict=False).fill_nan(None) for name in fields if atomic.types[name].is_float()
    ]
    others = [pl.col(name) for name in fields if not atomic.types[name].is_float()]
    values = [value.name.prefix(_VALUE) for value in (*floats, *others)]
    rows = atomic.rows.frame.select(*columns, *values).collect(engine="streaming")
    missing = pl.col(*called).is_in(list(_MISSING))
    return rows.with_columns(pl.when(~missing).then(pl.col(*called)))


def _described(stem: Path, separator: str, called: Mapping[str, str], load_col: object) -> dict[str, pl.Series]:
    """Ids of the `.user` and `.item` files that RecBole loads: all there are, or those that `load_col` names."""
    files = {"user_id": stem.with_name(f"{stem.name}.user"), "item_id": stem.with_name(f"{stem.name}.item")}
    loaded = {
        column: file
        for column, file in files.items()
        if file.is_file() and (load_col is None or (isinstance(load_col, dict) and file.suffix[1:] in load_col))
    }
    described = {}
    for column, file in loaded.items():
        rows = _tokens(open_atomic(file, separator), {column: called[column]})
        _refuse_quotes(file, rows)
        ids = rows[column]
        if ids.null_count():
            raise InputError(f"{file} has lines without {called[column]}, which RecBole may drop others for. {BY_FILE}")
        described[column] = ids.unique(maintain_order=True)
    return described


def _frequent(rows: pl.DataFrame, described: dict[str, pl.Series], settings: Mapping[str, Any]) -> pl.DataFrame:
    """Rows left when users and items outside their intervals are gone; `described` loses those ids too."""
    stated = {f"{side}_id": settings.get(f"{side}_inter_num_interval") for side in ("user", "item")}
    limits = {column: str(limit) for column, limit in stated.items() if limit}
    while True:
        before = len(rows), [len(ids) for ids in described.values()]
        fits = {column: _within(pl.len().over(column), limit) for column, limit in limits.items()}
        for column in described.keys() & limits.keys():
            described[column] = _still_described(rows[column], described[column], limits[column])
        rows = rows.filter(*fits.values())
        if before == (len(rows), [len(ids) for ids in described.values()]):
            return rows


def _still_described(column: pl.Series, ids: pl.Series, limit: str) -> pl.Series:
    counts = column.rename("id").value_counts(name="n")
    counted = ids.rename("id").to_frame().join(counts, on="id", how="left", maintain_order="left")
    lowest = _bounds(limit)[0][1]
    number = pl.col("n").fill_null(0)
    fits = (number >= lowest) & ((number == 0) | _within(number, limit))
    return counted.filter(fits)["id"].alias(column.name)


def _within(value: pl.Expr, interval: Any) -> pl.Expr:
    """Whether a number is in intervals, such as "[3,5);(7,inf)", or a token in a list."""
    if not isinstance(interval, str):
        return value.is_in(list(interval))
    parts = [
        (value >= low if opens == "[" else value > low) & (value <= high if closes == "]" else value < high)
        for opens, low, high, closes in _bounds(interval)
    ]
    return pl.any_horizontal(*parts)


def _bounds(intervals: str) -> list[tuple[str, float, float, str]]:
    found = [re.fullmatch(r"\s*([\[(])([^,]+),([^,]+)([\])])\s*", part) for part in intervals.split(";")]
    try:
        return [(one[1], float(one[2]), float(one[3]), one[4]) for one in found]  # type: ignore[index]
    except (TypeError, ValueError):
        raise InputError(f"{intervals!r} is no interval of RecBole's, such as '[5,inf)'. Correct the config.") from None
