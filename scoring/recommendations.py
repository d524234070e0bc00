"""Recommendations: the k best items for each of many histories, and what those get of whom nothing is known.

Shape letters: U users, B users of a batch, k places, I items of the catalogue, M items with interactions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.histories import Histories, batches
from pipeline.scorer import Scorer, TopK
from pipeline.vocabulary import Vocabulary
from scoring.candidates import Candidates

NO_CONCEPT = -1
DEEPER = 4
"""How many times as many items are ranked again for users whom caps leave short."""


class Recommendations(NamedTuple):
    """Up to k items for each of U users, best first; missing places come last."""

    items_Uk: NDArray[np.int32]
    """Item numbers; -1 in missing places."""
    scores_Uk: NDArray[np.float32]
    """Natural log of p(item | user) over the whole catalogue."""
    concepts_Uk: NDArray[np.int16]
    """The concept with the largest share (ties: the smaller); `NO_CONCEPT` where no model ranked the item."""
    shares_Uk: NDArray[np.float32]
    """That concept's share of p(item | user)."""

    @classmethod
    def missing(cls, n_users: int, k: int) -> Recommendations:
        """Nothing but missing places, to be filled."""
        places = (n_users, k)
        return cls(
            np.full(places, -1, dtype=np.int32),
            np.full(places, -np.inf, dtype=np.float32),
            np.full(places, NO_CONCEPT, dtype=np.int16),
            np.zeros(places, dtype=np.float32),
        )

    @property
    def counts_U(self) -> NDArray[np.int32]:
        """How many each user got."""
        return np.asarray((self.items_Uk >= 0).sum(axis=1), dtype=np.int32)


