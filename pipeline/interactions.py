"""Interactions: what a caller's Parquet holds, inspected footer by footer before any work begins.

Whatever cannot be read is refused here, by file and column. Reading itself is `pipeline.buckets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError

Form = Literal["interactions", "histories", "users"]
Schema = dict[str, pl.DataType]

ITEM_COLUMN: dict[Form, str] = {"interactions": "item_id", "histories": "history"}


@dataclass(frozen=True)
class Source:
    """Parquet files that passed inspection."""

    location: str
    """As the caller typed it."""
    files: tuple[Path, ...]
    """Sorted by path; files without rows are left out."""
    form: Form
    user_type: pl.DataType
    """Of `user_id`: an integer type or String."""
    item_type: pl.DataType | None
    """Of `item_id`, or of the elements of `history`; None for bare users."""
    n_rows: int
    """Interactions; or elements of all histories, an empty one counting as one; or rows of bare users."""
    originals: tuple[Path, ...] = ()
    """The files of the caller that `files` are copies of; empty where they are the caller's own."""


def open_source(location: str, *, with_rating: bool = False) -> Source:
    """Inspect a Parquet file, a directory of them (at any depth, hive partitions too) or a glob.

    The columns say which form it has: `user_id, item_id` are interactions, `user_id, history` (a list) are histories,
    `user_id` alone are bare users. Other columns are ignored, and so are hive columns (the `day=1` of a path): ids come
    from the files. Below a directory, and among the matches of a glob, names that start with `_` or `.` are skipped.

    Raises:
        InputError: nothing is there, a file is not Parquet, a column is absent or of a wrong or changing type, an id is
            null (or, `with_rating`, a rating null or NaN), or there are no rows at all.
    """
    return open_files(location, parquet_files(location), with_rating=with_rating)


def open_files(location: str, paths: Sequence[Path], *, with_rating: bool = False) -> Source:
    """Inspect these files, found at a location; as `open_source`."""
    sources = []
    for file in paths:
        source = inspect_file(file)
        if source is not None:
            _refuse_faults(source, with_rating=with_rating)
            sources.append(source)
            _refuse_difference(sources[0], source)
    if not sources:
        raise InputError(f"{location} holds no rows. Check the job that wrote it.")
    files = tuple(file for source in sources for file in source.files)
    first = sources[0]
    return Source(location, files, first.form, first.user_type, first.item_type, sum(s.n_rows for s in sources))


def parquet_files(location: str) -> list[Path]:
    """Parquet files at a location, sorted; see `open_source`.

    Raises:
        InputError: nothing is there.
    """
    path = Path(location)
    if path.is_dir():
        files = _visible(path, path.rglob("*.parquet"))
    elif path.exists():
        files = {path}
    elif _has_magic(location):
        base = Path(*path.parts[: [_has_magic(part) for part in path.parts].index(True)])
        matches = set(base.glob(str(path.relative_to(base))))
        below = {file for match in matches if match.is_dir() for file in match.rglob("*.parquet")}
        files = _visible(base, matches | below)
    else:
        raise InputError(f"{location} does not exist. Name a local Parquet file, a directory of them, or a glob.")
    if not files:
        raise InputError(f"{location} holds no Parquet files. Name a Parquet file, a directory of them, or a glob.")
    return sorted(files)


def _has_magic(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _visible(base: Path, files: Iterator[Path] | set[Path]) -> set[Path]:
    """Without Spark's leftovers and half-written files: names below `base` that start with `_` or `.`."""
    return {
        file
        for file in files
        if file.is_file() and not any(part.startswith(("_", ".")) for part in file.relative_to(base).parts)
    }


def _read_footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{file} cannot be read as Parquet ({str(error).strip()}). Write it again, or leave it out."
        ) from None


def inspect_file(file: Path) -> Source | None:
    """One file as a source of its own, by its footer: whether ids are null is not looked at. None: it has no rows.

    Raises:
        InputError: it is not Parquet, or a column is absent or of a wrong type.
    """
    metadata = _read_footer(file)
    if not metadata.num_rows:
        return None
    schema = pl.read_parquet_schema(file)
    form = _form(file, schema)
    user_type = _id_type(file, "user_id", schema["user_id"])
    item_type, n_rows = None, metadata.num_rows
    if form != "users":
        column = ITEM_COLUMN[form]
        item_type = _item_type(file, column, schema[column])
        n_rows = sum(chunk.num_values for chunk in _chunks(metadata, column))
    return Source(str(file), (file,), form, user_type, item_type, n_rows)


