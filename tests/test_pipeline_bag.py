"""Sums and gradients against a dense product in float64, with few and with many entries per item."""

from __future__ import annotations

import pytest
import torch
from conftest import random_histories
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.bag
from pipeline.bag import weighted_bag
from pipeline.eager import to_batch

LENGTHS = [0, 5, 1, 0, 17, 30, 2]


def inputs(
    lengths: list[int], n_items: int, n_concepts: int, width: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = to_batch(random_histories(lengths, n_items, seed), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    weight_NC = torch.rand(len(batch.items_N), n_concepts, dtype=torch.float64, generator=generator)
    table_IH = torch.randn(n_items, width, dtype=torch.float64, generator=generator)
    return batch.items_N, batch.offsets, weight_NC.requires_grad_(), table_IH.requires_grad_()


def dense(
    items_N: torch.Tensor, offsets: torch.Tensor, weight_NC: torch.Tensor, table_IH: torch.Tensor
) -> torch.Tensor:
    sums = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        sums.append(weight_NC[start:end].T @ table_IH[items_N[start:end]])
    return torch.stack(sums, dim=1)


@pytest.mark.parametrize(("n_items", "n_concepts"), [(40, 1), (40, 3), (1000, 2)])
def test_equals_dense_products(n_items: int, n_concepts: int) -> None:
    found, expected = inputs(LENGTHS, n_items, n_concepts, 6), inputs(LENGTHS, n_items, n_concepts, 6)
    direction = torch.randn(
        n_concepts, len(LENGTHS), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    sums, wanted = weighted_bag(*found), dense(*expected)
    torch.testing.assert_close(sums, wanted)
    sums.backward(direction)
    wanted.backward(direction)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(9, 60), st.integers(1, 4), st.integers(0, 99))
def test_any_histories(lengths: list[int], n_items: int, n_concepts: int, seed: int) -> None:
    found, expected = inputs(lengths, n_items, n_concepts, 3, seed), inputs(lengths, n_items, n_concepts, 3, seed)
    weighted_bag(*found).square().sum().backward()
    dense(*expected).square().sum().backward()
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("n_items", [40, 1000])
def test_bfloat16_products_are_close(n_items: int) -> None:
    """Factors and sums keep 8 bits."""
    exact = inputs(LENGTHS, n_items, 3, 6)
    singles = [leaf.detach().float().requires_grad_() for leaf in exact[2:]]
    direction = torch.randn(3, len(LENGTHS), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, low = dense(*exact), weighted_bag(*exact[:2], *singles, torch.bfloat16)
    assert low.dtype == torch.float32
    assert 1e-5 < (low - wanted).norm() / wanted.norm() < 5e-3
    wanted.backward(direction)
    low.backward(direction.float())
    for one, other in zip(singles, exact[2:], strict=True):
        assert one.grad.dtype == torch.float32
        assert 1e-5 < (one.grad - other.grad).norm() / other.grad.norm() < 5e-3


def test_any_grouping_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for entries in (1, 20, 10_000):
        monkeypatch.setattr(pipeline.bag, "GROUP_ENTRIES", entries)
        found = inputs(LENGTHS, 40, 3, 6)
        weighted_bag(*found).square().sum().backward()
        gradients.append(found[2].grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_gradcheck() -> None:
    items_N, offsets, *leaves = inputs([0, 3, 2], 5, 2, 3)
    assert torch.autograd.gradcheck(lambda *of: weighted_bag(items_N, offsets, *of), leaves)


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    found = inputs(LENGTHS, 40, 3, 6)
    on_gpu = [tensor.detach().cuda() for tensor in found]
    leaves = [tensor.requires_grad_() for tensor in on_gpu[2:]]
    weighted_bag(*on_gpu[:2], *leaves).square().sum().backward()
    weighted_bag(*found).square().sum().backward()
    for one, other in zip(leaves, found[2:], strict=True):
        torch.testing.assert_close(one.grad.cpu(), other.grad)
