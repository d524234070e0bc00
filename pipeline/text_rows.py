"""Text rows: the lines of a text file as typed columns. What does not fit is refused by file, line and value.

A file is read several times, streaming: for its faults first, then for its rows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.errors import InputError

_EXPECTED: dict[pl.DataType, str] = {
    pl.Int64(): "a whole number",
    pl.Float64(): "a number",
    pl.String(): "an id",
}


LINE = "(line)"
"""Name of the column of line numbers; no field is called so."""


@dataclass(frozen=True)
class TextRows:
    """A file's rows, every field still as it is written."""

    file: Path
    frame: pl.LazyFrame
    """`LINE`, int from 1, and a String column per field; an empty field is null or ''."""


def split_lines(
    file: Path, separator: str, columns: Sequence[str], *, header: bool = False, text: bytes | None = None
) -> TextRows:
    """Lines whose fields stand between separators, without quotes; empty lines are skipped.

    Args:
        file: UTF-8 text.
        separator: one character or more.
        columns: names of the fields; a line with more or fewer is refused.
        header: the first line is not a row.
        text: the content, where it is in memory already.

    Raises:
        InputError: a line has another number of fields, or the file is not UTF-8.
    """
    lines = pl.scan_lines(
        file if text is None else text, name="text", row_index_name=LINE, row_index_offset=1, glob=False
    )
    lines = lines.filter((pl.col("text") != "") & (pl.col(LINE) > int(header)))
    fields = pl.col("text").str.splitn(separator, len(columns) + 1).struct.rename_fields([*columns, "beyond"])
    split = lines.select(LINE, fields.struct.unnest())
    wrong = pl.col(columns[-1]).is_null() | pl.col("beyond").is_not_null()
    if (line := _first(file, split.filter(wrong))) is not None:
        found = sum(value is not None for name, value in line.items() if name != LINE)
        count = f"more than {len(columns)}" if line["beyond"] is not None else str(found)
        raise InputError(
            f"{file}, line {line[LINE]}: {count} fields between {separator!r}, expected {len(columns)} "
            f"({', '.join(columns)}). Correct the line, or remove it."
        )
    return TextRows(file, split.drop("beyond"))


def read_csv(file: Path, separator: str = ",") -> TextRows:
    """A CSV file with a header; fields may be quoted, empty lines are skipped.

    Raises:
        InputError: the file has no header, is not UTF-8, or a row has more fields than the header.
    """
    try:
        rows = pl.scan_csv(
            file, separator=separator, infer_schema=False, row_index_name=LINE, row_index_offset=2, glob=False
        )
        columns = [name for name in rows.collect_schema() if name != LINE]
        rows.select(pl.all().null_count()).collect(engine="streaming")  # parses every field
    except pl.exceptions.NoDataError:
        raise InputError(f"{file} is empty. Its first line names the columns.") from None
    except pl.exceptions.ComputeError as error:
        raise _csv_fault(file, separator, error) from None
    return TextRows(file, rows.filter(~pl.all_horizontal(pl.col(columns).is_null())))


def _csv_fault(file: Path, separator: str, error: Exception) -> InputError:
    """Where a CSV file that polars cannot read goes wrong."""
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        records = csv.reader(lines, delimiter=separator)
        n_columns = len(next(records))
        for record in records:
            if len(record) > n_columns:
                return InputError(
                    f"{file}, line {records.line_num}: {len(record)} fields, the header has {n_columns}. "
                    "Correct the line, or put values with commas in quotes."
                )
    reason = str(error).split("\n")[0]
    return InputError(f"{file} cannot be read as CSV ({reason}). Write it again as UTF-8 with quotes where needed.")


def typed(
    rows: TextRows, types: dict[str, pl.DataType], sources: dict[str, str] | None = None, *, may_lack: bool = False
) -> pl.LazyFrame:
    """Columns of a file in these types.

    Args:
        rows: the file.
        types: of each column wanted: Int64, Float64 or String.
        sources: what columns are called in the file, where it is another name.
        may_lack: an empty field is null, except in the first column.

    Raises:
        InputError: a field does not read as its type, or is empty.
    """
    called = {name: (sources or {}).get(name, name) for name in types}
    fields = rows.frame.select(LINE, *(pl.col(source).alias(name) for name, source in called.items()))
    values = {name: _value(name, dtype) for name, dtype in types.items()}
    faults = {
        name: value.is_null() if at == 0 or not may_lack else value.is_null() & ~_lacks(name)
        for at, (name, value) in enumerate(values.items())
    }
    line = _first(rows.file, fields.filter(pl.any_horizontal(*faults.values())))
    if line is not None:
        bad = pl.DataFrame([line], schema_overrides=dict.fromkeys(types, pl.String)).select(**faults).row(0, named=True)
        name = next(name for name, is_bad in bad.items() if is_bad)
        found = "missing" if line[name] in (None, "") else repr(line[name])
        raise InputError(
            f"{rows.file}, line {line[LINE]}: {called[name]} is {found}, expected {_EXPECTED[types[name]]}. "
            "Correct the line, or remove it."
        )
    return fields.select(**values)


def _lacks(name: str) -> pl.Expr:
    return pl.col(name).is_null() | (pl.col(name) == "")


def _value(name: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.when(~_lacks(name)).then(pl.col(name)).cast(dtype, strict=False)
    return pl.when(value.is_finite()).then(value) if dtype.is_float() else value


def _first(file: Path, rows: pl.LazyFrame) -> dict[str, object] | None:
    try:
        found = rows.head(1).collect(engine="streaming")
    except pl.exceptions.ComputeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error}). Convert it.") from None
    return found.row(0, named=True) if len(found) else None
