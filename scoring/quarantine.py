"""Quarantine: rows and files of the input that cannot be used, set aside instead of failing the job.

A source is read once more, before the job, and copied without its faults where it has any. Rows are the unit: a history
with a null in it is set aside whole. A row group that cannot be decoded is one fault, and so is a file; the users who
are nowhere else are not in the run. What types the ids have is decided by most rows: a file whose integers
stand among strings is cast, and a string among integers is cast or set aside.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.interactions import ITEM_COLUMN, Source, inspect_file, open_files, parquet_files

NAMED_FAULTS = 3
"""How many faults an error names."""


class Fault(NamedTuple):
    """What was set aside."""

    file: str
    row_group: int | None
    """None: the whole file."""
    row: int | None
    """Of the file, from 0. None: the whole row group."""
    reason: str
    content: str | None
    """The row's ids as JSON, where they could be read."""

    def __str__(self) -> str:
        row_group = "" if self.row_group is None else f", row group {self.row_group}"
        return f"{self.file}{row_group}{'' if self.row is None else f', row {self.row}'}: {self.reason}"


class Quarantine:
    """Faults of all sources of a job, up to a limit.

    Args:
        folder: where copies without faults are written, made when needed.
        max_errors: faults that are set aside; one more is an error.
    """

    def __init__(self, folder: Path, max_errors: int) -> None:
        self.faults: list[Fault] = []
        self._folder, self._max_errors = folder, max_errors

    def open(self, location: str) -> Source:
        """Inspect a source, as `open_source`, with its faults set aside.

        Raises:
            InputError: as `open_source`, for the whole location; or there are more faults than allowed.
        """
        paths = parquet_files(location)
        sources = list(self._readable(paths))
        if not sources:
            return open_files(location, [])
        rows = Counter[tuple[object, ...]]()
        for source in sources:
            rows[source.form, source.user_type, source.item_type] += source.n_rows
        like = max(sources, key=lambda source: rows[source.form, source.user_type, source.item_type])
        files = [file for source in sources if (file := self._screened(source, like)) is not None]
        return replace(open_files(location, files), originals=tuple(paths))

    def write(self, folder: Path) -> None:
        """Write `part-00000.parquet` into a folder that is made here, if anything was set aside."""
        if self.faults:
            folder.mkdir()
            types = {
                "file": pl.String,
                "row_group": pl.Int32,
                "row": pl.Int64,
                "reason": pl.String,
                "content": pl.String,
            }
            pl.DataFrame(self.faults, schema=types, orient="row").write_parquet(folder / "part-00000.parquet")

    def _add(self, fault: Fault) -> None:
        self.faults.append(fault)
        if len(self.faults) > self._max_errors:
            named = "".join(f"\n  {fault}" for fault in self.faults[:NAMED_FAULTS])
            raise InputError(
                f"The input has more than {self._max_errors:,} rows or files that cannot be used (--max-errors). "
                f"Correct them, or allow more. The first are:{named}"
            )

    def _readable(self, paths: list[Path]) -> Iterator[Source]:
        for file in paths:
            try:
                source = inspect_file(file)
            except InputError as error:
                self._add(
                    Fault(str(file), None, None, str(error).removeprefix(f"{file} ").removeprefix(f"{file}: "), None)
                )
            else:
                if source is not None:
                    yield source

    def _screened(self, source: Source, like: Source) -> Path | None:
        """The file itself, a copy without its faults, or nothing where it holds something else than most files do."""
        (file,) = source.files
        if source.form != like.form:
            self._add(Fault(str(file), None, None, f"holds {source.form}, but most rows are {like.form}", None))
            return None
        faults_before = len(self.faults)
        for _ in self._good_rows(source, like, note=True):
            pass
        alike = (source.user_type, source.item_type) == (like.user_type, like.item_type)
        if alike and len(self.faults) == faults_before:
            return file
        self._folder.mkdir(parents=True, exist_ok=True)
        copy = self._folder / f"{len(list(self._folder.iterdir())):06}.parquet"
        columns = _columns(like)
        schema = pl.DataFrame(schema=columns).to_arrow().schema
        with pq.ParquetWriter(copy, schema, compression="zstd") as writer:
            for rows in self._good_rows(source, like, note=False):
                writer.write_table(rows.to_arrow().cast(schema))
        return copy

    def _good_rows(self, source: Source, like: Source, *, note: bool) -> Iterator[pl.DataFrame]:
        """The rows of each row group that can be used, in the types of `like`; the first time, the others are noted."""
        (file,) = source.files
        row = 0
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                try:
                    table = parquet.read_row_group(group, columns=list(_columns(like)))
                except (pa.ArrowException, OSError) as error:
                    if note:
                        self._add(Fault(str(file), group, None, f"cannot be read ({str(error).strip()})", None))
                else:
                    read = pl.DataFrame(table)
                    reasons = _reasons(read, like)
                    if note:
                        self._note(file, group, row, read, reasons)
                    yield read.filter(reasons.is_null()).cast(_columns(like))
                row += parquet.metadata.row_group(group).num_rows

    def _note(self, file: Path, group: int, first_row: int, read: pl.DataFrame, reasons: pl.Series) -> None:
        for at in reasons.is_not_null().arg_true():
            content = json.dumps(read.row(at, named=True), default=str)
            self._add(Fault(str(file), group, first_row + at, reasons[at], content))


def _columns(like: Source) -> pl.Schema:
    """Columns that the job reads, with the types that they are read as."""
    columns = {"user_id": like.user_type}
    if like.item_type is not None:
        histories = like.form == "histories"
        columns[ITEM_COLUMN[like.form]] = pl.List(like.item_type) if histories else like.item_type
    return pl.Schema(columns)


def _reasons(rows: pl.DataFrame, like: Source) -> pl.Series:
    """Why a row cannot be used; null where it can."""
    reason = pl.lit(None, dtype=pl.String)
    for name, dtype in reversed(_columns(like).items()):
        column = pl.col(name)
        cast = column.cast(dtype, strict=False)
        if isinstance(dtype, pl.List):
            before, after = column.list.eval(pl.element().is_null()), cast.list.eval(pl.element().is_null())
            faults = [
                (after.list.any(), f"history holds an item that is no {dtype.inner}"),
                (before.list.any(), "history holds a null"),
            ]
        else:
            faults = [(cast.is_null(), f"{name} is no {dtype}"), (column.is_null(), f"{name} is null")]
        for fault, text in faults:
            reason = pl.when(fault).then(pl.lit(text)).otherwise(reason)
    return rows.select(reason.alias("reason")).to_series()
