"""One conformance suite over the eager model and every exported format, against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import reference
import torch
from conftest import SMALL, SMALL_ITEMS, model_weights, random_histories

from pipeline.checkpoint import read_checkpoint
from pipeline.eager import EagerScorer
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK
from scoring.runtimes import open_scorer, padded, scoring_device

CPU = ["eager", "onnx", "torchscript", "pt2"]
CUDA = [pytest.param(f"{name}-cuda", marks=pytest.mark.gpu) for name in CPU]
BATCHES = {
    "one user": [7],
    "one empty history": [0],
    "two users, both empty": [0, 0],
    "empty, single, longest": [0, 1, SMALL_ITEMS],
    "odd batch": [int(n) for n in np.random.default_rng(0).integers(0, 60, 33)],
    "large batch": [int(n) for n in np.random.default_rng(1).integers(0, 20, 255)],
}


@pytest.fixture(scope="module", params=[*CPU, *CUDA])
def scorer(request: pytest.FixtureRequest, checkpoint: Path, bundle: Path) -> Scorer:
    name, _, device = request.param.partition("-")
    device = device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    if name == "eager":
        return EagerScorer(read_checkpoint(checkpoint).model().to(device))
    return open_scorer(bundle, name, device)


def expected(histories: Histories, concept_weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities [B, I] and concept shares [B, I, C] of the whole catalogue, by the float64 reference."""
    weights = {name: weight.double().numpy() for name, weight in model_weights(SMALL, SMALL_ITEMS).items()}
    x_BI = reference.dense(histories, SMALL_ITEMS)
    if concept_weights is None:
        return reference.recommend(weights, SMALL.model, x_BI)
    with np.errstate(divide="ignore", invalid="ignore"):  # no concept left: log 0, and no shares
        return reference.recommend(weights, SMALL.model, x_BI, concept_weights.astype(np.float64))


def check(
    found: TopK,
    histories: Histories,
    k: int,
    *,
    excluded: Histories | None = None,
    allowed: np.ndarray | None = None,
    concept_weights: np.ndarray | None = None,
) -> None:
    """The best k of the reference, up to float32 noise, with their scores and shares."""
    scores_BI, shares_BIC = expected(histories, concept_weights)
    assert found.items.shape == found.scores.shape == (len(histories), k)
    assert found.concept_shares.shape == (len(histories), k, SMALL.model.n_concepts)
    assert (found.items.dtype, found.scores.dtype, found.concept_shares.dtype) == (np.int64, np.float32, np.float32)
    for user in range(len(histories)):
        candidate_I = np.isfinite(scores_BI[user])
        if excluded is not None:
            candidate_I[excluded[user]] = False
        if allowed is not None:
            candidate_I &= allowed
        n = min(k, int(candidate_I.sum()))
        items = found.items[user, :n]
        assert (found.items[user, n:] == -1).all()
        assert np.isneginf(found.scores[user, n:]).all()
        assert (found.concept_shares[user, n:] == 0).all()
        assert candidate_I[items].all()
        assert len(set(items.tolist())) == n
        np.testing.assert_allclose(found.scores[user, :n], scores_BI[user, items], atol=3e-5)
        np.testing.assert_allclose(found.concept_shares[user, :n], shares_BIC[user, items], atol=3e-5)
        best = np.sort(scores_BI[user, candidate_I])[::-1][:n]
        np.testing.assert_allclose(found.scores[user, :n], best, atol=3e-5)
        key = list(zip(-found.scores[user, :n], items, strict=True))
        assert key == sorted(key)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("k", [1, 100, SMALL_ITEMS, SMALL_ITEMS + 1])
def test_best_items_with_history_excluded(scorer: Scorer, lengths: list[int], k: int) -> None:
    histories = random_histories(lengths, SMALL_ITEMS)
    check(scorer(histories, k, excluded=histories), histories, k, excluded=histories)


def test_nothing_excluded(scorer: Scorer) -> None:
    histories = random_histories([0, 4, 12], SMALL_ITEMS)
    top = scorer(histories, SMALL_ITEMS)
    check(top, histories, SMALL_ITEMS)
    np.testing.assert_allclose(np.exp(top.scores.astype(np.float64)).sum(axis=1), 1, atol=3e-5)
    np.testing.assert_allclose(top.concept_shares.sum(axis=2), 1, atol=1e-6)


def test_everything_excluded(scorer: Scorer) -> None:
    histories = random_histories([5, 0], SMALL_ITEMS)
    everything = Histories.of([range(SMALL_ITEMS)] * 2)
    check(scorer(histories, 10, excluded=everything), histories, 10, excluded=everything)


