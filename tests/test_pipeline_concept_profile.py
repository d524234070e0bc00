"""What a concept is, on assignments small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concept_profile import profile_concepts
from pipeline.vocabulary import Vocabulary

ASSIGNMENT = np.array([[0.9, 0.1], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]], dtype=np.float32)
ITEMS = Vocabulary(
    pl.DataFrame(
        {
            "item_number": pl.Series(range(4), dtype=pl.Int32),
            "item_id": [11, 12, 13, 14],
            "n_interactions": [10, 20, 40, 30],
            "title": ["Kettle", None, "Tent", "Lamp"],
        }
    )
)


def test_shares_and_top_items() -> None:
    median, concepts = profile_concepts(ASSIGNMENT, ITEMS, top_items=2)
    assert median == pytest.approx((0.75 + 0.9) / 2)
    assert [concept.concept for concept in concepts] == [0, 1]
    assert [concept.items for concept in concepts] == [0.5, 0.5]  # the second item ties, and counts for the first
    assert [concept.interactions for concept in concepts] == pytest.approx([0.29, 0.71])
    first, second = (concept.top_items for concept in concepts)
    assert [item.item_id for item in first] == [12, 13]  # 10 each: by item number
    assert [item.item_id for item in second] == [13, 14]  # 30 each
    assert [(item.title, item.name) for item in first] == [(None, "12"), ("Tent", "Tent")]
    assert [(item.assignment, item.n_interactions) for item in second] == [(0.75, 40), (1.0, 30)]


def test_without_titles_or_with_fewer_items_than_places() -> None:
    ids = Vocabulary.of(pl.Series(["a", "b"]), np.array([0, 0]))
    concepts = profile_concepts(np.ones((2, 1), dtype=np.float32), ids).concepts
    assert [item.name for item in concepts[0].top_items] == ["a", "b"]
    assert (concepts[0].items, concepts[0].interactions) == (1.0, 0.0)


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_shares_sum_to_one_and_top_items_fall(n_concepts: int, n_items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assignment = rng.dirichlet(np.ones(n_concepts), n_items)
    vocabulary = Vocabulary.of(pl.Series(range(n_items)), rng.integers(1, 9, n_items).astype(np.int64))
    median, concepts = profile_concepts(assignment, vocabulary)
    assert 1 / n_concepts <= median + 1e-12 <= 1 + 1e-9
    assert sum(concept.items for concept in concepts) == pytest.approx(1)
    assert sum(concept.interactions for concept in concepts) == pytest.approx(1)
    for concept in concepts:
        weights = [item.assignment * item.n_interactions for item in concept.top_items]
        assert weights == sorted(weights, reverse=True)
        counts = vocabulary.items["n_interactions"].to_numpy()
        assert weights[0] == pytest.approx((assignment[:, concept.concept] * counts).max())
