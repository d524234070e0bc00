from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dci import dci, lasso


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.5))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_lasso_meets_its_optimality_conditions(seed: int, penalty: float) -> None:
    """x'(y - x w) / N is penalty * sign(w) where w is not 0, and within the penalty where it is."""
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(40, 8)) @ rng.normal(size=(8, 8))
    x_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    y_NG = x_ND[:, :2] + rng.normal(size=(40, 2))
    weight_DG = lasso(x_ND, y_NG, penalty)
    slope_DG = x_ND.T @ (y_NG - x_ND @ weight_DG) / 40
    assert np.abs(slope_DG).max() <= penalty + 1e-3
    np.testing.assert_allclose(slope_DG[weight_DG != 0], penalty * np.sign(weight_DG[weight_DG != 0]), atol=1e-3)


def test_lasso_of_orthogonal_columns_is_a_soft_threshold() -> None:
    x_ND = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    y_NG = x_ND @ np.array([[2.0, 0.05], [-0.5, 1.0]])
    np.testing.assert_allclose(lasso(x_ND, y_NG, 0.1), [[1.9, 0.0], [-0.4, 0.9]], atol=1e-6)


def test_a_dimension_per_factor_is_perfect() -> None:
    factor_NG = np.random.default_rng(0).normal(size=(2000, 4))
    found = dci(factor_NG[:, [2, 0, 3, 1]] * [1, -5, 0.1, 3] + 2, factor_NG)
    assert found.disentanglement == pytest.approx(1, abs=0.01)
    assert found.completeness == pytest.approx(1, abs=0.01)
    assert found.informativeness > 0.98


def test_two_dimensions_per_factor_are_disentangled_but_not_complete() -> None:
    """Each factor is the sum of two dimensions of the code: its importances are halves of 2 of 4 dimensions."""
    code_ND = np.random.default_rng(0).normal(size=(4000, 4))
    found = dci(code_ND, code_ND[:, :2] + code_ND[:, 2:])
    assert found.disentanglement == pytest.approx(1, abs=0.01)
    assert found.completeness == pytest.approx(0.5, abs=0.01)


def test_a_dimension_of_two_factors_is_complete_but_not_disentangled() -> None:
    factor_NG = np.random.default_rng(0).normal(size=(4000, 2))
    both_N1 = factor_NG.sum(axis=1, keepdims=True)
    other_N1 = np.random.default_rng(1).normal(size=(4000, 1))
    found = dci(np.hstack([both_N1, other_N1]), factor_NG)
    assert found.disentanglement == pytest.approx(0, abs=0.01)
    assert found.completeness == pytest.approx(1, abs=0.01)


def test_noise_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    assert dci(rng.normal(size=(500, 20)), rng.normal(size=(500, 3))).informativeness < 0.01
    constant = np.ones((10, 3))
    assert dci(constant, rng.normal(size=(10, 2))) == (0, 0, 0)
    assert dci(rng.normal(size=(10, 2)), constant) == (0, 0, 0)


def test_units_and_constants_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    factor_NG = rng.dirichlet(np.ones(3), 300)
    code_ND = factor_NG @ rng.normal(size=(3, 5)) + 0.1 * rng.normal(size=(300, 5))
    scaled_ND = np.insert(code_ND * [1, 2, 3, -4, 5] + 7, 1, 3.0, axis=1)
    np.testing.assert_allclose(dci(scaled_ND, np.insert(factor_NG, 0, 1.0, axis=1)), dci(code_ND, factor_NG), atol=0.02)
