"""Vocabulary: item id <-> item number.

An *id* is what the caller's data says, an integer or a string; a *number* is the item's row in the model, from 0. The
vocabulary travels with the weights, as `items.parquet`: the same content is always the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import InputError

_OWN_COLUMNS = ("item_number", "item_id", "n_interactions")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The catalogue."""

    items: pl.DataFrame
    """Row i is item number i: `item_number` int32, `item_id`, `n_interactions` int64 (of training), and any columns for
    people to read, such as `title`."""

    @classmethod
    def of(cls, item_ids: pl.Series, n_interactions: NDArray[np.int64]) -> Vocabulary:
        """Number these items, distinct and not null, in the order given (int64 [n_items] training interactions)."""
        numbers = pl.int_range(len(item_ids), dtype=pl.Int32, eager=True)
        return cls(pl.DataFrame(dict(zip(_OWN_COLUMNS, (numbers, item_ids, n_interactions), strict=True))))

    @classmethod
    def read(cls, file: Path) -> Vocabulary:
        """Read what `write` wrote.

        Raises:
            InputError: it is not Parquet, or not a vocabulary: a column is absent or of a wrong type, numbers are not
                0 to n_items - 1 in order, ids are null or repeated.
        """
        items = _read_parquet(file)
        _refuse_broken(file, items)
        return cls(items)

    def write(self, file: Path) -> None:
        """Write `items.parquet`."""
        self.items.rechunk().write_parquet(file)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def item_type(self) -> pl.DataType:
        """The type of ids: an integer type or String."""
        return self.items.schema["item_id"]

    def numbers(self, ids: pl.Series) -> pl.Series:
        """Item numbers (Int32) of these ids, null where an id is null or unknown.

        Raises:
            InputError: strings, where ids are integers, or the reverse (any integer type will do).
        """
        if not _agree(ids.dtype, self.item_type):
            raise InputError(f"Item ids are {ids.dtype}, but the model was trained with {self.item_type}. Cast them.")
        asked = pl.DataFrame({"item_id": ids.cast(self.item_type, strict=False)})
        known = self.items.select("item_id", "item_number")
        return asked.join(known, on="item_id", how="left", maintain_order="left")["item_number"]

    def ids(self, numbers: NDArray[np.integer]) -> pl.Series:
        """Item ids of these numbers, each of 0 to n_items - 1."""
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"item numbers {numbers.min()} to {numbers.max()} of a catalogue of {len(self)}")
        return self.items["item_id"].gather(numbers)

    def popular(self) -> NDArray[np.int64]:
        """All item numbers, the most interactions first; equal counts go to the smaller number."""
        return np.argsort(-self.items["n_interactions"].to_numpy(), kind="stable")

    def with_items(self, file: Path) -> Vocabulary:
        """Add the other columns of a Parquet file with one row per `item_id`; items it does not list get nulls.

        Raises:
            InputError: it is not Parquet, `item_id` is absent, of another type than here, null or repeated.
        """
        known = _read_parquet(file)
        _refuse_columns_absent(file, known, ("item_id",))
        if not _agree(known.schema["item_id"], self.item_type):
            found = known.schema["item_id"]
            raise InputError(f"{file}: column item_id is {found}, but the interactions have {self.item_type}. Cast it.")
        _refuse_indistinct(file, known["item_id"])
        extra = [column for column in known.columns if column not in self.items.columns]
        known = known.select(pl.col("item_id").cast(self.item_type, strict=False), *extra).drop_nulls("item_id")
        return Vocabulary(self.items.join(known, on="item_id", how="left", maintain_order="left"))


def _agree(found: pl.DataType, expected: pl.DataType) -> bool:
    """Whether ids of one type can be looked up among ids of the other; Null is the type of no ids at all."""
    strings = pl.String | pl.Categorical | pl.Enum
    return (
        isinstance(found, pl.Null)
        or (found.is_integer() and expected.is_integer())
        or (isinstance(found, strings) and isinstance(expected, pl.String))
    )


def _read_parquet(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file, glob=False, hive_partitioning=False)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist. Name a Parquet file with one row per item.") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}). Write it again.") from None


def _refuse_columns_absent(file: Path, items: pl.DataFrame, columns: tuple[str, ...]) -> None:
    if absent := [column for column in columns if column not in items.columns]:
        raise InputError(f"{file} has no column {', '.join(absent)}, only {', '.join(items.columns)}. Add it.")


def _refuse_indistinct(file: Path, ids: pl.Series) -> None:
    if ids.null_count():
        raise InputError(f"{file}: column item_id is null (count: {ids.null_count():,}). Remove those rows.")
    if repeated := len(ids) - ids.n_unique():
        example = ids.filter(ids.is_duplicated()).min()
        raise InputError(f"{file} repeats item_id in {repeated:,} rows, {example!r} for one. Keep one row per item.")


def _refuse_broken(file: Path, items: pl.DataFrame) -> None:
    _refuse_columns_absent(file, items, _OWN_COLUMNS)
    number, item, interactions = (items.schema[column] for column in _OWN_COLUMNS)
    typed = number == pl.Int32 and interactions == pl.Int64 and (item.is_integer() or item == pl.String)
    if not typed:
        raise InputError(
            f"{file}: columns item_number, item_id, n_interactions are {number}, {item}, {interactions},"
            " expected Int32, integers or String, Int64. Export the bundle again."
        )
    if not (items["item_number"] == pl.int_range(len(items), dtype=pl.Int32, eager=True)).fill_null(False).all():
        raise InputError(f"{file}: column item_number is not 0 to {len(items) - 1} in order. Export the bundle again.")
    if items["n_interactions"].null_count():
        raise InputError(f"{file}: column n_interactions has nulls. Export the bundle again.")
    _refuse_indistinct(file, items["item_id"])
