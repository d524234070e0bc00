"""The gate: proof that an exported file equals the model, on real histories, before anyone can open it.

Fail closed: the first check that does not hold raises, names the check, the worst case and its size, and no bundle
appears.

Shape letters: B users, k places, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline.errors import JobError
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK

SCORE_TOLERANCE = 1e-4
"""Largest difference of a score (natural log of a probability) from the model's."""
TIE_TOLERANCE = 1e-5
"""Items whose scores are closer than this may change places."""
SHARE_TOLERANCE = 1e-3
"""Largest difference of a concept share from the model's."""
BATCH_SIZES = (1, 2, 3, 64, 255)
NOTHING = "Nothing was written."
SPARE_PLACES = 50
"""How many more places the model is asked for, so that an item which changed places within a tie is still found."""


class Parity(BaseModel, extra="forbid", frozen=True, strict=True):
    """What the gate measured for one file; it held everywhere."""

    histories: int
    """Compared, edge cases included."""
    longest_history: int
    k: int
    largest_score_difference: float
    largest_share_difference: float
    same_sets: int
    """Histories with exactly the model's top-K set; the others differ by ties within the tolerance only."""
    same_bits_twice: bool

    def sentence(self) -> str:
        """The same for people."""
        return (
            f"{self.histories:,} histories (longest {self.longest_history:,}): scores within "
            f"{self.largest_score_difference:.1e}, {self.same_sets:,} times the same top-{self.k} set; nothing random"
        )


def check_random(form: str, random: list[str]) -> None:
    """No operator of the file may draw random numbers.

    Raises:
        JobError: naming them.
    """
    if random:
        raise JobError(f"The {form} graph holds random operators: {', '.join(random)}. {NOTHING}")


def check_parity(form: str, artefact: Scorer, model: Scorer, histories: Histories, k: int = 100) -> Parity:
    """Hold a file against the model, with the history itself excluded, over batches of several sizes.

    Args:
        form: the format, for messages.
        artefact: the opened file.
        model: the eager model.
        histories: to compare on; edge cases (empty, one item) are the caller's to include.
        k: places; at most the catalogue is compared.

    Raises:
        JobError: the first check that does not hold.
    """
    k = min(k, model.n_items)
    worst_score, worst_share, same_sets = 0.0, 0.0, 0
    for users_B in _batches(len(histories)):
        batch = histories.take(users_B)
        found, again = (artefact(batch, k, excluded=batch) for _ in range(2))
        expected = model(batch, k + SPARE_PLACES, excluded=batch)
        _check_repeat(form, found, again)
        for row, user in enumerate(users_B):
            where = f"history {user} ({len(batch[row])} items, batch of {len(batch)})"
            score, share, same = _compare(form, where, _row(found, row), _row(expected, row), batch[row])
            worst_score, worst_share, same_sets = max(worst_score, score), max(worst_share, share), same_sets + same
    return Parity(
        histories=len(histories),
        longest_history=int(histories.lengths.max(initial=0)),
        k=k,
        largest_score_difference=worst_score,
        largest_share_difference=worst_share,
        same_sets=same_sets,
        same_bits_twice=True,
    )


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


def _compare(
    form: str, where: str, found: TopK, expected: TopK, history: NDArray[np.int32]
) -> tuple[float, float, bool]:
    """Largest score difference, largest share difference, and whether the sets are equal.

    Raises:
        JobError: the first check that does not hold.
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
    if problem is None:
        place = {int(item): at for at, item in enumerate(expected.items) if item >= 0}
        strangers = [int(item) for item in found_in.items if int(item) not in place]
        if strangers:
            problem = f"item {strangers[0]} is recommended, which is not among the model's best {len(place)}"
    if problem is None:
        at = np.array([place[int(item)] for item in found_in.items], dtype=np.int64)
        score = float(np.abs(found_in.scores - expected.scores[at]).max(initial=0))
        share = float(np.abs(found_in.concept_shares - expected.concept_shares[at]).max(initial=0))
        behind = float((expected.scores[n_found - 1] - expected.scores[at]).max(initial=0))
        problem = _too_far(score, share, behind)
    if problem is not None:
        raise JobError(f"The {form} graph differs from the model at {where}: {problem}. {NOTHING}")
    return score, share, bool((at < n_found).all())


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


def _too_far(score: float, share: float, behind: float) -> str | None:
    """What lies outside the tolerances."""
    if score > SCORE_TOLERANCE:
        return f"a score is {score:.3g} off (allowed: {SCORE_TOLERANCE:g})"
    if share > SHARE_TOLERANCE:
        return f"a concept share is {share:.3g} off (allowed: {SHARE_TOLERANCE:g})"
    if behind > TIE_TOLERANCE:
        return f"an item is recommended that scores {behind:.3g} less than the last place (ties: {TIE_TOLERANCE:g})"
    return None
