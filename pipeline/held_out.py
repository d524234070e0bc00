"""Held-out users from two files: what they have, and what they should be recommended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from pipeline.buckets import bucket_count, read_bucket, shuffle
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.interactions import open_source
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary


def read_held_out(history: str, truth: str, vocabulary: Vocabulary) -> tuple[HeldOut, dict[str, int]]:
    """Read users to evaluate on, in item numbers.

    Targets that the catalogue does not hold, or that the user has already, can never be recommended: they are left out,
    and so are users without any other target or without a row in `history`. The counts say how many.

    Args:
        history: location of interactions or histories.
        truth: location of interactions or histories of the same users.
        vocabulary: the model's catalogue.

    Raises:
        InputError: a location cannot be read, user ids differ in type, or no user is left.
    """
    had, wanted = open_source(history), open_source(truth)
    if had.user_type != wanted.user_type:
        raise InputError(
            f"User ids are {had.user_type} in {history}, but {wanted.user_type} in {truth}. Write both with one type."
        )
    n_buckets = bucket_count(had.n_rows + wanted.n_rows)
    counts: Counter[str] = Counter()
    found: list[pl.DataFrame] = []
    with TemporaryDirectory(prefix="macrid-evaluate-") as scratch:
        folders = Path(scratch, "history"), Path(scratch, "truth")
        for source, folder in zip((had, wanted), folders, strict=True):
            shuffle(source, folder, n_buckets)
        for bucket in range(n_buckets):
            have, want = (read_bucket(folder, bucket).histories for folder in folders)
            found.append(_pair(have, want, vocabulary, counts))
    users = pl.concat(found)
    if users.is_empty():
        raise InputError(
            f"No user of {truth} can be evaluated: {dict(counts)}. "
            "Name files with the same users and the model's items."
        )
    counts["users"] = len(users)
    return HeldOut(_histories(users["history"]), _histories(users["targets"])), dict(counts)


def _pair(had: pl.DataFrame, wanted: pl.DataFrame, vocabulary: Vocabulary, counts: Counter[str]) -> pl.DataFrame:
    """Users of both, each with at least one target: `history` and `targets`, lists of item numbers."""
    with_history = wanted.join(had, on="user_id", how="semi")
    history = _numbered(had, vocabulary)
    known = _numbered(with_history, vocabulary)
    targets = known.join(history, on=["user_id", "item"], how="anti")
    users = targets.group_by("user_id").agg(pl.col("item").sort().alias("targets"))
    lists = history.group_by("user_id").agg(pl.col("item").sort().alias("history"))
    counts["users_without_history"] += len(wanted) - len(with_history)
    counts["users_without_target"] += len(with_history) - len(users)
    counts["targets_outside_catalogue"] += int(with_history["history"].list.len().sum()) - len(known)
    counts["targets_in_history"] += len(known) - len(targets)
    return users.join(lists, on="user_id", how="left").sort("user_id").select("history", "targets")


def _numbered(histories: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    rows = histories.explode("history", empty_as_null=True, keep_nulls=True)
    return rows.select("user_id", item=vocabulary.numbers(rows["history"])).drop_nulls("item")


def _histories(lists: pl.Series) -> Histories:
    lengths = lists.list.len().fill_null(0).to_numpy()
    items = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    return Histories(items.astype(np.int32), np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