class Popular(NamedTuple):
    """What users get of whom nothing is known: items of training, most interactions first."""

    items_M: NDArray[np.int64]
    scores_M: NDArray[np.float32]
    """Natural log of the item's share of all interactions of training."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, allowed_I: NDArray[np.bool_]) -> Popular:
        """The allowed items with interactions."""
        count_I = vocabulary.items["n_interactions"].to_numpy()
        items_M = vocabulary.popular()
        items_M = items_M[(count_I > 0)[items_M] & allowed_I[items_M]]
        return cls(items_M, np.log(count_I[items_M] / count_I.sum()).astype(np.float32))


def recommend(
    scorer: Scorer, histories: Histories, excluded: Histories, candidates: Candidates, popular: Popular | None, k: int
) -> Recommendations:
    """The best items for each history that may be recommended, in the order of the histories.

    Args:
        scorer: ranks the catalogue.
        histories: of U users.
        excluded: items that each of them must not get.
        candidates: the items that anyone may get, and caps on a list.
        popular: in the place of the scorer's ranking for users without history; of candidates only. None: they get
            nothing.
        k: places, at most the size of the catalogue.
    """
    top = Recommendations.missing(len(histories), k)
    lengths_U = np.maximum(histories.lengths, excluded.lengths)
    _fill_ranked(top, scorer, histories, excluded, candidates, lengths_U)
    if popular is not None and len(popular.items_M):
        _fill_popular(top, popular, np.flatnonzero(histories.lengths == 0), excluded, candidates)
    return top


def reasons(
    recommended_U: NDArray[np.int32],
    histories: Histories,
    excluded: Histories,
    candidates: Candidates,
    popular: Popular | None,
    k: int,
) -> NDArray[np.int32]:
    """Why users got fewer than k items, as positions in `REASONS`; -1 where they did not."""
    popular_I = np.zeros(len(candidates.allowed_I), dtype=np.bool_)
    if popular is not None:
        popular_I[popular.items_M] = True
    ranked_U = histories.lengths > 0
    allowed_U = np.where(ranked_U, len(candidates), np.count_nonzero(popular_I))
    left_U = allowed_U - np.where(ranked_U, excluded.count(candidates.allowed_I), excluded.count(popular_I))
    conditions = (
        ~ranked_U & (popular is None),
        allowed_U < k,
        left_U < k,
        np.full(len(histories), bool(candidates.caps)),
    )
    reason_U = np.select(conditions, range(len(conditions)), default=len(conditions))
    return np.where(recommended_U < k, reason_U, -1).astype(np.int32)


def _fill_ranked(
    top: Recommendations,
    scorer: Scorer,
    histories: Histories,
    excluded: Histories,
    candidates: Candidates,
    lengths_U: NDArray[np.int64],
) -> None:
    """Places of the users with a history. Whom caps leave short is ranked again, and deeper, until nothing is left."""
    k = top.items_Uk.shape[1]
    most, waiting = candidates.most(k), np.flatnonzero(histories.lengths)
    depth = min(DEEPER * k, scorer.n_items) if candidates.caps else k
    allowed_I = None if candidates.allowed_I.all() else candidates.allowed_I
    while len(waiting):
        short = []
        for rows_B in batches(lengths_U[waiting], max(scorer.n_items, depth * scorer.n_concepts)):
            users_B = waiting[rows_B]
            found = scorer(histories.take(users_B), depth, excluded=excluded.take(users_B), allowed=allowed_I)
            at_Bk = candidates.choose(found.items, k)
            _fill_places(top, users_B, found, at_Bk)
            enough_B = (at_Bk >= 0).sum(axis=1) >= most
            short.append(users_B[~enough_B & (found.items[:, -1] >= 0)])
        waiting = np.sort(np.concatenate(short)) if depth < scorer.n_items else np.empty(0, dtype=np.int64)
        depth = min(DEEPER * depth, scorer.n_items)


def _fill_places(top: Recommendations, users_B: NDArray[np.int64], found: TopK, at_Bk: NDArray[np.int64]) -> None:
    """The chosen columns of what was found."""
    column_Bk, missing_Bk = np.maximum(at_Bk, 0), at_Bk < 0
    concept_BM = found.concept_shares.argmax(axis=2)
    share_BM = np.take_along_axis(found.concept_shares, concept_BM[..., None], axis=2)[..., 0]
    top.items_Uk[users_B] = np.where(missing_Bk, -1, np.take_along_axis(found.items, column_Bk, axis=1))
    top.scores_Uk[users_B] = np.where(missing_Bk, -np.inf, np.take_along_axis(found.scores, column_Bk, axis=1))
    top.concepts_Uk[users_B] = np.where(missing_Bk, NO_CONCEPT, np.take_along_axis(concept_BM, column_Bk, axis=1))
    top.shares_Uk[users_B] = np.where(missing_Bk, 0, np.take_along_axis(share_BM, column_Bk, axis=1))


def _fill_popular(
    top: Recommendations, popular: Popular, users: NDArray[np.int64], excluded: Histories, candidates: Candidates
) -> None:
    """Places of the users without one: the same for all from whom nothing is kept."""
    alike_U = excluded.lengths[users] == 0
    everyone, others = users[alike_U], users[~alike_U]
    _place_popular(top, everyone, popular, Histories.of([()]), candidates)
    # A batch holds a few tables as large as one of scores.
    for rows_B in batches(excluded.lengths[others], 4 * len(candidates.allowed_I)):
        _place_popular(top, others[rows_B], popular, excluded.take(others[rows_B]), candidates)


def _place_popular(
    top: Recommendations, users_B: NDArray[np.int64], popular: Popular, excluded: Histories, candidates: Candidates
) -> None:
    """What remains of popular items beside the excluded ones: of each user, or of one for all of them."""
    k = top.items_Uk.shape[1]
    excluded_BI = np.zeros((len(excluded), len(candidates.allowed_I)), dtype=np.bool_)
    excluded_BI[np.repeat(np.arange(len(excluded)), excluded.lengths), excluded.items_N] = True
    n_ranked = len(popular.items_M) if candidates.caps else k + int(excluded.lengths.max())
    item_M = popular.items_M[:n_ranked]
    at_Bk = candidates.choose(np.where(excluded_BI[:, item_M], -1, item_M), k)
    top.items_Uk[users_B] = np.where(at_Bk < 0, -1, item_M[at_Bk])
    top.scores_Uk[users_B] = np.where(at_Bk < 0, -np.inf, popular.scores_M[at_Bk])
