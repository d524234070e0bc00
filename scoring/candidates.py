"""Candidates: which items may be recommended at all, and how many of a kind in one list.

What one user must not get, his own history and the pairs of `--exclude`, comes with the input (see scoring/input.py).

Shape letters: I items of the catalogue, B users, M ranked items of a user, k places, G values of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary
from scoring.item_list import ItemList, read_item_list


class Cap(NamedTuple):
    """At most `limit` items of each group in one list."""

    group_I: NDArray[np.int64]
    """0 .. G - 1; an item without a value is a group of its own, so nulls are not capped."""
    limit: int

    def most(self, allowed_I: NDArray[np.bool_]) -> int:
        """The longest list that the cap permits."""
        return int(np.minimum(np.bincount(self.group_I[allowed_I]), self.limit).sum())


@dataclass(frozen=True, eq=False)
class Candidates:
    """What `--allow`, `--deny`, `--where` and `--cap` leave."""

    allowed_I: NDArray[np.bool_]
    caps: tuple[Cap, ...] = ()
    lists: Mapping[str, ItemList] = field(default_factory=dict)
    """`allow` and `deny`, where given."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self.allowed_I))

    def most(self, k: int) -> int:
        """How many items a list of k places can hold at most."""
        return min(k, len(self), *(cap.most(self.allowed_I) for cap in self.caps))

    def choose(self, items_BM: NDArray[np.integer], k: int) -> NDArray[np.int64]:
        """The columns of the first k items of each row that the caps permit, int64 [B, k]; -1 in missing places.

        The first item is always taken, and each further one when no cap is full: of all lists that satisfy the caps,
        the one with the best item first, then the best second, and so on. Under one cap that is also the list with the
        largest sum of scores.

        Args:
            items_BM: item numbers, best first; -1 is no item.
            k: places.
        """
        keep_BM = self._within_caps(items_BM, k) if self.caps else items_BM >= 0
        place_BM = np.cumsum(keep_BM, axis=1)
        row_N, column_N = np.nonzero(keep_BM & (place_BM <= k))
        at_Bk = np.full((len(items_BM), k), -1, dtype=np.int64)
        at_Bk[row_N, place_BM[row_N, column_N] - 1] = column_N
        return at_Bk

    def _within_caps(self, items_BM: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
        """Whether an item is taken, until every row has k."""
        keep_BM = np.zeros(items_BM.shape, dtype=np.bool_)
        row_B, taken_B = np.arange(len(items_BM)), np.zeros(len(items_BM), dtype=np.int64)
        counts = [np.zeros((len(items_BM), cap.group_I.max() + 1), dtype=np.int32) for cap in self.caps]
        for place, item_B in enumerate(items_BM.T):
            groups = [cap.group_I[item_B] for cap in self.caps]
            keep_B = item_B >= 0
            for cap, group_B, count_BG in zip(self.caps, groups, counts, strict=True):
                keep_B &= count_BG[row_B, group_B] < cap.limit
            for group_B, count_BG in zip(groups, counts, strict=True):
                count_BG[row_B, group_B] += keep_B
            keep_BM[:, place] = keep_B
            taken_B += keep_B
            if (taken_B >= k).all():
                break
        return keep_BM


def open_candidates(
    vocabulary: Vocabulary,
    *,
    allow: Path | None = None,
    deny: Path | None = None,
    where: str | None = None,
    caps: Mapping[str, int] | None = None,
) -> Candidates:
    """Apply what the caller says about the catalogue.

    Args:
        vocabulary: the catalogue; `where` and `caps` speak of the columns of its `items`.
        allow: file of item ids, the only ones that may be recommended (see `read_item_list`).
        deny: file of item ids that may not.
        where: SQL expression, true for the items that may; null is not true.
        caps: by column, how many items of one value a list may hold.

    Raises:
        InputError: a file cannot be read or names no item of the catalogue, an expression or column is unknown or of
            a wrong type, or no item is left.
    """
    allowed_I, lists = np.ones(len(vocabulary), dtype=np.bool_), {}
    for option, file in (("allow", allow), ("deny", deny)):
        if file is not None:
            listed_I, lists[option] = read_item_list(vocabulary, file, f"--{option}")
            allowed_I &= listed_I if option == "allow" else ~listed_I
    if where is not None:
        allowed_I &= _where(vocabulary.items, where)
    if not allowed_I.any():
        given = (("--allow", allow), ("--deny", deny), ("--where", where))
        options = ", ".join(f"{option} {value}" for option, value in given if value is not None)
        raise InputError(f"No item may be recommended: {options} leave none of {len(vocabulary):,}. Widen them.")
    return Candidates(allowed_I, tuple(_cap(vocabulary.items, *cap) for cap in (caps or {}).items()), lists)


def _where(items: pl.DataFrame, where: str) -> NDArray[np.bool_]:
    """Whether the expression is true, for each item."""
    columns = f"Columns: {', '.join(f'{name} {dtype}' for name, dtype in items.schema.items())}."
    try:
        expression = pl.sql_expr(where)
        if unknown := sorted({name for name in expression.meta.root_names() if name not in items.columns}):
            raise InputError(f"--where {where!r}: items have no column {', '.join(unknown)}. {columns}")
        found = items.select(expression).to_series()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"--where {where!r} cannot be evaluated: {str(error).splitlines()[0]}. {columns}") from None
    if found.dtype != pl.Boolean:
        raise InputError(f"--where {where!r} gives {found.dtype}, expected a condition. {columns}")
    if len(found) != len(items):
        raise InputError(f"--where {where!r} gives one value for all items, expected one for each. {columns}")
    return found.fill_null(value=False).to_numpy()


def _cap(items: pl.DataFrame, column: str, limit: int) -> Cap:
    if column not in items.columns:
        raise InputError(f"--cap {column}={limit}: items have no column {column}, only {', '.join(items.columns)}.")
    values = items[column]
    if values.dtype.is_nested() or values.dtype.is_float():
        raise InputError(
            f"--cap {column}={limit}: column {column} is {values.dtype}, expected one value per item, such as a name "
            "or an integer. Train with a column of such values."
        )
    rank_I = values.cast(pl.String if values.dtype == pl.Null else values.dtype).rank("dense").cast(pl.Int64)
    alone_I = pl.int_range(len(items), 2 * len(items), eager=True)
    return Cap(np.unique(rank_I.zip_with(rank_I.is_not_null(), alone_I).to_numpy(), return_inverse=True)[1], limit)