def test_one_item_allowed(scorer: Scorer) -> None:
    histories = random_histories([5, 0, 1], SMALL_ITEMS)
    allowed = np.zeros(SMALL_ITEMS, dtype=np.bool_)
    allowed[77] = True
    top = scorer(histories, 3, allowed=allowed)
    check(top, histories, 3, allowed=allowed)
    assert top.items[:, 0].tolist() == [77, 77, 77]


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 0, 1), (0.25, 2, 0.5), (0, 0, 0)])
def test_concept_weights(scorer: Scorer, weights: tuple[float, ...]) -> None:
    histories = random_histories([5, 0, 20], SMALL_ITEMS)
    weights_BC = np.tile(np.asarray(weights, dtype=np.float32), (3, 1))
    weights_BC[1] = 1
    top = scorer(histories, 20, concept_weights=weights_BC)
    check(top, histories, 20, concept_weights=weights_BC)
    if sum(weights) == max(weights) > 0:
        assert (top.concept_shares[0].argmax(axis=1) == int(np.argmax(weights))).all()


def test_a_history_is_a_set(scorer: Scorer) -> None:
    """The exported graphs see no order, to the bit, and drop repeats (the eager model is only given ordered sets)."""
    if isinstance(scorer, EagerScorer):
        pytest.skip("histories are sets before they reach the eager model")
    histories = random_histories([6, 3], SMALL_ITEMS)
    once = scorer(histories, 50)
    backwards = Histories.of([histories[0][::-1].tolist(), histories[1][::-1].tolist()])
    assert [a.tobytes() for a in scorer(backwards, 50)] == [a.tobytes() for a in once]
    repeated = scorer(Histories.of([[*histories[0].tolist(), *histories[0].tolist()], histories[1].tolist()]), 50)
    np.testing.assert_array_equal(repeated.items, once.items)
    np.testing.assert_allclose(repeated.scores, once.scores, atol=2e-6)


def test_unknown_items_are_ignored(scorer: Scorer) -> None:
    """Item number n_items stands for whatever the vocabulary does not know: of such items alone, an empty history."""
    if isinstance(scorer, EagerScorer):
        pytest.skip("unknown items are dropped before they reach the eager model")
    known = random_histories([4, 0, 0], SMALL_ITEMS)
    unknown = Histories.of([[*known[0].tolist(), SMALL_ITEMS], [SMALL_ITEMS], [SMALL_ITEMS, SMALL_ITEMS]])
    for found, expected in zip(scorer(unknown, 50), scorer(known, 50), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_twice_gives_equal_bits_and_draws_nothing(scorer: Scorer) -> None:
    histories = random_histories([5, 0, 20, 3], SMALL_ITEMS)
    state = torch.get_rng_state()
    first, second = (scorer(histories, 100, excluded=histories) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]
    assert torch.equal(state, torch.get_rng_state())


def test_a_user_does_not_depend_on_the_batch(scorer: Scorer) -> None:
    histories = random_histories([5, 0, 20, 3, 60], SMALL_ITEMS)
    together = scorer(histories, 50, excluded=histories)
    for user in range(len(histories)):
        alone = histories.take(np.array([user]))
        top = scorer(alone, 50, excluded=alone)
        np.testing.assert_allclose(top.scores[0], together.scores[user], atol=5e-6)
        assert len(set(top.items[0].tolist()) ^ set(together.items[user].tolist())) <= 2


def test_padding_of_exclusions() -> None:
    rows = padded(Histories.of([[3, 5], [], [1, 2, 4]]), 3, 9)
    assert rows.tolist() == [[3, 5, 9], [9, 9, 9], [1, 2, 4]]
    assert padded(None, 2, 9).shape == (2, 0)


def test_cuda_without_cuda_is_an_error(bundle: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError) as error:
        open_scorer(bundle, "torchscript", "cuda")
    assert str(error.value) == (
        "--device cuda was asked for, but torch finds no CUDA device. "
        "Run on a machine with a GPU and a CUDA build of torch, or choose --device cpu."
    )
    with pytest.raises(InputError) as error:
        open_scorer(bundle, "onnx", "cuda")
    assert str(error.value) == (
        "--device cuda was asked for, but ONNX Runtime can only offer CPUExecutionProvider. "
        "Run on a machine with a GPU and its CUDA libraries, or choose --device cpu."
    )
    assert scoring_device("onnx", "auto") == scoring_device("torchscript", "auto") == "cpu"
    assert scoring_device("onnx", "cuda") == "cuda"


def test_a_format_that_the_bundle_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_scorer(tmp_path, "torchscript", "cpu")
    assert str(error.value) == (
        f"{tmp_path} holds no torchscript graph (model.torchscript.pt). Run: pipeline export --format torchscript"
    )


def test_the_onnx_file_names_its_inputs_and_outputs(bundle: Path) -> None:
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {entry.name: (entry.type, entry.shape) for entry in session.get_inputs()}
    assert list(inputs) == ["history_items", "history_offsets", "excluded", "allowed", "concept_weights", "k"]
    assert inputs["allowed"] == ("tensor(bool)", [SMALL_ITEMS])
    assert inputs["concept_weights"][1][1] == 3
    assert inputs["k"] == ("tensor(int64)", [])
    assert [entry.name for entry in session.get_outputs()] == ["items", "scores", "concept_shares"]
