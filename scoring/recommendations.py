"""Recommendations: the k best items for each of many histories, and what those get of whom nothing is known.

Shape letters: U users, B users of a batch, k places, I items of the catalogue, M items with interactions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.histories import Histories, batches
from pipeline.scorer import Scorer
from pipeline.vocabulary import Vocabulary

NO_CONCEPT = -1


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


def popular_items(vocabulary: Vocabulary, k: int) -> Recommendations:
    """One row: the items with the most interactions in training, scored by the natural log of their share of all.

    Items without any interaction are left out.
    """
    count_I = vocabulary.items["n_interactions"].to_numpy()
    items_M = vocabulary.popular()[:k]
    items_M = items_M[count_I[items_M] > 0]
    popular = Recommendations.missing(1, k)
    popular.items_Uk[0, : len(items_M)] = items_M
    popular.scores_Uk[0, : len(items_M)] = np.log(count_I[items_M] / count_I.sum())
    return popular


def recommend(
    scorer: Scorer, histories: Histories, fallback: Recommendations, *, keep_seen: bool = False
) -> Recommendations:
    """The best items for each history, in the order of the histories.

    Args:
        scorer: ranks the catalogue.
        histories: of U users.
        fallback: one row of k places, for users without history.
        keep_seen: whether items of the history itself may be recommended.
    """
    k = fallback.items_Uk.shape[1]
    top = Recommendations.missing(len(histories), k)
    top.items_Uk[histories.lengths == 0] = fallback.items_Uk
    top.scores_Uk[histories.lengths == 0] = fallback.scores_Uk
    with_history = np.flatnonzero(histories.lengths)
    for rows_B in batches(histories.lengths[with_history], scorer.n_items):
        users_B = with_history[rows_B]
        batch = histories.take(users_B)
        found = scorer(batch, k, excluded=None if keep_seen else batch)
        concept_Bk = found.concept_shares.argmax(axis=2)
        top.items_Uk[users_B] = found.items
        top.scores_Uk[users_B] = found.scores
        top.concepts_Uk[users_B] = concept_Bk
        top.shares_Uk[users_B] = np.take_along_axis(found.concept_shares, concept_Bk[..., None], axis=2)[..., 0]
    return top
