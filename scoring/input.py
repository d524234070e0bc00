"""Input: who is scored, and what they have.

Shape letters: U users of a part, N items of their histories.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.buckets import read_bucket, shuffle
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.interactions import Source, open_source
from pipeline.vocabulary import Vocabulary


class Sources(NamedTuple):
    """What passed inspection."""

    users: Source
    history: Source | None
    """Given exactly where `users` is bare."""

    @property
    def n_rows(self) -> int:
        """Of both."""
        return sum(source.n_rows for source in self if source is not None)


class Part(NamedTuple):
    """The users of one part, ascending by id, and what they have."""

    user_ids_U: pl.Series
    history_length_U: NDArray[np.int32]
    """Distinct items, known to the model or not."""
    known: Histories
    """The items that the model knows."""
    interactions: int
    """Read, repeated ones included."""
    not_asked_for: int
    """Users of the history that the input does not name."""


def open_sources(users: str, history: str | None, vocabulary: Vocabulary) -> Sources:
    """Inspect the input before any work.

    Args:
        users: location of interactions, histories or bare users (see `open_source`).
        history: location of the interactions or histories of bare users, and only of those: beside an input that holds
            histories already, a second source is refused rather than guessed about.
        vocabulary: must be able to look up the items.

    Raises:
        InputError: a source cannot be read, `history` is missing or not needed, types of ids differ.
    """
    asked = open_source(users)
    if asked.form != "users":
        if history is not None:
            raise InputError(
                f"{users} already holds {asked.form}, so --history {history} would contradict it. "
                "Leave --history out, or give an --input with no column but user_id."
            )
        _check_item_type(asked, vocabulary)
        return Sources(asked, None)
    if history is None:
        raise InputError(
            f"{users} holds bare users: beside user_id it has neither item_id nor history. "
            "Name the interactions of these users with --history."
        )
    had = open_source(history)
    if had.form == "users":
        raise InputError(
            f"--history {history} holds bare users: beside user_id it has neither item_id nor history. "
            "Name the interactions of the users."
        )
    if had.user_type != asked.user_type:
        raise InputError(
            f"User ids are {asked.user_type} in {users}, but {had.user_type} in --history {history}. "
            "Write both with one type."
        )
    _check_item_type(had, vocabulary)
    return Sources(asked, had)


def shuffle_sources(sources: Sources, folder: Path, n_parts: int) -> None:
    """Copy the ids into `folder`, by part; errors as in `shuffle`."""
    shuffle(sources.users, folder / "users", n_parts)
    if sources.history is not None:
        shuffle(sources.history, folder / "history", n_parts)


def read_part(folder: Path, number: int, vocabulary: Vocabulary) -> Part:
    """Group one part of what `shuffle_sources` wrote into `folder`, and number its items."""
    people, interactions = read_bucket(folder / "users", number)
    not_asked_for = 0
    if (folder / "history").exists():
        had, interactions = read_bucket(folder / "history", number)
        people = people.select("user_id").join(had, on="user_id", how="left", maintain_order="left")
        not_asked_for = len(had) - people["history"].count()
    length_U = people["history"].list.len().fill_null(0).to_numpy().astype(np.int32)
    numbers_N = vocabulary.numbers(people["history"].explode(empty_as_null=False, keep_nulls=False))
    known = _known_histories(numbers_N, length_U, len(vocabulary))
    return Part(people["user_id"], length_U, known, interactions, not_asked_for)


def _check_item_type(source: Source, vocabulary: Vocabulary) -> None:
    """The vocabulary refuses ids that it cannot look up; say where they are."""
    try:
        vocabulary.numbers(pl.Series([], dtype=source.item_type))
    except InputError as error:
        raise InputError(f"{source.location}: {error}") from None


def _known_histories(numbers_N: pl.Series, length_U: NDArray[np.int32], n_items: int) -> Histories:
    """Item numbers, null where unknown, as one ascending set per user."""
    known_N = numbers_N.is_not_null().to_numpy()
    user_N = np.repeat(np.arange(len(length_U)), length_U)[known_N]
    # Ids ascend, but nothing says that numbers do.
    key_N = np.sort(user_N * n_items + numbers_N.drop_nulls().to_numpy())
    offsets = np.concatenate(([0], np.cumsum(np.bincount(user_N, minlength=len(length_U)))))
    return Histories((key_N % n_items).astype(np.int32), offsets)
