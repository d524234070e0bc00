"""Item list: a file of item ids that somebody wrote by hand, or another job did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline.errors import InputError
from pipeline.manifest import FileDigest, digest
from pipeline.vocabulary import Vocabulary


class ItemList(BaseModel, extra="forbid", frozen=True, strict=True):
    """A file of item ids that was read."""

    location: str
    """As the caller typed it."""
    file: FileDigest
    ids: int
    """Distinct ones."""
    unknown: int
    """Those that are no item of the bundle."""


def read_item_list(vocabulary: Vocabulary, file: Path, option: str) -> tuple[NDArray[np.bool_], ItemList]:
    """Which items of the catalogue a file names, bool [n_items], and what else it holds.

    Args:
        vocabulary: the catalogue.
        file: .parquet or .csv with a column `item_id`, or .txt with one id per line, blank lines ignored. Text that is
            no integer is an unknown id where training had integers.
        option: what the caller gave the file for, for messages.

    Raises:
        InputError: the file cannot be read, holds nulls or ids of another type, or names no item of the catalogue: an
            empty list is a mistake more often than a wish, so a caller without a wish leaves the option out.
    """
    ids = _read_ids(file, option).unique(maintain_order=True)
    if file.suffix != ".parquet":
        ids = ids.cast(vocabulary.item_type, strict=False)
    try:
        numbers = vocabulary.numbers(ids)
    except InputError as error:
        raise InputError(f"{option} {file}: {error}") from None
    known = numbers.drop_nulls()
    if known.is_empty():
        raise names_no_item(f"{option} {file}", len(ids), vocabulary)
    listed_I = np.zeros(len(vocabulary), dtype=np.bool_)
    listed_I[known.to_numpy()] = True
    return listed_I, ItemList(location=str(file), file=digest(file), ids=len(ids), unknown=len(ids) - len(known))


def names_no_item(what: str, n_ids: int, vocabulary: Vocabulary) -> InputError:
    """For what lists ids of which the catalogue has none."""
    return InputError(
        f"{what} names no item of the bundle (ids: {n_ids:,}). "
        f"Write its ids as training had them, {vocabulary.items['item_id'][0]!r} for one."
    )


def _read_ids(file: Path, option: str) -> pl.Series:
    """Item ids of a Parquet or CSV file with a column item_id, or of a text file with one id per line."""
    if not file.is_file():
        raise InputError(f"{option} {file} is not a file. Name a .parquet, .csv or .txt file of item ids.")
    try:
        match file.suffix:
            case ".parquet":
                table = pl.read_parquet(file, glob=False, hive_partitioning=False)
            case ".csv":
                table = pl.read_csv(file, infer_schema=False, glob=False)
            case ".txt":
                lines = pl.Series("item_id", file.read_text(encoding="utf-8-sig").splitlines(), dtype=pl.String)
                table = lines.str.strip_chars().to_frame().filter(pl.col("item_id") != "")
            case _:
                raise InputError(f"{option} {file} is neither .parquet, .csv nor .txt. Rename it to say what it is.")
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{option} {file} cannot be read ({str(error).splitlines()[0]}). Write it again.") from None
    if "item_id" not in table.columns:
        raise InputError(f"{option} {file} has no column item_id, only {', '.join(table.columns)}. Rename it.")
    if nulls := table["item_id"].null_count():
        raise InputError(f"{option} {file}: column item_id is null (count: {nulls:,}). Remove those rows.")
    return table["item_id"]
