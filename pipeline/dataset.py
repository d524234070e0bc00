"""Dataset: the interactions a config names, as training histories, held-out users and the vocabulary that numbers them.

Memory is bounded by one bucket of users, the user ids, the history offsets and the distinct items; the interactions
stay in files, in a folder that the caller provides.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.buckets import bucket_count, distinct_items, read_bucket, shuffle
from pipeline.config import DataConfig
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.history_file import HistoryFile
from pipeline.interactions import Source, open_source
from pipeline.split import HeldOut, Split, Users, check_amounts, hold_out_users, split_each_history
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Dataset:
    """What training and evaluation need; users come in the order of their ids."""

    vocabulary: Vocabulary
    train: Histories
    validation: HeldOut
    test: HeldOut
    counts: dict[str, int]
    """What was read, used and left out.

    Every row is in one place: `rows_read` = `rows_below_min_rating` + `duplicate_rows` +
    `rows_of_users_below_min_history` + `training_interactions` + `validation_interactions` + `test_interactions` +
    `held_out_items_outside_catalogue` + `rows_of_held_out_users_without_targets`.

    So is every user that `min_rating` leaves a row: `users` = `users_below_min_history` + `training_users`, and under
    `held-out-users` + `validation_users` + `test_users` + `held_out_users_without_targets`. Under `random` everyone
    trains, the interactions of validation and test are their targets only, and a user without a target in either
    counts twice in `held_out_users_without_targets`.
    """

    def digest(self) -> str:
        """SHA-256 of the catalogue and of every history that training and validation see."""
        items = io.BytesIO()
        self.vocabulary.items.rechunk().write_parquet(items)
        sha = hashlib.sha256(items.getvalue())
        for histories in (self.train, self.validation.histories, self.validation.targets):
            sha.update(histories.items_N.data)
            sha.update(histories.offsets.data)
        return sha.hexdigest()


def load_dataset(config: DataConfig, folder: Path) -> Dataset:
    """Read and split the interactions. The result depends on them and on the config, not on their files or order.

    Args:
        config: what to read and how to split it.
        folder: an existing, empty folder, for the files behind the histories; it must outlive the dataset.

    Raises:
        InputError: the input or `items` cannot be used, or nobody is left to train on.
        JobError: a file is damaged, or the disk is full.
    """
    check_amounts(config)
    source = _open_interactions(config)
    item_ids, users, counts = _read_users(source, config, folder)
    if not users:
        raise InputError(
            f"{config.input} leaves no user to train on: of {counts['rows_read']:,} rows,"
            f" {counts['rows_below_min_rating']:,} are below min_rating; of {counts['users']:,} users left,"
            f" {counts['users_below_min_history']:,} have fewer than {config.min_history} items."
            " Lower data.min_rating or data.min_history."
        )
    split_users = {"held-out-users": hold_out_users, "random": split_each_history}[config.split]
    split = split_users(users, config, folder)
    in_catalogue_I = split.n_interactions_I > 0
    vocabulary = Vocabulary.of(item_ids.filter(in_catalogue_I), split.n_interactions_I[in_catalogue_I])
    if config.items is not None:
        vocabulary = vocabulary.with_items(Path(config.items))
    counts |= _split_counts(split, config) | {"items": len(vocabulary)}
    return Dataset(vocabulary, split.train, split.validation, split.test, counts)


def _open_interactions(config: DataConfig) -> Source:
    source = open_source(config.input, with_rating=config.min_rating is not None)
    if source.item_type is None:
        raise InputError(f"{config.input} holds users without items. Name interactions or histories to train on.")
    if config.items is not None:  # only for its faults: better now than after the work
        Vocabulary.of(pl.Series(dtype=source.item_type), np.empty(0, dtype=np.int64)).with_items(Path(config.items))
    return source


def _read_users(source: Source, config: DataConfig, folder: Path) -> tuple[pl.Series, Users, dict[str, int]]:
    """Every item id, ascending; everyone with `min_history` items, numbered by place among those; what was left out."""
    buckets, n_buckets = folder / "buckets", bucket_count(source.n_rows)
    shuffle(source, buckets, n_buckets, min_rating=config.min_rating)
    item_ids = distinct_items(buckets)
    numbering = Vocabulary.of(item_ids, np.zeros(len(item_ids), dtype=np.int64))
    file, user_ids, counts = HistoryFile(folder / "users.int32"), [], Counter[str]()
    for at in range(n_buckets):
        histories, n_interactions = read_bucket(buckets, at)
        kept = histories.filter(pl.col("history").list.len() >= config.min_history)
        file.append(_numbered(kept["history"], numbering))
        user_ids.append(kept["user_id"])
        n_distinct, n_kept = (int(frame["history"].list.len().sum()) for frame in (histories, kept))
        counts.update(
            rows=n_interactions,
            duplicate_rows=n_interactions - n_distinct,
            users=len(histories),
            users_below_min_history=len(histories) - len(kept),
            rows_of_users_below_min_history=n_distinct - n_kept,
        )
    shutil.rmtree(buckets)
    row_U = pl.concat(user_ids).arg_sort().to_numpy().astype(np.int64)
    rows_left = counts.pop("rows")
    rows_read = source.n_rows if source.form == "interactions" else rows_left
    rows = {"rows_read": rows_read, "rows_below_min_rating": rows_read - rows_left}
    return item_ids, Users(file.map(), row_U, len(item_ids)), {**rows, **counts}


def _numbered(history: pl.Series, numbering: Vocabulary) -> Histories:
    lengths = history.list.len().to_numpy().astype(np.int64)
    items = numbering.numbers(history.explode(empty_as_null=False))
    return Histories(items.to_numpy(), np.concatenate(([0], np.cumsum(lengths))))


def _split_counts(split: Split, config: DataConfig) -> dict[str, int]:
    counts = {"training_users": len(split.train), "training_interactions": len(split.train.items_N)}
    for name, held_out in (("validation", split.validation), ("test", split.test)):
        shown = len(held_out.histories.items_N) if config.split == "held-out-users" else 0
        counts[f"{name}_users"] = len(held_out)
        counts[f"{name}_interactions"] = shown + len(held_out.targets.items_N)
    left_out = (
        "held_out_users_without_targets",
        "rows_of_held_out_users_without_targets",
        "held_out_items_outside_catalogue",
    )
    return {**counts, **{name: split.counts[name] for name in left_out}}
