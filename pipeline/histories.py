"""Histories: one set of item numbers per user, in compressed sparse rows.

Shape letters: U users, B users of a batch, N items of all histories together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BATCH_USERS = 512
"""Users of a batch, at most."""
BATCH_SCORES = 2**25
"""Users times catalogue of a batch of several users, at most: bounds a scorer's table of scores (128 MiB)."""
PADDED_ITEMS = 2**17
"""Users times longest history of a batch of several users, at most: bounds what a scorer pads."""


@dataclass(frozen=True, eq=False)
class Histories:
    """`items_N[offsets[u]:offsets[u + 1]]` is the history of user u: item numbers, ascending, each once.

    `items_N` is int32 (a catalogue has fewer than 2**31 items) and may be a memory-mapped file; `offsets` is int64
    [U + 1], starts at 0 and never falls.
    """

    items_N: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> NDArray[np.int32]:
        return self.items_N[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of items of each history, int64 [U]."""
        return np.diff(self.offsets)

    def take(self, users: NDArray[np.int64]) -> Histories:
        """The histories of these users (row numbers, in any order), copied."""
        lengths = self.lengths[users]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        at_N = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][users] - offsets[:-1], lengths)
        return Histories(self.items_N[at_N], offsets)

    def union(self, other: Histories, n_items: int) -> Histories:
        """Of each user the items of both, of a catalogue of `n_items`; both have the same users."""
        if not len(other.items_N):
            return self
        row_N = np.concatenate([np.repeat(np.arange(len(each)), each.lengths) for each in (self, other)])
        key_N = np.unique(row_N * n_items + np.concatenate([self.items_N, other.items_N]))
        offsets = np.concatenate(([0], np.cumsum(np.bincount(key_N // n_items, minlength=len(self)))))
        return Histories((key_N % n_items).astype(np.int32), offsets)

    def count(self, of_I: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of each user's items are among these, int64 [U]."""
        before_N = np.concatenate(([0], np.cumsum(of_I[self.items_N])))
        return np.diff(before_N[self.offsets])

    @classmethod
    def of(cls, histories: Sequence[Sequence[int]]) -> Histories:
        """From plain lists of item numbers."""
        offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
        items = [item for history in histories for item in history]
        return cls(np.asarray(items, dtype=np.int32), offsets)

    @classmethod
    def from_arrow(cls, lists: pa.ChunkedArray) -> Histories:
        """From a list column of item numbers without nulls; the values are not copied when the column has one chunk."""
        column = lists.combine_chunks()
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(
            column.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int32, copy=False), offsets - offsets[0]
        )


def batches(lengths_U: NDArray[np.int64], n_items: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of every user once, shortest histories first, in batches that a scorer has the memory for.

    A batch keeps to `BATCH_USERS`, `BATCH_SCORES` and `PADDED_ITEMS`; one user alone is always a batch.

    Args:
        lengths_U: int64 [U] lengths of the histories.
        n_items: size of the catalogue.
    """
    order_U = np.argsort(lengths_U, kind="stable")
    batch_users = min(BATCH_USERS, max(1, BATCH_SCORES // n_items))
    start = 0
    while start < len(order_U):
        users_B = order_U[start : start + batch_users]
        padded_B = np.arange(1, len(users_B) + 1) * lengths_U[users_B]  # what the batch would take if it ended here
        users_B = users_B[: max(1, np.count_nonzero(padded_B <= PADDED_ITEMS))]
        start += len(users_B)
        yield users_B
