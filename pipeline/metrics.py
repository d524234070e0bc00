"""Metrics: how good top-K lists are, per user, and how sure the averages are.

Relevance is binary: an item is one of the user's targets or it is not. A user without targets has no defined NDCG or
Recall and must be left out before. Recall exists in two conventions under two names, because published numbers differ
by which of them was used.

Means over users get a bootstrap interval. Coverage does not: a resample of n users holds only about 63% of them, so it
never covers more items than the evaluated users did. In simulated evaluations that percentile interval held the true
coverage in 0-2% of cases, its mirror image in 0-5%, and one moved onto the coverage in 72-100%. The jackknife over
users, whose variance is on average not too small (Efron and Stein 1981), held it in 97-100%.

Shape letters: B users, k places of a list, U users evaluated, M metrics, R resamples, N items of all histories
together, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.histories import Histories

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measure:
    """One metric of one evaluation; `dataclasses.asdict` makes it JSON."""

    mean: float
    """Average over users; for coverage, which has no value per user, the coverage itself."""
    standard_error: float
    """Population standard deviation over users / sqrt(users), as in published tables; for coverage, the jackknife's."""
    low: float
    """Lower end of the 95% confidence interval over users."""
    high: float
    """Upper end of the 95% confidence interval over users."""
    n_users: int


@dataclass(frozen=True)
class Comparison:
    """A baseline measured on the users the model is measured on."""

    l2: float | None
    """What EASE was fitted with; popularity has none."""
    metrics: dict[str, Measure]
    advantage: Measure
    """How much better the model ranks: the mean over users of the difference of their NDCG@100.

    Paired by user, so its interval is narrower than those of the two means.
    """