def _refuse_faults(source: Source, *, with_rating: bool) -> None:
    """Refuse null ids in a file, and with `with_rating` unusable ratings."""
    (file,) = source.files
    metadata = _read_footer(file)
    _refuse_nulls(file, metadata, "user_id", pl.col("user_id").null_count())
    if source.item_type is not None:
        column = ITEM_COLUMN[source.form]
        nulls = pl.col(column).null_count() if source.form == "interactions" else _null_elements(source.item_type)
        _refuse_nulls(file, metadata, column, nulls)
    if with_rating:
        _check_rating(file, source.form, pl.read_parquet_schema(file))


def _form(file: Path, schema: Schema) -> Form:
    if "user_id" not in schema:
        raise InputError(f"{file} has no column user_id, only {', '.join(schema)}. Rename the column of users.")
    if "item_id" in schema and "history" in schema:
        raise InputError(f"{file} has both item_id and history. Keep one: a row is an interaction or a whole history.")
    return "interactions" if "item_id" in schema else "histories" if "history" in schema else "users"


def _item_type(file: Path, column: str, dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.List | pl.Array):
        if column == "item_id":
            raise InputError(f"{file}: column item_id is {dtype}, expected integers or strings. Call lists history.")
        return _id_type(file, "history, inside its lists,", cast(pl.DataType, dtype.inner))
    if column == "history":
        raise InputError(f"{file}: column history is {dtype}, expected a list of item ids. Call single ids item_id.")
    return _id_type(file, column, dtype)


def _id_type(file: Path, column: str, dtype: pl.DataType) -> pl.DataType:
    """The type that ids are read as: integers as they are, every encoding of strings as String."""
    if dtype.is_integer():
        return dtype
    if isinstance(dtype, pl.String | pl.Categorical | pl.Enum):
        return pl.String()
    raise InputError(f"{file}: column {column} is {dtype}, expected integers or strings. Cast it and write it again.")


def _check_rating(file: Path, form: Form, schema: Schema) -> None:
    if form != "interactions" or "rating" not in schema:
        raise InputError(f"{file} has no column rating beside item_id. Add it, or leave min_rating out.")
    if not schema["rating"].is_numeric():
        raise InputError(f"{file}: column rating is {schema['rating']}, expected numbers. Cast it and write it again.")
    rating = pl.col("rating").cast(pl.Float64)
    _refuse_count(file, "rating", rating.null_count() + rating.is_nan().sum(), "null or NaN")


def _refuse_nulls(file: Path, metadata: pq.FileMetaData, column: str, nulls: pl.Expr) -> None:
    """Trust statistics that promise no null; where they do not, count."""
    statistics = [chunk.statistics for chunk in _chunks(metadata, column)]
    if not all(known is not None and known.has_null_count and known.null_count == 0 for known in statistics):
        _refuse_count(file, column, nulls, "null")


def _refuse_count(file: Path, column: str, faults: pl.Expr, fault: str) -> None:
    try:
        scan = pl.scan_parquet(file, glob=False, hive_partitioning=False)
        count = scan.select(faults.cast(pl.Int64)).collect(engine="streaming").item()
    except pl.exceptions.ComputeError as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}). Write it again, or leave it out.") from None
    if count:
        raise InputError(f"{file}: column {column} is {fault} (count: {count:,}). Fill those in, or remove their rows.")


def _null_elements(item_type: pl.DataType) -> pl.Expr:
    history = pl.col("history").cast(pl.List(item_type)).list
    return (history.len().cast(pl.Int64) - history.drop_nulls().list.len().cast(pl.Int64)).sum()


def _chunks(metadata: pq.FileMetaData, column: str) -> Iterator[pq.ColumnChunkMetaData]:
    """A column's chunks, one per row group. A list column is stored under a path such as `history.list.element`."""
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    at = [path.split(".")[0] for path in paths].index(column)
    return (metadata.row_group(group).column(at) for group in range(metadata.num_row_groups))


def _refuse_difference(first: Source, other: Source) -> None:
    here, there = other.files[0], first.files[0]
    if other.form != first.form:
        raise InputError(
            f"{here} holds {other.form}, but {there} holds {first.form}. Keep them in separate directories."
        )
    for what, found, expected in (
        ("user ids", other.user_type, first.user_type),
        ("item ids", other.item_type, first.item_type),
    ):
        if found != expected:
            raise InputError(f"{what} are {found} in {here}, but {expected} in {there}. Write all files with one type.")
