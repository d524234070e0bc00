from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import pipeline.eager
from pipeline.config import ModelConfig
from pipeline.eager import EagerScorer, to_batch
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.scorer import TopK

N_ITEMS, N_CONCEPTS = 40, 3
CONFIG = ModelConfig(n_concepts=N_CONCEPTS, embedding_size=6, encoder_hidden_sizes=[10, 8])
WEIGHTS = reference.random_weights(CONFIG, N_ITEMS)
HISTORIES = Histories.of([(), (7,), range(N_ITEMS), (0, 3, 11, 39), (5, 6)])
CONCEPT_WEIGHTS = np.array([[1, 1, 1], [0, 1, 0], [0.25, 0, 2], [0, 0, 1], [3, 0.5, 0.125]], dtype=np.float32)


def scorer(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> EagerScorer:
    model = MacridVAE(N_ITEMS, config).to(dtype)
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in WEIGHTS.items()})
    return EagerScorer(model)


def by_item(top: TopK, n_items: int = N_ITEMS) -> tuple[np.ndarray, np.ndarray]:
    """(scores [B, I], concept shares [B, I, C]) of a ranking of the whole catalogue, in order of item numbers."""
    order = np.argsort(top.items, axis=1)
    assert (np.take_along_axis(top.items, order, axis=1) == np.arange(n_items)).all()
    return np.take_along_axis(top.scores, order, axis=1), np.take_along_axis(
        top.concept_shares, order[:, :, None], axis=1
    )


def expected_ranking(scores_I: np.ndarray, k: int, banned: set[int]) -> list[int]:
    allowed = [item for item in range(len(scores_I)) if item not in banned and np.isfinite(scores_I[item])]
    return sorted(allowed, key=lambda item: (-scores_I[item], item))[:k]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("concept_weights", [None, CONCEPT_WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("norm", ["per-concept", "history"])
def test_scores_and_shares_equal_the_reference(
    norm: str, concept_weights: np.ndarray | None, dtype: torch.dtype, tolerance: float
) -> None:
    config = CONFIG.model_copy(update={"history_norm": norm})
    top = scorer(config, dtype)(HISTORIES, N_ITEMS, concept_weights=concept_weights)
    scores_BI, shares_BIC = by_item(top)
    expected_BI, expected_BIC = reference.recommend(
        WEIGHTS, config, reference.dense(HISTORIES, N_ITEMS), concept_weights
    )
    np.testing.assert_allclose(scores_BI, expected_BI, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(shares_BIC, expected_BIC, rtol=0, atol=tolerance)


def test_types_and_shapes() -> None:
    top = scorer()(HISTORIES, 9)
    assert (top.items.dtype, top.scores.dtype, top.concept_shares.dtype) == (np.int64, np.float32, np.float32)
    assert (top.items.shape, top.scores.shape, top.concept_shares.shape) == ((5, 9), (5, 9), (5, 9, N_CONCEPTS))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, N_ITEMS - 1)).map(sorted), min_size=1, max_size=4),
    st.integers(1, N_ITEMS + 5),
    st.booleans(),
    st.none() | st.sets(st.integers(0, N_ITEMS - 1)),
    st.booleans(),
)
def test_exclusions(histories: list[list[int]], k: int, exclude: bool, forbidden: set[int] | None, weigh: bool) -> None:
    """What may not be returned is missing, and nothing else changes: neither the order nor a score."""
    users = Histories.of(histories)
    allowed = None if forbidden is None else ~np.isin(np.arange(N_ITEMS), sorted(forbidden))
    weights = CONCEPT_WEIGHTS[: len(histories)] if weigh else None
    top = scorer(dtype=torch.float64)(
        users, k, excluded=users if exclude else None, allowed=allowed, concept_weights=weights
    )
    scores_BI, shares_BIC = reference.recommend(WEIGHTS, CONFIG, reference.dense(users, N_ITEMS), weights)
    assert top.items.shape == (len(histories), k)
    for user, history in enumerate(histories):
        banned = (set(history) if exclude else set()) | (forbidden or set())
        wanted = expected_ranking(scores_BI[user], k, banned)
        n = len(wanted)
        assert top.items[user].tolist() == wanted + [-1] * (k - n)
        np.testing.assert_allclose(top.scores[user, :n], scores_BI[user, wanted], rtol=1e-12)
        assert (top.scores[user, n:] == -np.inf).all()
        np.testing.assert_allclose(top.concept_shares[user, :n], shares_BIC[user, wanted], rtol=0, atol=1e-12)
        assert (top.concept_shares[user, n:] == 0).all()


def test_excluded_need_not_be_the_history() -> None:
    plain = scorer()(HISTORIES, N_ITEMS)
    best = plain.items[:, :2]
    top = scorer()(HISTORIES, 5, excluded=Histories.of(np.sort(best, axis=1).tolist()))
    np.testing.assert_array_equal(top.items, plain.items[:, 2:7])
    np.testing.assert_array_equal(top.scores, plain.scores[:, 2:7])


def test_more_places_than_items() -> None:
    top = scorer()(HISTORIES, N_ITEMS + 3, excluded=HISTORIES)
    for user, length in enumerate(HISTORIES.lengths):
        n = N_ITEMS - length
        assert (top.items[user, :n] >= 0).all()
        assert (top.items[user, n:] == -1).all()
        assert np.isfinite(top.scores[user, :n]).all()
        assert (top.scores[user, n:] == -np.inf).all()
        assert (top.concept_shares[user, n:] == 0).all()


