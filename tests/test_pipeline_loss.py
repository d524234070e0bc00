from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pipeline.loss
from pipeline.loss import catalogue_loss

N_CONCEPTS, N_USERS, N_ITEMS, SIZE = 2, 4, 7, 3
HISTORIES = [[], [4], [6, 0, 3, 5, 1, 2, 4], [5, 1]]
USERS_N = torch.tensor([user for user, history in enumerate(HISTORIES) for _ in history])
ITEMS_N = torch.tensor([item for history in HISTORIES for item in history])


def vectors(
    n_concepts: int = N_CONCEPTS, n_users: int = N_USERS, n_items: int = N_ITEMS, size: int = SIZE, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(z_CBD, items_ID, assignment_CI) in float64."""
    generator = torch.Generator().manual_seed(seed)
    z_CBD = torch.randn(n_concepts, n_users, size, dtype=torch.float64, generator=generator)
    items_ID = torch.randn(n_items, size, dtype=torch.float64, generator=generator)
    logits_CI = torch.randn(n_concepts, n_items, dtype=torch.float64, generator=generator)
    leaves = F.normalize(z_CBD, dim=-1), F.normalize(items_ID, dim=-1), torch.softmax(logits_CI, dim=0)
    return tuple(leaf.requires_grad_() for leaf in leaves)


def slow_loss(
    z_CBD: np.ndarray, items_ID: np.ndarray, assignment_CI: np.ndarray, histories: list[list[int]], temperature: float
) -> list[float]:
    """By definition, one user, item and concept at a time."""
    losses = []
    for user, history in enumerate(histories):
        odds = [
            sum(
                assignment_CI[c, item] * np.exp(np.dot(z_CBD[c, user], items_ID[item]) / temperature)
                for c in range(len(z_CBD))
            )
            for item in range(len(items_ID))
        ]
        losses.append(-sum(np.log(odds[item] / sum(odds)) for item in history))
    return losses


def dense_loss(z_CBD: Tensor, items_ID: Tensor, assignment_CI: Tensor, temperature: float) -> Tensor:
    """What the tiles replace: every term of every item at once, differentiated by autograd."""
    term_CBI = assignment_CI[:, None] * torch.exp(z_CBD @ items_ID.T / temperature)
    return -torch.log_softmax(term_CBI.sum(dim=0).log(), dim=1)


def set_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Make every slice of the catalogue this wide (the last one may be narrower)."""
    monkeypatch.setitem(pipeline.loss.TILE_ELEMENTS, "cpu", width * N_CONCEPTS * N_USERS)


@pytest.mark.parametrize("temperature", [0.025, 0.1, 1.0])
def test_equals_the_definition(temperature: float) -> None:
    leaves = vectors()
    found_B = catalogue_loss(*leaves, USERS_N, ITEMS_N, temperature).detach()
    expected_B = slow_loss(*(leaf.detach().numpy() for leaf in leaves), HISTORIES, temperature)
    np.testing.assert_allclose(found_B, expected_B, rtol=1e-9)
    assert found_B[0] == 0


@pytest.mark.parametrize("width", [1, 2, 3, N_ITEMS])
def test_gradcheck(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_width(monkeypatch, width)

    def loss_B(*leaves: Tensor) -> Tensor:
        return catalogue_loss(*leaves, USERS_N, ITEMS_N, 0.3)

    assert torch.autograd.gradcheck(loss_B, vectors(seed=1))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("width", "n_slices"), [(1, 7), (2, 4), (3, 3), (5, 2)])
def test_slices_change_nothing(width: int, n_slices: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.loss.KEPT_ELEMENTS, "cpu", N_CONCEPTS * N_USERS * N_ITEMS - (not kept))
    weight_B = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    match, widths = pipeline.loss._match, []

    def counting(scaled_CBD: Tensor, items_ID: Tensor) -> Tensor:
        widths.append(len(items_ID))
        return match(scaled_CBD, items_ID)

    monkeypatch.setattr(pipeline.loss, "_match", counting)
    results = []
    for at_once in (N_ITEMS, width):
        set_width(monkeypatch, at_once)
        leaves = vectors(seed=2)
        loss_B = catalogue_loss(*leaves, USERS_N, ITEMS_N, 0.1)
        loss_B.backward(weight_B)
        results.append([loss_B.detach(), *(leaf.grad for leaf in leaves)])
    times = 1 if kept else 2  # forward, and backward what was not kept
    assert widths[:times] == [N_ITEMS] * times
    sliced = widths[times : times + n_slices]
    assert sum(sliced) == N_ITEMS
    assert max(sliced) == width
    assert widths[times:] == sliced * times
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, N_ITEMS - 1)).map(sorted), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_any_histories_in_any_order(histories: list[list[int]], n_concepts: int, tile: int, random: Any) -> None:
    """Loss and gradients equal those of the dense formula, whatever the tile and the order of the entries."""
    entries = [(user, item) for user, history in enumerate(histories) for item in history]
    random.shuffle(entries)
    users_N, items_N = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2).unbind(1)
    leaves = vectors(n_concepts, len(histories), seed=len(entries))
    twins = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(pipeline.loss.TILE_ELEMENTS, "cpu", tile)
        found_B = catalogue_loss(*leaves, users_N, items_N, 0.2)
        found_B.sum().backward()
    expected_BI = dense_loss(*twins, 0.2)
    expected_B = torch.stack([expected_BI[user, history].sum() for user, history in enumerate(histories)])
    expected_B.sum().backward()
    np.testing.assert_allclose(found_B.detach(), expected_B.detach(), rtol=1e-10, atol=1e-12)
    for leaf, twin in zip(leaves, twins, strict=True):
        np.testing.assert_allclose(leaf.grad, twin.grad, rtol=1e-9, atol=1e-11)


