"""The gate: proof that an exported file equals the model, on real histories, before anyone can open it.

Three levels. Numbers: scores and concept shares. Ranks: the same top k, in the same order, ties by smaller item number.
Meaning: NDCG and Recall on held-out users. And determinism: nothing random, equal bits on a second run, and how much a
user's scores depend on who else is in the batch.

Fail closed: a check that does not hold raises, names the check, the worst case and its size, and no bundle appears.
What an exact format may differ by is rounding; what a smaller precision may lose is stated in
`export.parity.TOLERANCES`.

Shape letters: B users, k places, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.parity import TOLERANCES, Difference, Parity, Precision
from pipeline.errors import JobError
from pipeline.evaluation import of_each
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK
from pipeline.split import HeldOut

BATCH_SIZES = (1, 2, 3, 64, 255)
ALONE_USERS = 32
"""Users who are also scored alone, to see what a batch does to them."""
MEANING_USERS = 2_000
"""Held-out users, at most, on whom metrics are compared."""
METRICS: Mapping[str, tuple[int, ...]] = {"ndcg": (100,), "recall": (20, 50)}
NOTHING = "Nothing was written."
SPARE_PLACES = 50
"""How many more places the model is asked for, so that an item which changed places within a tie is still found."""


def check_random(form: str, random: list[str]) -> None:
    """No operator of the file may draw random numbers.

    Raises:
        JobError: naming them.
    """
    if random:
        raise JobError(f"The {form} graph holds random operators: {', '.join(random)}. {NOTHING}")


class _Case(NamedTuple):
    """A batch, how it is asked, and what the model answers."""

    users_B: NDArray[np.int64]
    histories: Histories
    options: dict[str, Any]
    expected: TopK


class _Worst:
    """The largest value of each measure, and where it was."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, str]] = {}

    def see(self, measure: str, value: float, where: str) -> None:
        if value > self._found.get(measure, (-1.0, ""))[0]:
            self._found[measure] = (value, where)

    def __getitem__(self, measure: str) -> float:
        return self._found.get(measure, (0.0, ""))[0]

    def where(self, measure: str) -> str:
        return self._found[measure][1]


class Gate:
    """What the model answers, to hold any number of files against.

    Args:
        model: the eager model.
        histories: to compare on; edge cases (empty, one item) are the caller's to include. Every batch excludes the
            history itself; one also weighs concepts and allows every other item only.
        held_out: users with targets, for the metrics; may be empty.
        precision: what the file may differ by, of `TOLERANCES`.
        k: places; at most the catalogue is compared.
    """

    def __init__(
        self, model: Scorer, histories: Histories, held_out: HeldOut, precision: Precision = "fp32", k: int = 100
    ) -> None:
        self.tolerance, self.k = TOLERANCES[precision], min(k, model.n_items)
        self.histories = histories
        some = np.arange(min(len(held_out), MEANING_USERS))
        self.held_out = HeldOut(held_out.histories.take(some), held_out.targets.take(some))
        self.cases = [self._case(model, users_B, turn) for turn, users_B in enumerate(_batches(len(histories)))]
        self.metrics = self._metrics(model)

    def check(self, form: str, artefact: Scorer) -> Parity:
        """Hold a file against the model.

        Args:
            form: the format, for messages.
            artefact: the opened file.

        Raises:
            JobError: a check does not hold.
        """
        worst, overlaps, same_sets = _Worst(), [], 0
        for case in self.cases:
            found, again = (artefact(case.histories, self.k, **case.options) for _ in range(2))
            _check_repeat(form, found, again)
            for row, user in enumerate(case.users_B):
                where = f"history {user} ({len(case.histories[row])} items, batch of {len(case.users_B)})"
                overlap = _compare(form, where, _row(found, row), _row(case.expected, row), case.histories[row], worst)
                overlaps.append(overlap)
                same_sets += overlap == 1
        self._check_alone(artefact, worst)
        self._check_worst(form, worst, float(np.mean(overlaps)))
        return Parity(
            histories=len(self.histories),
            longest_history=int(self.histories.lengths.max(initial=0)),
            k=self.k,
            largest_score_difference=worst["score"],
            largest_share_difference=worst["share"],
            same_sets=same_sets,
            mean_overlap=float(np.mean(overlaps)),
            largest_disorder=worst["disorder"],
            held_out_users=len(self.held_out),
            metrics=self._check_meaning(form, artefact),
            same_bits_twice=True,
            largest_batch_difference=worst["alone"],
        )

    def _case(self, model: Scorer, users_B: NDArray[np.int64], turn: int) -> _Case:
        batch = self.histories.take(users_B)
        options: dict[str, Any] = {"excluded": batch}
        if turn == BATCH_SIZES.index(3):
            weights_BC = np.linspace(0, 2, len(batch) * model.n_concepts, dtype=np.float32)
            options["concept_weights"] = weights_BC.reshape(len(batch), -1)
            options["allowed"] = np.arange(model.n_items) % 2 == 0
        return _Case(users_B, batch, options, model(batch, self.k + SPARE_PLACES, **options))

    def _metrics(self, scorer: Scorer) -> dict[str, NDArray[np.float64]]:
        return of_each(scorer, self.held_out.histories, self.held_out.targets, METRICS) if len(self.held_out) else {}

    def _check_alone(self, artefact: Scorer, worst: _Worst) -> None:
        some = range(min(ALONE_USERS, len(self.histories)))
        batch = self.histories.take(np.array(some, dtype=np.int64))
        together = artefact(batch, self.k, excluded=batch)
        for row in some:
            alone = self.histories.take(np.array([row]))
            top = artefact(alone, self.k, excluded=alone)
            both = np.isfinite(top.scores[0]) & np.isfinite(together.scores[row])
            apart = np.abs(top.scores[0][both] - together.scores[row][both])
            worst.see("alone", float(apart.max(initial=0)), f"history {row} ({len(batch[row])} items, alone)")

    def _check_worst(self, form: str, worst: _Worst, overlap: float) -> None:
        allowed, k = self.tolerance, self.k
        checks = {
            "score": (allowed.score, "a score is {:.3g} off (allowed: {:g})"),
            "share": (allowed.share, "a concept share is {:.3g} off (allowed: {:g})"),
            "behind": (allowed.tie, "an item is recommended that scores {:.3g} less than the last place (ties: {:g})"),
            "disorder": (allowed.tie, "an item stands above one that scores {:.3g} more (ties: {:g})"),
            "alone": (allowed.score, "a score differs by {:.3g} from the one in a batch (allowed: {:g})"),
        }
        for measure, (limit, words) in checks.items():
            if worst[measure] > limit:
                problem = words.format(worst[measure], limit)
                raise JobError(
                    f"The {form} graph differs from the model at {worst.where(measure)}: {problem}. {NOTHING}"
                )
        if overlap < allowed.overlap:
            least = 1 - worst["missed"]
            raise JobError(
                f"The {form} graph finds {overlap:.4f} of the model's top {k} (allowed: {allowed.overlap:g}), and "
                f"least, {least:.4f}, at {worst.where('missed')}. {NOTHING}"
            )

    def _check_meaning(self, form: str, artefact: Scorer) -> dict[str, Difference]:
        measured, found = {}, self._metrics(artefact)
        for name, model_U in self.metrics.items():
            mean = Difference(model=float(model_U.mean()), artefact=float(found[name].mean()))
            lost_U = model_U - found[name]
            error = float(lost_U.std() / np.sqrt(len(lost_U)))
            if lost_U.mean() > self.tolerance.loss + 2 * error:
                user, users = int(lost_U.argmax()), len(self.held_out)
                items = len(self.held_out.histories[user])
                raise JobError(
                    f"The {form} graph recommends worse than the model: {name} of {users} held-out users is "
                    f"{mean.artefact:.4f} instead of {mean.model:.4f} (allowed loss: {self.tolerance.loss:g} and twice "
                    f"its standard error, {error:.2g}); worst at held-out user {user} ({items} items): "
                    f"{found[name][user]:.4f} instead of {model_U[user]:.4f}. {NOTHING}"
                )
            measured[name] = mean
        return measured