def test_probabilities_and_shares_sum_to_one() -> None:
    top = scorer()(HISTORIES, N_ITEMS, concept_weights=CONCEPT_WEIGHTS)
    np.testing.assert_allclose(np.logaddexp.reduce(top.scores.astype(np.float64), axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(top.concept_shares.sum(axis=2), 1, atol=1e-6)


def test_a_concept_of_weight_zero_has_no_share_and_an_only_concept_has_all() -> None:
    top = scorer()(HISTORIES, N_ITEMS, concept_weights=CONCEPT_WEIGHTS)
    assert (top.concept_shares[1] == [0, 1, 0]).all()
    assert (top.concept_shares[2, :, 1] == 0).all()


def test_weights_of_one_are_the_plain_model_and_a_common_factor_is_none() -> None:
    plain = scorer()(HISTORIES, 10)
    for factor in (1, 4):
        weighted = scorer()(HISTORIES, 10, concept_weights=np.full((5, N_CONCEPTS), factor, dtype=np.float32))
        np.testing.assert_array_equal(weighted.items, plain.items)
        np.testing.assert_allclose(weighted.scores, plain.scores, rtol=1e-6)
        np.testing.assert_allclose(weighted.concept_shares, plain.concept_shares, rtol=1e-6)


def test_no_concept_left_means_no_item() -> None:
    weights = CONCEPT_WEIGHTS.copy()
    weights[3] = 0
    top, plain = (
        scorer()(HISTORIES, 4, concept_weights=weights),
        scorer()(HISTORIES, 4, concept_weights=CONCEPT_WEIGHTS),
    )
    assert top.items[3].tolist() == [-1] * 4
    assert top.scores[3].tolist() == [-np.inf] * 4
    assert (top.concept_shares[3] == 0).all()
    others = [0, 1, 2, 4]
    for found, expected in zip(top, plain, strict=True):
        np.testing.assert_array_equal(found[others], expected[others])


def test_a_batch_equals_its_users_one_by_one() -> None:
    together = scorer()(HISTORIES, 12, excluded=HISTORIES, concept_weights=CONCEPT_WEIGHTS)
    for user in range(len(HISTORIES)):
        alone = HISTORIES.take(np.array([user]))
        top = scorer()(alone, 12, excluded=alone, concept_weights=CONCEPT_WEIGHTS[[user]])
        np.testing.assert_array_equal(top.items[0], together.items[user])
        np.testing.assert_allclose(top.scores[0], together.scores[user], rtol=1e-6)
        np.testing.assert_allclose(top.concept_shares[0], together.concept_shares[user], rtol=0, atol=1e-6)


def test_only_empty_histories() -> None:
    nobody = Histories.of([(), ()])
    top = scorer()(nobody, N_ITEMS, excluded=nobody)
    scores_BI, _ = by_item(top)
    expected_BI, _ = reference.recommend(WEIGHTS, CONFIG, reference.dense(nobody, N_ITEMS))
    np.testing.assert_allclose(scores_BI, expected_BI, rtol=1e-5)


def test_no_users() -> None:
    top = scorer()(Histories.of([]), 3)
    assert (top.items.shape, top.scores.shape, top.concept_shares.shape) == ((0, 3), (0, 3), (0, 3, N_CONCEPTS))


@pytest.mark.parametrize("width", [1, 7, N_ITEMS - 1])
def test_slices_change_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scorer(dtype=torch.float64)(HISTORIES, N_ITEMS)
    monkeypatch.setattr(pipeline.eager, "SLICE_ELEMENTS", width * N_CONCEPTS * len(HISTORIES))
    sliced = scorer(dtype=torch.float64)(HISTORIES, N_ITEMS)
    np.testing.assert_array_equal(sliced.items, whole.items)
    np.testing.assert_allclose(sliced.scores, whole.scores, rtol=1e-13)
    np.testing.assert_allclose(sliced.concept_shares, whole.concept_shares, rtol=0, atol=1e-13)


class RandomOperations(TorchDispatchMode):
    """Names every operation that draws from a generator, given or global."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_inference_has_no_random_operation() -> None:
    score = scorer()
    score.model.train()  # whatever the mode
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with RandomOperations() as inference:
        score(HISTORIES, 5, excluded=HISTORIES, concept_weights=CONCEPT_WEIGHTS)
    assert inference.names == []
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    with RandomOperations() as training:  # the measure sees what it should
        score.model.draw(to_batch(HISTORIES, torch.device("cpu")), torch.Generator().manual_seed(0))
    assert len(training.names) == 3


def test_the_same_bits_twice() -> None:
    one, other = (scorer()(HISTORIES, 20, excluded=HISTORIES, concept_weights=CONCEPT_WEIGHTS) for _ in range(2))
    assert [array.tobytes() for array in one] == [array.tobytes() for array in other]


def test_reads_the_weights_of_the_moment() -> None:
    score = scorer()
    before = score(HISTORIES, N_ITEMS).scores
    with torch.no_grad():
        score.model.prototypes.mul_(-1)
    assert not np.allclose(score(HISTORIES, N_ITEMS).scores, before)


def test_announces_its_size() -> None:
    assert (scorer().n_items, scorer().n_concepts) == (N_ITEMS, N_CONCEPTS)