def test_lowest_temperature_in_float32_with_every_item_opposite() -> None:
    """exp(-2 / 0.025) is 1.8e-35: the smallest term there can be is still held, and so is its reciprocal."""
    z_CBD = torch.tensor([[[1.0, 0.0]]] * 7).requires_grad_()
    items_ID = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    assignment_CI = torch.full((7, 3), 1 / 7).requires_grad_()
    loss_B = catalogue_loss(z_CBD, items_ID, assignment_CI, torch.tensor([0, 0]), torch.tensor([0, 2]), 0.025)
    loss_B.sum().backward()
    assert loss_B.item() == pytest.approx(160, rel=1e-6)
    # Of p(0) = p(2) = e^-80 and p(1) = 1: d loss / d z = (2 h_1 - h_0 - h_2) / t / 7 for each concept.
    np.testing.assert_allclose(z_CBD.grad[:, 0, 0], np.full(7, 4 / 0.025 / 7), rtol=1e-5)
    assert torch.isfinite(items_ID.grad).all()
    assert torch.isfinite(assignment_CI.grad).all()


def test_float32_is_close_to_float64() -> None:
    leaves = vectors(5, 6, 400, 16)
    singles = [leaf.detach().float().requires_grad_() for leaf in leaves]
    generator = torch.Generator().manual_seed(0)
    users_N, items_N = (torch.rand(6, 400, generator=generator) < 0.2).nonzero().unbind(1)
    exact_B = catalogue_loss(*leaves, users_N, items_N, 0.1)
    single_B = catalogue_loss(*singles, users_N, items_N, 0.1)
    assert single_B.dtype == torch.float32
    np.testing.assert_allclose(single_B.detach(), exact_B.detach(), rtol=1e-5)
    exact_B.sum().backward()
    single_B.sum().backward()
    for leaf, single in zip(leaves, singles, strict=True):
        assert (single.grad - leaf.grad).norm() / leaf.grad.norm() < 1e-5


def test_the_backward_pass_may_run_twice() -> None:
    leaves = vectors(seed=4)
    loss_B = catalogue_loss(*leaves, USERS_N, ITEMS_N, 0.2)
    loss_B.sum().backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves]
    loss_B.sum().backward()
    for leaf, gradient in zip(leaves, once, strict=True):
        np.testing.assert_allclose(leaf.grad, 2 * gradient, rtol=1e-12)


def test_bfloat16_products_are_close_to_float64() -> None:
    """A cosine over 0.1 is up to 10 and bfloat16 keeps 8 bits of it: 2% of a term, less in sums of terms."""
    leaves = vectors(5, 6, 400, 16)
    singles = [leaf.detach().float().requires_grad_() for leaf in leaves]
    generator = torch.Generator().manual_seed(0)
    users_N, items_N = (torch.rand(6, 400, generator=generator) < 0.2).nonzero().unbind(1)
    exact_B = catalogue_loss(*leaves, users_N, items_N, 0.1)
    low_B = catalogue_loss(*singles, users_N, items_N, 0.1, torch.bfloat16)
    assert low_B.dtype == torch.float32
    np.testing.assert_allclose(low_B.detach(), exact_B.detach(), rtol=5e-3)
    assert not np.allclose(low_B.detach(), exact_B.detach(), rtol=1e-6)
    exact_B.sum().backward()
    low_B.sum().backward()
    for leaf, single in zip(leaves, singles, strict=True):
        assert single.grad.dtype == torch.float32
        assert (single.grad - leaf.grad).norm() / leaf.grad.norm() < 0.03


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation made, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return result


def test_no_tensor_has_the_size_of_batch_times_catalogue_times_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    n_users, n_items, tile = 16, 20_000, 2**16
    monkeypatch.setitem(pipeline.loss.TILE_ELEMENTS, "cpu", tile)
    monkeypatch.setitem(pipeline.loss.KEPT_ELEMENTS, "cpu", tile)
    leaves = vectors(N_CONCEPTS, n_users, n_items)
    users_N, items_N = torch.arange(n_users).repeat(100), torch.arange(n_users * 100)
    with LargestTensor() as tiled:
        catalogue_loss(*leaves, users_N, items_N, 0.1).sum().backward()
    assert tiled.n_elements <= max(tile, n_items * SIZE)
    with LargestTensor() as dense:  # the measure sees what it should
        dense_loss(*leaves, 0.1).sum().backward()
    assert dense.n_elements == n_users * n_items * N_CONCEPTS
