from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.ranking import in_order, top_k


def ranked(score_BI: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return in_order(*top_k(score_BI, k))


def by_score_then_item(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item))


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[float]], int]:
    """Rows of few distinct scores, some of them zero (unavailable), and how many places to fill."""
    n_items = draw(st.integers(1, 12))
    few_scores = st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 1e-30, 3.0, -1.0])
    row = st.lists(few_scores, min_size=n_items, max_size=n_items)
    return draw(st.lists(row, min_size=1, max_size=4)), draw(st.integers(1, n_items))


@settings(max_examples=400, derandomize=True, deadline=None)
@given(tables())
@example(([[1.0] * 12], 5))
@example(([[0.0] * 3], 2))
@example(([[2.0]], 1))
def test_equals_a_sort_by_score_and_item(table: tuple[list[list[float]], int]) -> None:
    rows, k = table
    scores_Bk, items_Bk = ranked(torch.tensor(rows, dtype=torch.float64), k)
    for row, scores, items in zip(rows, scores_Bk.tolist(), items_Bk.tolist(), strict=True):
        expected = by_score_then_item(row)[:k]
        assert scores == [row[item] for item in expected]
        n_available = sum(row[item] > 0 for item in expected)
        assert items[:n_available] == expected[:n_available]


@pytest.mark.parametrize("k", [1, 2, 499, 500, 501, 999, 1000])
def test_ties_across_the_last_place_of_long_rows(k: int) -> None:
    """Half of the items tie, so for most k the last place lies within a tie of 500."""
    generator = torch.Generator().manual_seed(k)
    score_BI = torch.randint(0, 2, (7, 1000), generator=generator) + 1.0
    score_BI[3] = 1
    _, items_Bk = ranked(score_BI, k)
    for row, items in zip(score_BI.tolist(), items_Bk.tolist(), strict=True):
        assert items == by_score_then_item(row)[:k]


def test_integer_scores() -> None:
    score_BI = torch.tensor([[3, 1, 3, 2, 2, 2], [0, 0, 1, 1, 0, 1]])
    scores_Bk, items_Bk = ranked(score_BI, 4)
    assert scores_Bk.tolist() == [[3, 3, 2, 2], [1, 1, 1, 0]]
    assert items_Bk.tolist()[0] == [0, 2, 3, 4]
    assert items_Bk.tolist()[1][:3] == [2, 3, 5]


def test_types_and_shapes() -> None:
    scores_Bk, items_Bk = ranked(torch.rand(2, 9, generator=torch.Generator().manual_seed(0)), 3)
    assert (scores_Bk.dtype, items_Bk.dtype) == (torch.float32, torch.int64)
    assert scores_Bk.shape == items_Bk.shape == (2, 3)


def test_no_users() -> None:
    scores_Bk, items_Bk = ranked(torch.empty(0, 5), 3)
    assert scores_Bk.shape == items_Bk.shape == (0, 3)


def test_equal_logarithms_of_different_likelihoods_go_by_item() -> None:
    likelihood_BI = torch.tensor([[0.5, 0.75, 0.50000006]])
    item_Bk = top_k(likelihood_BI, 3)[1]
    assert item_Bk.tolist() == [[1, 2, 0]]
    score_Bk = torch.tensor([[-0.25, -0.5, -0.5]])
    assert in_order(score_Bk, item_Bk)[1].tolist() == [[1, 0, 2]]


def test_scores_that_rose_again_in_rounding_are_put_in_order() -> None:
    scores, items = in_order(torch.tensor([[-1.0, -3.0, -2.0]]), torch.tensor([[7, 8, 9]]))
    assert scores.tolist() == [[-1, -2, -3]]
    assert items.tolist() == [[7, 9, 8]]
