from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.spectral
from pipeline.config import ModelConfig
from pipeline.histories import Histories
from pipeline.spectral import spectral_start, spherical_k_means

BLOCKS, BLOCK, USERS = 4, 15, 200


def planted(seed: int = 0) -> Histories:
    """Each user takes 8 of the 15 items of a block, and one of any."""
    rng = np.random.default_rng(seed)
    own = [rng.choice(BLOCK, 8, replace=False) + BLOCK * rng.integers(BLOCKS) for _ in range(USERS)]
    return Histories.of([sorted({*items.tolist(), int(rng.integers(BLOCKS * BLOCK))}) for items in own])


def config(size: int, n_concepts: int) -> ModelConfig:
    return ModelConfig(embedding_size=size, n_concepts=n_concepts)


def test_planted_blocks_are_found_whatever_the_seed() -> None:
    for seed in range(5):
        items_ID, prototypes_CD = spectral_start(planted(), BLOCKS * BLOCK, config(8, BLOCKS), seed)
        nearest = (items_ID @ prototypes_CD.T).argmax(axis=1).reshape(BLOCKS, BLOCK)
        assert (nearest == nearest[:, :1]).all()
        assert len(set(nearest[:, 0].tolist())) == BLOCKS
        for table in (items_ID, prototypes_CD):
            assert table.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("iterations", "tolerance"), [(None, 0.03), (200, 1e-4)])
def test_item_vectors_against_a_dense_decomposition(
    monkeypatch: pytest.MonkeyPatch, iterations: int | None, tolerance: float
) -> None:
    """Cosines, because a singular vector's sign is anybody's choice; nearly so after few rounds, and in the limit."""
    if iterations:
        monkeypatch.setattr(pipeline.spectral, "ITERATIONS", iterations)
    users = planted()
    x_UI = np.zeros((USERS, BLOCKS * BLOCK))
    for user in range(USERS):
        x_UI[user, users[user]] = 1
    x_UI /= np.sqrt(np.outer(x_UI.sum(1), x_UI.sum(0)))
    _, s, vt = np.linalg.svd(x_UI)
    expected_ID = (vt[1:9] * s[1:9, None]).T
    expected_ID /= np.linalg.norm(expected_ID, axis=1, keepdims=True)
    items_ID, _ = spectral_start(users, BLOCKS * BLOCK, config(8, 2), 0)
    np.testing.assert_allclose(items_ID @ items_ID.T, expected_ID @ expected_ID.T, atol=tolerance)


@pytest.mark.parametrize("users", [planted(), Histories.of([[2 * u, 2 * u + 1] for u in range(4)] * 3)])
def test_the_same_seed_gives_the_same_bits(users: Histories) -> None:
    """Also where all singular values are equal, as of users who have nothing in common."""
    first, again = (spectral_start(users, BLOCKS * BLOCK, config(8, BLOCKS), 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("n_users", [1, 3])
def test_few_users_and_many_dimensions(n_users: int) -> None:
    """What the interactions do not span stays 0, and nothing is undefined; items nobody has get a vector too."""
    users = Histories.of([[0, 1], [1, 2], [0, 3]][:n_users])
    items_ID, prototypes_CD = spectral_start(users, 6, config(10, 7), 0)
    assert items_ID.shape == (6, 10)
    assert prototypes_CD.shape == (7, 10)
    for table in (items_ID, prototypes_CD):
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    assert not items_ID[:, n_users:].any()


def test_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.spectral, "SAMPLED_USERS", 60)
    whole, sample = planted(), []
    take = Histories.take
    monkeypatch.setattr(Histories, "take", lambda self, users: sample.append(users) or take(self, users))
    items_ID, prototypes_CD = spectral_start(whole, BLOCKS * BLOCK, config(8, BLOCKS), 0)
    assert len(np.unique(sample[0])) == 60
    nearest = (items_ID @ prototypes_CD.T).argmax(axis=1).reshape(BLOCKS, BLOCK)
    assert (nearest == nearest[:, :1]).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_k_means_ends_where_no_row_and_no_centre_moves(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    unit_ID = rng.normal(size=(40, 3)).astype(np.float32)
    unit_ID /= np.linalg.norm(unit_ID, axis=1, keepdims=True)
    centre_CD = spherical_k_means(unit_ID, n, rng)
    nearest_I = (unit_ID @ centre_CD.T).argmax(axis=1)
    assert len(np.unique(nearest_I)) == n
    for c in range(n):
        mean_D = unit_ID[nearest_I == c].sum(axis=0)
        np.testing.assert_allclose(centre_CD[c], mean_D / np.linalg.norm(mean_D), atol=1e-5)


def test_k_means_of_equal_rows() -> None:
    centre_CD = spherical_k_means(np.tile(np.eye(3, dtype=np.float32)[:1], (5, 1)), 3, np.random.default_rng(0))
    assert centre_CD.tolist() == [[1, 0, 0]] * 3
