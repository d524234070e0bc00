"""Concept profile: what each concept is, told by its items. For people, so it goes by ids and titles.

Shape letters: I items, C concepts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline.vocabulary import Vocabulary

TOP_ITEMS = 5
"""Items named for each concept."""


class TopItem(BaseModel, extra="forbid", frozen=True, strict=True):
    """An item that is typical of a concept."""

    item_id: int | str
    title: str | None
    """Of the vocabulary's column `title`, where it has one."""
    assignment: float
    """Share of the item in the concept."""
    n_interactions: int
    """Of training."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.title or str(self.item_id)


class Concept(BaseModel, extra="forbid", frozen=True, strict=True):
    """One concept."""

    concept: int
    items: float
    """Share of the items that belong to this concept more than to any other; of equals, the first."""
    interactions: float
    """Share of the training interactions, each divided among concepts as its item is."""
    top_items: list[TopItem]
    """By share in the concept times interactions, largest first; equal ones by item number."""


class Profile(NamedTuple):
    """All concepts of a model."""

    median_largest_assignment: float
    """Over items, of the share in the concept each belongs to most: 1 / C where concepts are the same, 1 where every
    item is of one concept."""
    concepts: list[Concept]


def profile_concepts(
    assignment_IC: NDArray[np.floating], vocabulary: Vocabulary, top_items: int = TOP_ITEMS
) -> Profile:
    """Describe every concept.

    Args:
        assignment_IC: share of each item in each concept, rows sum to 1.
        vocabulary: row i is item i.
        top_items: how many to name, at most.
    """
    share_IC = assignment_IC.astype(np.float64)
    n_I = vocabulary.items["n_interactions"].to_numpy()
    n_concepts, largest_I = share_IC.shape[1], share_IC.argmax(axis=1)
    items_C = np.bincount(largest_I, minlength=n_concepts) / len(n_I)
    interactions_C = n_I @ share_IC / max(1, n_I.sum())
    top_CI = np.argsort(-(share_IC * n_I[:, None]).T, axis=1, kind="stable")[:, :top_items]
    concepts = [
        Concept(
            concept=concept,
            items=float(items_C[concept]),
            interactions=float(interactions_C[concept]),
            top_items=_top_items(top_CI[concept], share_IC[:, concept], vocabulary),
        )
        for concept in range(n_concepts)
    ]
    return Profile(float(np.median(share_IC.max(axis=1))), concepts)


def _top_items(items: NDArray[np.int64], share_I: NDArray[np.float64], vocabulary: Vocabulary) -> list[TopItem]:
    return [
        TopItem(
            item_id=row["item_id"],
            title=None if row.get("title") is None else str(row["title"]),
            assignment=float(share_I[row["item_number"]]),
            n_interactions=row["n_interactions"],
        )
        for row in vocabulary.items[items].to_dicts()
    ]