def ndcg(hits_Bk: NDArray[np.bool_], n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gain 1 / log2(rank + 1) of each hit, divided by that of min(k, number of targets) hits in the first places."""
    k = hits_Bk.shape[1]
    gains_k = 1 / np.log2(np.arange(2, k + 2))
    ideal_k = np.cumsum(gains_k)
    return np.asarray((hits_Bk * gains_k).sum(axis=1) / ideal_k[np.minimum(n_targets_B, k) - 1])


def recall(hits_Bk: NDArray[np.bool_], n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hits / min(k, number of targets), as in the papers on Mult-VAE and MacridVAE: a full list of hits scores 1."""
    return np.asarray(hits_Bk.sum(axis=1) / np.minimum(n_targets_B, hits_Bk.shape[1]))


def plain_recall(hits_Bk: NDArray[np.bool_], n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hits / number of targets, as in RecBole and LightGCN."""
    return np.asarray(hits_Bk.sum(axis=1) / n_targets_B)


def hit(hits_Bk: NDArray[np.bool_], _n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 if any place is a hit, else 0."""
    return np.asarray(hits_Bk.any(axis=1), dtype=np.float64)


def mrr(hits_Bk: NDArray[np.bool_], _n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / rank of the first hit, 0 without one."""
    return np.asarray(hits_Bk.any(axis=1) / (hits_Bk.argmax(axis=1) + 1))


def precision(hits_Bk: NDArray[np.bool_], _n_targets_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hits / k; a missing place is a miss."""
    return np.asarray(hits_Bk.mean(axis=1))


PER_USER: Mapping[str, Callable[[NDArray[np.bool_], NDArray[np.int64]], NDArray[np.float64]]] = {
    "ndcg": ndcg,
    "recall": recall,
    "plain_recall": plain_recall,
    "hit": hit,
    "mrr": mrr,
    "precision": precision,
}
"""Each takes hits, bool [B, k], and the number of targets, int64 [B], and gives float64 [B] between 0 and 1."""


def per_user(
    top_Bk: NDArray[np.int64], targets: Histories, cutoffs: Mapping[str, Iterable[int]]
) -> dict[str, NDArray[np.float64]]:
    """Every metric at each of its cutoffs, for each user.

    Args:
        top_Bk: int64 [B, k] item numbers, best first, none twice; -1 where a place is missing.
        targets: B users, each with at least one target.
        cutoffs: names of `PER_USER`, each with its cutoffs, 1 to k.

    Returns:
        `<name>@<cutoff>`: float64 [B].

    Raises:
        ValueError: a user without targets, a cutoff longer than the lists, targets that do not ascend.
    """
    n_targets_B = targets.lengths
    if not n_targets_B.all():
        raise ValueError(f"users without targets: {np.count_nonzero(n_targets_B == 0)} of {len(targets)}")
    hits_Bk = contains(targets, np.arange(len(targets))[:, None], top_Bk)
    values = {}
    for name, ks in cutoffs.items():
        for k in ks:
            if not 1 <= k <= top_Bk.shape[1]:
                raise ValueError(f"{name}@{k} of lists with {top_Bk.shape[1]} places")
            values[f"{name}@{k}"] = PER_USER[name](hits_Bk[:, :k], n_targets_B)
    return values


def bootstrap(
    values: Mapping[str, NDArray[np.float64]], *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, Measure]:
    """Means over users with percentile bootstrap intervals (Efron 1979): users are drawn with replacement.

    All metrics share each resample. Memory is a few numbers per user, whatever the number of resamples.

    Args:
        values: float64 [U] per metric, the same users in the same order in each; U >= 1.
        n_resamples: how often U of the U users are drawn.
        seed: the same seed gives the same intervals.
    """
    values_MU = np.array(list(values.values()))
    n_users = values_MU.shape[1]
    rng = np.random.default_rng(seed)
    means_RM = np.empty((n_resamples, len(values)))
    for mean_M in means_RM:
        times_drawn_U = np.bincount(rng.integers(n_users, size=n_users), minlength=n_users).astype(np.float64)
        # No matrix product: on a busy machine, waiting for BLAS threads made it 15 times slower.
        mean_M[:] = np.einsum("mu,u->m", values_MU, times_drawn_U) / n_users
    low_M, high_M = np.quantile(means_RM, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    mean_M, error_M = values_MU.mean(axis=1), values_MU.std(axis=1) / np.sqrt(n_users)
    rows = zip(mean_M.tolist(), error_M.tolist(), low_M.tolist(), high_M.tolist(), strict=True)
    return {name: Measure(*row, n_users) for name, row in zip(values, rows, strict=True)}


def coverage(top_Uk: NDArray[np.integer], n_items: int) -> Measure:
    """Share of the catalogue that at least one user is recommended, with a jackknife interval.

    More users cover more items, so compare only evaluations of equally many users.

    Args:
        top_Uk: [U, k] item numbers; -1 where a place is missing.
        n_items: size of the catalogue.
    """
    n_users = len(top_Uk)
    count_I = np.bincount(top_Uk[top_Uk >= 0], minlength=n_items)
    covered = float(np.count_nonzero(count_I) / n_items)
    # Without user u the coverage is lower by the items that only u is recommended. count_I[-1] stands in for item -1.
    only_U = ((count_I[top_Uk] == 1) & (top_Uk >= 0)).sum(axis=1) / n_items
    error = float(np.sqrt((n_users - 1) / n_users * np.square(only_U - only_U.mean()).sum()))
    margin = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return Measure(covered, error, max(0.0, covered - margin), min(1.0, covered + margin), n_users)


def contains(histories: Histories, users: NDArray[np.int64], items: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each item is in the history of its user; `users` and `items` broadcast together.

    Args:
        histories: any item sets, each ascending.
        users: row numbers in `histories`.
        items: item numbers; -1 is in no history.

    Raises:
        ValueError: a history that does not ascend, or holds an item twice.
    """
    n_items = 1 + max(int(items.max(initial=0)), int(histories.items_N.max(initial=0)))
    key_N = np.repeat(np.arange(len(histories)) * n_items, histories.lengths) + histories.items_N
    if (np.diff(key_N) <= 0).any():
        raise ValueError("every history must ascend, each item once")
    wanted = users * n_items + items
    at = np.searchsorted(key_N, wanted)
    found = np.append(key_N, -1)[at] == wanted
    return np.asarray(found & (items >= 0))
