"""Input: who is scored, what they have, and what they must not get.

Shape letters: U users of a part, N items of their histories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.buckets import distinct_items, read_bucket, shuffle
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.interactions import Source, open_source
from pipeline.vocabulary import Vocabulary
from scoring.item_list import names_no_item


class Sources(NamedTuple):
    """What passed inspection."""

    users: Source
    history: Source | None
    """Given exactly where `users` is bare."""
    exclude: Source | None = None
    """What each user must not get, beside his own history."""

    @property
    def n_rows(self) -> int:
        """Of all."""
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
    excluded: Histories
    """The items that `--exclude` keeps from each user, of those that the model knows."""
    exclusions_without_effect: int
    """Pairs of `--exclude` about users that the input does not name, or items that the model does not know."""

    def digest(self) -> str:
        """SHA-256 of the users, what they have and what they must not get."""
        ids = pa.record_batch({"user_id": self.user_ids_U.to_arrow(compat_level=pl.CompatLevel.oldest())})
        sha = hashlib.sha256(ids.serialize())
        for array in (self.history_length_U, *(a for h in (self.known, self.excluded) for a in (h.items_N, h.offsets))):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def open_sources(
    users: str,
    history: str | None,
    vocabulary: Vocabulary,
    exclude: str | None = None,
    *,
    inspect: Callable[[str], Source] = open_source,
) -> Sources:
    """Inspect the input before any work.

    Args:
        users: location of interactions, histories or bare users (see `open_source`).
        history: location of the interactions or histories of bare users, and only of those: beside an input that holds
            histories already, a second source is refused rather than guessed about.
        vocabulary: must be able to look up the items.
        exclude: location of interactions or histories: items that a user must not get.
        inspect: opens a location.

    Raises:
        InputError: a source cannot be read, `history` is missing or not needed, types of ids differ.
    """
    asked = inspect(users)
    excluded = None if exclude is None else _check_pairs("--exclude", inspect(exclude), asked, vocabulary)
    if asked.form != "users":
        if history is not None:
            raise InputError(
                f"{users} already holds {asked.form}, so --history {history} would contradict it. "
                "Leave --history out, or give an --input with no column but user_id."
            )
        _check_item_type(asked, vocabulary)
        return Sources(asked, None, excluded)
    if history is None:
        raise InputError(
            f"{users} holds bare users: beside user_id it has neither item_id nor history. "
            "Name the interactions of these users with --history."
        )
    return Sources(asked, _check_pairs("--history", inspect(history), asked, vocabulary), excluded)


def shuffle_sources(sources: Sources, folder: Path, n_parts: int) -> None:
    """Copy the ids into `folder`, by part; errors as in `shuffle`."""
    shuffle(sources.users, folder / "users", n_parts)
    if sources.history is not None:
        shuffle(sources.history, folder / "history", n_parts)
    if sources.exclude is not None:
        shuffle(sources.exclude, folder / "exclude", n_parts)


def check_exclusions(sources: Sources, folder: Path, vocabulary: Vocabulary) -> None:
    """Refuse an `--exclude` of which no item is known; the ids are those that `shuffle_sources` wrote into `folder`.

    Raises:
        InputError: no item id is one of the catalogue.
    """
    if sources.exclude is not None and not vocabulary.numbers(ids := distinct_items(folder / "exclude")).count():
        raise names_no_item(f"--exclude {sources.exclude.location}", len(ids), vocabulary)


def read_part(folder: Path, number: int, vocabulary: Vocabulary) -> Part:
    """Group one part of what `shuffle_sources` wrote into `folder`, and number its items."""
    people, interactions = read_bucket(folder / "users", number)
    user_ids, lists, not_asked_for = people["user_id"], people["history"], 0
    if (folder / "history").exists():
        had, interactions = read_bucket(folder / "history", number)
        lists = _of_users(had, user_ids)
        not_asked_for = len(had) - lists.count()
    length_U = lists.list.len().fill_null(0).to_numpy().astype(np.int32)
    excluded, without_effect = Histories.of([()] * len(user_ids)), 0
    if (folder / "exclude").exists():
        pairs, _ = read_bucket(folder / "exclude", number)
        excluded = _known_histories(_of_users(pairs, user_ids), vocabulary)
        without_effect = int(pairs["history"].list.len().sum()) - len(excluded.items_N)
    known = _known_histories(lists, vocabulary)
    return Part(user_ids, length_U, known, interactions, not_asked_for, excluded, without_effect)


def _check_pairs(option: str, source: Source, asked: Source, vocabulary: Vocabulary) -> Source:
    """Refuse what an option cannot say about the users of the input."""
    if source.form == "users":
        raise InputError(
            f"{option} {source.location} holds bare users: beside user_id it has neither item_id nor history. "
            "Name the interactions of the users."
        )
    if source.user_type != asked.user_type:
        raise InputError(
            f"User ids are {asked.user_type} in {asked.location}, "
            f"but {source.user_type} in {option} {source.location}. Write both with one type."
        )
    _check_item_type(source, vocabulary)
    return source


def _of_users(histories: pl.DataFrame, user_ids: pl.Series) -> pl.Series:
    """The lists of these users in their order, null where there is none."""
    return user_ids.to_frame().join(histories, on="user_id", how="left", maintain_order="left")["history"]


def _check_item_type(source: Source, vocabulary: Vocabulary) -> None:
    """The vocabulary refuses ids that it cannot look up; say where they are."""
    try:
        vocabulary.numbers(pl.Series([], dtype=source.item_type))
    except InputError as error:
        raise InputError(f"{source.location}: {error}") from None


def _known_histories(lists_U: pl.Series, vocabulary: Vocabulary) -> Histories:
    """Lists of item ids as one ascending set of item numbers per user; unknown ids are dropped."""
    length_U, n_items = lists_U.list.len().fill_null(0).to_numpy(), len(vocabulary)
    numbers_N = vocabulary.numbers(lists_U.explode(empty_as_null=False, keep_nulls=False))
    known_N = numbers_N.is_not_null().to_numpy()
    user_N = np.repeat(np.arange(len(length_U)), length_U)[known_N]
    # Ids ascend, but nothing says that numbers do.
    key_N = np.sort(user_N * n_items + numbers_N.drop_nulls().to_numpy())
    offsets = np.concatenate(([0], np.cumsum(np.bincount(user_N, minlength=len(length_U)))))
    return Histories((key_N % n_items).astype(np.int32), offsets)
