"""Split: which users, or which of their items, training never sees.

`hold_out_users` is strong generalisation (Liang et al., WWW 2018; Ma et al., NeurIPS 2019): of a held-out user, the
model is shown some items and must find the others. `split_each_history` holds out items of every user instead. In both,
the catalogue is the items of the training histories.

Histories pass through memory block by block and end in files, so interactions may exceed memory. Draws are made in the
order of user ids: neither the blocks nor the order of the input show in the result.

Shape letters: U users, N items of all their histories, I items before the split (catalogue and others).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Amount, DataConfig
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.history_file import HistoryFile

BLOCK_ITEMS = 2_000_000


@dataclass(frozen=True, eq=False)
class Users:
    """Everyone to split, ascending by id: user u's history is row `row_U[u]` of `stored`."""

    stored: Histories
    row_U: NDArray[np.int64]
    n_items: int

    def __len__(self) -> int:
        return len(self.row_U)

    def blocks(self, users: NDArray[np.int64] | slice) -> Iterator[Histories]:
        """The histories of these users in this order, about 2 million items at a time."""
        rows = self.row_U[users]
        ends = np.cumsum(self.stored.lengths[rows])
        for block in np.split(rows, np.flatnonzero(np.diff(ends // BLOCK_ITEMS)) + 1):
            yield self.stored.take(block)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Users to evaluate on: shown `histories[u]`, the model should find `targets[u]`, which holds at least one item."""

    histories: Histories
    targets: Histories

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories and held-out users, in item numbers of the catalogue."""

    n_interactions_I: NDArray[np.int64]
    """Training interactions of each item; those with at least one are the catalogue, in this order."""
    train: Histories
    validation: HeldOut
    test: HeldOut
    counts: Counter[str]
    """Of what was held out, what evaluation cannot use."""


class _HeldOutFile:
    def __init__(self, folder: Path, name: str) -> None:
        self._histories = HistoryFile(folder / f"{name}-histories.int32")
        self._targets = HistoryFile(folder / f"{name}-targets.int32")

    def append(self, histories: Histories, targets: Histories) -> NDArray[np.bool_]:
        """Add the users who have a target; answers who they are, bool [U]."""
        has_target_U = targets.lengths > 0
        self._histories.append(histories.take(np.flatnonzero(has_target_U)))
        self._targets.append(targets.take(np.flatnonzero(has_target_U)))
        return has_target_U

    def map(self) -> HeldOut:
        return HeldOut(self._histories.map(), self._targets.map())


def check_amounts(config: DataConfig) -> None:
    """Refuse a `random` split by numbers of users, or one that leaves nothing to train on.

    Raises:
        InputError: naming the fields.
    """
    if config.split != "random":
        return
    for field, amount in (("validation", config.validation), ("test", config.test)):
        if amount >= 1:
            raise InputError(
                f'data.{field} = {amount} is a number of users, but split = "random" holds out a share of each history.'
                " Give a share below 1, such as 0.1."
            )
    if _exact(config.validation) + _exact(config.test) >= 1:
        raise InputError(
            f"data.validation = {config.validation} and data.test = {config.test} leave nothing of a history to train"
            " on. Give shares with a sum below 1."
        )


def hold_out_users(users: Users, config: DataConfig, folder: Path) -> Split:
    """Strong generalisation: permute the users; the last are test, those before validation, the rest trains.

    The permutation is NumPy's legacy one, as in the authors' code: it is frozen, and the same users are held out.

    Held-out users lose items outside the catalogue. Of the n left, floor((1 - fold_in) n) random ones are targets.
    Users left with fewer than `min_history` items, or without a target, are not evaluated.

    Raises:
        InputError: no user is left to train on.
    """
    validation_rng, test_rng = np.random.default_rng(config.seed).spawn(2)
    n_validation, n_test = _n_users(config.validation, len(users)), _n_users(config.test, len(users))
    n_train = len(users) - n_validation - n_test
    if n_train < 1:
        raise InputError(
            f"data.validation = {config.validation} and data.test = {config.test} hold out {n_validation:,} and"
            f" {n_test:,} of {len(users):,} users: none is left to train on. Lower them."
        )
    drawn = np.split(np.random.RandomState(config.seed).permutation(len(users)), [n_train, n_train + n_validation])
    train_users, validation_users, test_users = (np.sort(part) for part in drawn)
    n_interactions_I = _count_items(users.blocks(train_users), users.n_items)
    number_I = _catalogue_numbers(n_interactions_I)
    train = HistoryFile(folder / "train.int32")
    for block in users.blocks(train_users):
        train.append(_in_catalogue(block, number_I))
    validation, test = _HeldOutFile(folder, "validation"), _HeldOutFile(folder, "test")
    counts = _fold_in(users.blocks(validation_users), validation, number_I, config, validation_rng)
    counts += _fold_in(users.blocks(test_users), test, number_I, config, test_rng)
    return Split(n_interactions_I, train.map(), validation.map(), test.map(), counts)


def _fold_in(
    blocks: Iterable[Histories],
    file: _HeldOutFile,
    number_I: NDArray[np.int32],
    config: DataConfig,
    rng: np.random.Generator,
) -> Counter[str]:
    counts = Counter[str]()
    for block in blocks:
        known = _in_catalogue(block, number_I)
        long_enough_U = known.lengths >= config.min_history
        n_targets_U = np.where(long_enough_U, _floor(1 - _exact(config.fold_in), known.lengths), 0)
        target_N = _random_places(known, rng) < np.repeat(n_targets_U, known.lengths)
        evaluated_U = file.append(_select(known, ~target_N), _select(known, target_N))
        counts["held_out_users_without_targets"] += int(np.sum(~evaluated_U))
        counts["rows_of_held_out_users_without_targets"] += int(np.sum(known.lengths[~evaluated_U]))
        counts["held_out_items_outside_catalogue"] += len(block.items_N) - len(known.items_N)
    return counts


def split_each_history(users: Users, config: DataConfig, folder: Path) -> Split:
    """Of each user's n items, floor(validation n) and floor(test n) random ones are targets, the rest trains.

    Validation is shown the training items, test those and the validation items. Targets outside the catalogue are
    dropped; users without a target are not in that held-out set.
    """
    n_interactions_I = np.zeros(users.n_items, dtype=np.int64)
    for block, validation_N, test_N in _divided(users, config):
        n_interactions_I += _count_items([_select(block, ~validation_N & ~test_N)], users.n_items)
    number_I = _catalogue_numbers(n_interactions_I)
    train = HistoryFile(folder / "train.int32")
    validation, test = _HeldOutFile(folder, "validation"), _HeldOutFile(folder, "test")
    counts = Counter[str]()
    for block, validation_N, test_N in _divided(users, config):
        numbered = Histories(number_I[block.items_N], block.offsets)
        known_N = numbered.items_N >= 0
        trained = _select(numbered, ~validation_N & ~test_N)
        train.append(trained)
        validated_U = validation.append(trained, _select(numbered, validation_N & known_N))
        tested_U = test.append(_select(numbered, ~test_N & known_N), _select(numbered, test_N & known_N))
        counts["held_out_users_without_targets"] += int(np.sum(~validated_U) + np.sum(~tested_U))
        counts["held_out_items_outside_catalogue"] += int(np.sum(~known_N))
    return Split(n_interactions_I, train.map(), validation.map(), test.map(), counts)


def _divided(users: Users, config: DataConfig) -> Iterator[tuple[Histories, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Blocks of all users, with the items [N] that are validation and test targets; the same at every call."""
    rng = np.random.default_rng(config.seed)
    for block in users.blocks(slice(None)):
        n_validation_U = _floor(_exact(config.validation), block.lengths)
        n_held_out_U = n_validation_U + _floor(_exact(config.test), block.lengths)
        place_N = _random_places(block, rng)
        validation_N = place_N < np.repeat(n_validation_U, block.lengths)
        yield block, validation_N, ~validation_N & (place_N < np.repeat(n_held_out_U, block.lengths))


def _n_users(amount: Amount, n: int) -> int:
    return amount if isinstance(amount, int) else int(_exact(amount) * n)


def _exact(share: float) -> Fraction:
    """The share as it was written: floor(0.29 * 100) is 29, which 28.999999999999996 is not."""
    return Fraction(share).limit_denominator(1_000_000)


def _floor(share: Fraction, n_U: NDArray[np.int64]) -> NDArray[np.int64]:
    return n_U * share.numerator // share.denominator


def _random_places(histories: Histories, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each item's place, from 0, in a random permutation of its history: int64 [N]."""
    user_N = np.repeat(np.arange(len(histories)), histories.lengths)
    order_N = np.lexsort((rng.random(len(user_N)), user_N))
    place_N = np.empty_like(order_N)
    place_N[order_N] = np.arange(len(user_N)) - np.repeat(histories.offsets[:-1], histories.lengths)
    return place_N


def _count_items(blocks: Iterable[Histories], n_items: int) -> NDArray[np.int64]:
    return sum((np.bincount(block.items_N, minlength=n_items) for block in blocks), np.zeros(n_items, dtype=np.int64))


def _catalogue_numbers(n_interactions_I: NDArray[np.int64]) -> NDArray[np.int32]:
    """The number of each item in the catalogue, -1 outside: int32 [I]."""
    in_catalogue_I = n_interactions_I > 0
    return np.where(in_catalogue_I, np.cumsum(in_catalogue_I) - 1, -1).astype(np.int32)


def _in_catalogue(histories: Histories, number_I: NDArray[np.int32]) -> Histories:
    numbered = Histories(number_I[histories.items_N], histories.offsets)
    return _select(numbered, numbered.items_N >= 0)


def _select(histories: Histories, keep_N: NDArray[np.bool_]) -> Histories:
    """The same users with only the marked items."""
    kept_before = np.concatenate(([0], np.cumsum(keep_N)))
    return Histories(histories.items_N[keep_N], kept_before[histories.offsets])
