from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.concepts import duplicates, effective_concepts, entropy, independence, one_hot, stability


def test_independence_by_hand() -> None:
    """Correlations of the three columns: 1, 0 and 0 (the third is orthogonal to the first, centred)."""
    first = np.array([-1.0, -1, 1, 1])
    code_ND = np.stack([first, -3 * first + 7, [1, -1, 1, -1]], axis=1)
    assert independence(code_ND) == pytest.approx(2 / 3, abs=1e-12)
    assert independence(code_ND[:, :2]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("code_ND", [np.ones((5, 3)), np.arange(5.0)[:, None], np.zeros((5, 0))])
def test_fewer_than_two_varying_dimensions_are_independent(code_ND: NDArray[np.float64]) -> None:
    assert independence(code_ND) == 1


def test_a_constant_dimension_changes_nothing() -> None:
    code_ND = np.random.default_rng(0).normal(size=(50, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    with_constant = np.insert(code_ND, 2, 0.5, axis=1)
    assert independence(with_constant) == independence(code_ND)


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_independence_against_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    code_ND = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 5))
    z_ND = (code_ND - code_ND.mean(0)) / code_ND.std(0)
    pairs = [abs((z_ND[:, i] * z_ND[:, j]).mean()) for i, j in combinations(range(5), 2)]
    assert independence(code_ND) == pytest.approx(1 - 2 / (5 * 4) * sum(pairs), abs=1e-10)


def test_effective_concepts() -> None:
    assert effective_concepts(np.full((6, 4), 0.25)) == pytest.approx(4)
    assert effective_concepts(np.eye(4)[[2, 2, 2]]) == pytest.approx(1)
    assert effective_concepts(np.eye(4)[[0, 1, 0, 1]]) == pytest.approx(2)


def test_duplicates() -> None:
    prototypes_CD = np.array([[1.0, 0], [0, 2], [5, 0.1], [-1, 0]])
    assert duplicates(prototypes_CD) == [(0, 2)]
    assert duplicates(np.eye(3)) == []


def test_stability_by_hand() -> None:
    """Concept 0 became 1, and 1 became 0 but for the last item, which went to a third."""
    assert stability(np.eye(2)[[0, 0, 1, 1, 1]], np.eye(3)[[1, 1, 0, 0, 2]]) == 4 / 5
    assert stability(np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 0, 1]]) == 1 / 2


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_stability_is_the_best_of_all_correspondences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.dirichlet(np.ones(4), 30), rng.dirichlet(np.ones(4), 30)
    best = max(np.mean(np.array(order)[one.argmax(1)] == other.argmax(1)) for order in permutations(range(4)))
    assert stability(one, other) == pytest.approx(best)
    assert stability(other, one) == pytest.approx(best)
    assert stability(one, one[:, rng.permutation(4)]) == 1


def test_one_hot_takes_the_first_of_equals() -> None:
    assert one_hot(np.array([[0.5, 0.5], [0.4, 0.6]])).tolist() == [[1, 0], [0, 1]]


def test_entropy() -> None:
    assert entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))
    assert entropy(np.array([1.0, 0.0])) == 0