def _batches(n_users: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive users, in batches that go through all sizes."""
    start, turn = 0, 0
    while start < n_users:
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        yield np.arange(start, min(start + size, n_users))
        start, turn = start + size, turn + 1


def _check_repeat(form: str, once: TopK, twice: TopK) -> None:
    for name in TopK._fields:
        if getattr(once, name).tobytes() != getattr(twice, name).tobytes():
            raise JobError(f"The {form} graph answered twice with other {name} ({len(once.items)} users). {NOTHING}")


def _row(top: TopK, row: int) -> TopK:
    return TopK(top.items[row], top.scores[row], top.concept_shares[row])


def _compare(form: str, where: str, found: TopK, expected: TopK, history: NDArray[np.int32], worst: _Worst) -> float:
    """Note how far one list is from the model's; returns the share of the model's top k that it holds.

    Raises:
        JobError: the list is wrong in itself, or holds an item that is nowhere near the model's best.
    """
    k = len(found.items)
    n_found, n_expected = int((found.items >= 0).sum()), int((expected.items[:k] >= 0).sum())
    found_in, problem = TopK(found.items[:n_found], found.scores[:n_found], found.concept_shares[:n_found]), None
    if n_found != n_expected:
        problem = f"{n_found} recommendations instead of {n_expected}"
    elif not np.isneginf(found.scores[n_found:]).all():
        problem = "a missing place has a score"
    else:
        problem = _malformed(found_in, history)
    place = {int(item): at for at, item in enumerate(expected.items) if item >= 0}
    strangers = [int(item) for item in found_in.items if int(item) not in place]
    if problem is None and strangers:
        problem = f"item {strangers[0]} is recommended, which is not among the model's best {len(place)}"
    if problem is not None:
        raise JobError(f"The {form} graph differs from the model at {where}: {problem}. {NOTHING}")
    at = np.array([place[int(item)] for item in found_in.items], dtype=np.int64)
    if not n_found:
        return 1.0
    meant = expected.scores[at]
    worst.see("score", float(np.abs(found_in.scores - meant).max()), where)
    worst.see("share", float(np.abs(found_in.concept_shares - expected.concept_shares[at]).max()), where)
    worst.see("behind", float((expected.scores[n_found - 1] - meant).max()), where)
    worst.see("disorder", float((meant - np.minimum.accumulate(meant)).max()), where)
    overlap = float((at < n_found).mean())
    worst.see("missed", 1 - overlap, where)
    return overlap


def _malformed(found: TopK, history: NDArray[np.int32]) -> str | None:
    """What is wrong with a list of recommendations in itself."""
    items, scores = found.items, found.scores
    if (items < 0).any() or len(np.unique(items)) != len(items):
        return "an item is missing or recommended twice"
    if np.isin(items, history).any():
        return f"item {items[np.isin(items, history)][0]} is recommended although it is excluded"
    if not np.isfinite(scores).all():
        return "a score is not finite"
    in_order = (scores[1:] < scores[:-1]) | ((scores[1:] == scores[:-1]) & (items[1:] > items[:-1]))
    if not in_order.all():
        return f"place {int(np.argmin(in_order)) + 2} is out of order (by score, then by item number)"
    return None
