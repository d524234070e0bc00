"""RecBole's atomic files: tab-separated text whose header gives each field a name and a type.

    user_id:token   item_id:token   rating:float   timestamp:float

NAME.inter holds interactions; or NAME.train.inter, NAME.valid.inter and NAME.test.inter hold them split (RecBole's
`benchmark_filename`); NAME.item describes items. A token is a string, also where it looks like a number: what is
declared decides, so that a new id cannot change the type of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.errors import InputError
from pipeline.text_rows import TextRows, split_lines

_TYPES: dict[str, pl.DataType] = {
    "token": pl.String(),
    "token_seq": pl.String(),
    "float": pl.Float64(),
    "float_seq": pl.String(),
}


@dataclass(frozen=True)
class AtomicFile:
    """One atomic file, its number of fields checked in every line."""

    rows: TextRows
    types: dict[str, pl.DataType]
    """Of its fields; sequences stay text, elements apart by spaces."""


def interaction_files(source: Path) -> dict[str, Path]:
    """The `.inter` files of a data set: under "" when there is one, else by split: train, valid, test.

    Args:
        source: the file, or the folder of the data set.

    Raises:
        InputError: there is none, or it is not clear which to take.
    """
    if source.is_file():
        return {"": source}
    files = sorted(source.glob("*.inter"))
    if not files:
        raise InputError(f"{source} holds no .inter file. Name a RecBole data set: its folder, or its .inter file.")
    splits = {file.stem.partition(".")[2]: file for file in files}
    names = {file.stem.partition(".")[0] for file in files}
    whole = splits.keys() == {""}
    if len(names) > 1 or len(splits) < len(files) or not (whole or ("train" in splits and "" not in splits)):
        found = ", ".join(file.name for file in files)
        raise InputError(
            f"{source} holds {found}: expected NAME.inter, or NAME.train.inter beside other splits of it. "
            "Name the file to read, or move the others away."
        )
    return splits


def open_atomic(file: Path, separator: str = "\t") -> AtomicFile:
    """Read a file's header and check its lines.

    Raises:
        InputError: the header is not NAME:TYPE everywhere, or a line has another number of fields.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        header = lines.readline().removeprefix("\ufeff").rstrip("\r\n")
    declared = [field.partition(":") for field in header.split(separator)]
    if wrong := ["".join(field) for field in declared if field[2] not in _TYPES]:
        raise InputError(
            f"{file}, line 1: {', '.join(map(repr, wrong))} in the header, expected NAME:TYPE with a type of "
            f"{', '.join(_TYPES)}, between {separator!r}. Correct the header."
        )
    types = {name: _TYPES[kind] for name, _, kind in declared}
    return AtomicFile(split_lines(file, separator, list(types), header=True), types)
