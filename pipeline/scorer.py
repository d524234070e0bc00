"""Scorer: histories in, top-K items out. The eager model and every exported graph answer this one call.

Shape letters: B users of the batch, k places, C concepts, I items.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.histories import Histories


class TopK(NamedTuple):
    """The k best items per user, best first; equal scores go to the smaller item number."""

    items: NDArray[np.int64]
    """[B, k] item numbers; -1 where fewer than k items may be recommended."""
    scores: NDArray[np.float32]
    """[B, k] natural log of p(item | user), softmax over the whole catalogue before any exclusion; -inf at item -1."""
    concept_shares: NDArray[np.float32]
    """[B, k, C] how much each concept contributed to p(item | user); rows sum to 1 (0 at item -1)."""


class Scorer(Protocol):
    """Anything that ranks the catalogue for a batch of histories."""

    n_items: int
    n_concepts: int

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
        concept_weights: NDArray[np.float32] | None = None,
    ) -> TopK:
        """Rank the catalogue for each history.

        Args:
            histories: B sets of item numbers; an empty one is legal.
            k: places per user, 1 or more.
            excluded: per user, items never to return (usually the history itself). None: nothing is excluded.
            allowed: bool [I], the items that may be returned. None: all.
            concept_weights: float32 [B, C], multiplies each concept's term of p(item | user). None: 1 everywhere.
        """
        ...
