"""Evaluation: a scorer ranks the catalogue for held-out users; the metrics say how well it found their targets.

What a user has already seen (the fold-in history) is never ranked. The numbers do not depend on how users are batched.

Shape letters: B users of a batch, U users, k places, K the longest list any metric needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.histories import Histories, batches
from pipeline.metrics import Measure, bootstrap, contains, coverage, per_user
from pipeline.scorer import Scorer

CUTOFFS: Mapping[str, Sequence[int]] = {
    "ndcg": (10, 100),
    "recall": (20, 50),
    "plain_recall": (10, 20),
    "hit": (10,),
    "mrr": (10,),
    "precision": (10,),
    "coverage": (100,),
}
"""The MacridVAE paper's NDCG@100, Recall@20 and Recall@50, what RecBole reports by default, and catalogue coverage."""


def evaluate(
    scorer: Scorer,
    histories: Histories,
    targets: Histories,
    *,
    cutoffs: Mapping[str, Sequence[int]] = CUTOFFS,
) -> dict[str, Measure]:
    """Every metric at each of its cutoffs, averaged over users, with its confidence interval.

    Args:
        scorer: ranks the catalogue.
        histories: U fold-in sets; an empty one is legal.
        targets: the same U users' withheld items, at least one each, none of them in the user's history.
        cutoffs: names of `metrics.PER_USER` or `coverage`, each with the list lengths to measure at.

    Returns:
        `<name>@<cutoff>` to its measure, in the order of `cutoffs`.

    Raises:
        InputError: no users, users without targets, items outside the catalogue, targets already in the history.
    """
    return evaluate_each(scorer, histories, targets, cutoffs=cutoffs)[0]


def evaluate_each(
    scorer: Scorer,
    histories: Histories,
    targets: Histories,
    *,
    cutoffs: Mapping[str, Sequence[int]] = CUTOFFS,
) -> tuple[dict[str, Measure], dict[str, NDArray[np.float64]]]:
    """As `evaluate`, and with it the values of each user, float64 [U], of the metrics that users have."""
    names = [f"{name}@{k}" for name, ks in cutoffs.items() for k in ks]
    values, top_UK = _values(scorer, histories, targets, cutoffs)
    measures = bootstrap(values) if values else {}
    measures |= {f"coverage@{k}": coverage(top_UK[:, :k], scorer.n_items) for k in cutoffs.get("coverage", ())}
    return {name: measures[name] for name in names}, values


def of_each(
    scorer: Scorer, histories: Histories, targets: Histories, cutoffs: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of `metrics.PER_USER`, each user's value, float64 [U]. Arguments, names and errors as in `evaluate`."""
    return _values(scorer, histories, targets, cutoffs)[0]


def ndcg_of_each(scorer: Scorer, histories: Histories, targets: Histories, *, k: int = 100) -> NDArray[np.float64]:
    """NDCG@k of each user, float64 [U]. Arguments and errors as in `evaluate`."""
    return of_each(scorer, histories, targets, {"ndcg": (k,)})[f"ndcg@{k}"]


def mean_ndcg(scorer: Scorer, histories: Histories, targets: Histories, *, k: int = 100) -> float:
    """Mean NDCG@k over users and nothing else: for comparing epochs. Arguments and errors as in `evaluate`."""
    return float(ndcg_of_each(scorer, histories, targets, k=k).mean())


def _values(
    scorer: Scorer, histories: Histories, targets: Histories, cutoffs: Mapping[str, Sequence[int]]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int32]]:
    """Each user's value of each metric that users have, and the lists that coverage needs, int32 [U, K]."""
    _check(scorer, histories, targets)
    user_cutoffs = {name: ks for name, ks in cutoffs.items() if name != "coverage"}
    longest = max(k for ks in cutoffs.values() for k in ks)
    values = {f"{name}@{k}": np.empty(len(targets)) for name, ks in user_cutoffs.items() for k in ks}
    top_UK = np.empty((len(targets), max(cutoffs.get("coverage", ()), default=0)), dtype=np.int32)
    for users_B, top_BK in _rankings(scorer, histories, longest):
        top_UK[users_B] = top_BK[:, : top_UK.shape[1]]
        for name, value_B in per_user(top_BK, targets.take(users_B), user_cutoffs).items():
            values[name][users_B] = value_B
    return values, top_UK


def _rankings(scorer: Scorer, histories: Histories, k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The users of each batch and their k best unseen items, int64 [B, k]."""
    for users_B in batches(histories.lengths, scorer.n_items):
        batch = histories.take(users_B)
        yield users_B, scorer(batch, k, excluded=batch).items


def _check(scorer: Scorer, histories: Histories, targets: Histories) -> None:
    """Refuse what would make a metric undefined or unreachable."""
    if len(histories) != len(targets):
        raise ValueError(f"{len(histories)} histories but {len(targets)} sets of targets")
    if len(targets) == 0:
        raise InputError("There are no users to evaluate. Give at least one user with a history and targets.")
    without = np.count_nonzero(targets.lengths == 0)
    if without:
        raise InputError(f"Users without targets: {without} of {len(targets)}. No metric is defined; leave them out.")
    for what, items_N in (("History items", histories.items_N), ("Targets", targets.items_N)):
        outside = np.count_nonzero((items_N < 0) | (items_N >= scorer.n_items))
        if outside:
            catalogue = f"the catalogue (item numbers 0 to {scorer.n_items - 1})"
            raise InputError(f"{what} outside {catalogue}: {outside} of {len(items_N)}. Leave them out.")
    user_N = np.repeat(np.arange(len(targets)), targets.lengths)
    seen = np.count_nonzero(contains(histories, user_N, targets.items_N))
    if seen:
        raise InputError(
            f"Targets already in their user's history: {seen} of {len(targets.items_N)}. "
            "Seen items are never recommended, so these cannot be hit; remove them from the targets."
        )
