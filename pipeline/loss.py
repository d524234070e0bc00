"""The reconstruction loss of MacridVAE, one slice of the catalogue at a time.

For user b with history x_b the model says p(i|b) = q_bi / S_b with q_bi = sum_c a_ic exp(z_bc . h_i / t) and S_b =
sum_i q_bi, so
    -sum_{i in x_b} log p(i|b) = |x_b| log S_b - sum_{i in x_b} log q_bi
needs q only at the history's items and one running sum per user. Tiles of exp(.), which the backward pass needs again,
are kept while all of them are few, and computed again otherwise. Memory: a few [C, B, slice] tiles and what is kept,
bounded by two constants, never batch x catalogue x concepts. Cost: three matrix products of shape (C B) x D x I as in a
dense implementation, and a fourth where tiles are computed again.

All vectors have length 1, so every exponent lies within 1 / t. The config bounds t by 0.025: exp(40) times the largest
catalogue (2^31 items) is below 1e27, and float32 holds it with room to spare.

Shape letters: B users, C concepts, D dimensions, I items of the catalogue, N items of all histories together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Elements of one [C, B, slice] tile: what fits a CPU's last-level cache, and what fills a GPU (256 MiB)."""
KEPT_ELEMENTS = {"cpu": 2**27, "cuda": 2**29}
"""Elements of all tiles together up to which the backward pass finds them in memory instead of computing them again."""


class _CatalogueLoss(torch.autograd.Function):
    """The two passes; see `catalogue_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        z_CBD: Tensor,
        items_ID: Tensor,
        assignment_CI: Tensor,
        users_N: Tensor,
        items_N: Tensor,
        temperature: float,
        product_dtype: torch.dtype,
    ) -> Tensor:
        order_N = torch.argsort(items_N, stable=True)
        users_N, items_N = users_N[order_N], items_N[order_N]
        scaled_CBD, low_items_ID = (z_CBD / temperature).to(product_dtype), items_ID.to(product_dtype)
        low_assignment_CI = assignment_CI.to(product_dtype)
        keep = z_CBD.shape[0] * z_CBD.shape[1] * len(items_ID) <= KEPT_ELEMENTS[z_CBD.device.type]
        q_N = z_CBD.new_empty(len(items_N))
        total_B = z_CBD.new_zeros(z_CBD.shape[1])
        kept = []
        for columns, entries in _slices(z_CBD, items_N, len(items_ID)):
            match_CBI = _match(scaled_CBD, low_items_ID[columns])
            total_B += torch.bmm(match_CBI, low_assignment_CI[:, columns, None]).sum(dim=(0, 2), dtype=total_B.dtype)
            at_N = items_N[entries] - columns.start
            q_N[entries] = (match_CBI[:, users_N[entries], at_N] * assignment_CI[:, items_N[entries]]).sum(dim=0)
            if keep:
                kept.append(match_CBI)
        length_B = torch.bincount(users_N, minlength=z_CBD.shape[1])
        ctx.save_for_backward(scaled_CBD, low_items_ID, low_assignment_CI, users_N, items_N, q_N, total_B, length_B)
        ctx.temperature, ctx.kept = temperature, kept
        loss_B = length_B * total_B.log()
        return loss_B.index_add_(0, users_N, -q_N.log())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_B,) = grad_outputs
        scaled_CBD, items_ID, assignment_CI, users_N, items_N, q_N, total_B, length_B = ctx.saved_tensors
        grad_scaled_CBD = total_B.new_zeros(scaled_CBD.shape)
        grad_items_ID = total_B.new_empty(items_ID.shape)
        grad_assignment_CI = total_B.new_empty(assignment_CI.shape)
        in_total_B = (grad_B * length_B / total_B).to(scaled_CBD.dtype)
        in_history_N = (grad_B[users_N] / q_N).to(scaled_CBD.dtype)
        kept = iter(ctx.kept)
        for columns, entries in _slices(scaled_CBD, items_N, len(items_ID)):
            match_CBI = next(kept, None)
            if match_CBI is None:
                match_CBI = _match(scaled_CBD, items_ID[columns])
            grad_q_BI = in_total_B[:, None].repeat(1, columns.stop - columns.start)
            grad_q_BI[users_N[entries], items_N[entries] - columns.start] -= in_history_N[entries]
            match_CBI = match_CBI * grad_q_BI
            grad_assignment_CI[:, columns] = match_CBI.sum(dim=1)
            match_CBI *= assignment_CI[:, None, columns]
            grad_logits = match_CBI.flatten(0, 1)
            grad_scaled_CBD += (grad_logits @ items_ID[columns]).view_as(scaled_CBD)
            grad_items_ID[columns] = grad_logits.T @ scaled_CBD.flatten(0, 1)
        return grad_scaled_CBD / ctx.temperature, grad_items_ID, grad_assignment_CI, *[None] * 4


def catalogue_loss(
    z_CBD: Tensor,
    items_ID: Tensor,
    assignment_CI: Tensor,
    users_N: Tensor,
    items_N: Tensor,
    temperature: float,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """-sum over the history of log p(item | user), per user (model of Ma et al. 2019, section 2).

    Args:
        z_CBD: user vectors of length 1.
        items_ID: item vectors of length 1.
        assignment_CI: share of each item in each concept.
        users_N: int64, the user (row of the batch) of each history entry.
        items_N: int64, the item of each history entry; a (user, item) pair occurs once.
        temperature: divides every cosine.
        product_dtype: of the products, and of the tiles they fill; sums keep the vectors' dtype. None: that as well.

    Returns:
        Tensor [B], differentiable in the first three arguments; 0 for an empty history.
    """
    loss_B: Tensor = _CatalogueLoss.apply(  # type: ignore[no-untyped-call]
        z_CBD, items_ID, assignment_CI, users_N, items_N, temperature, product_dtype or z_CBD.dtype
    )
    return loss_B


def _match(scaled_CBD: Tensor, items_ID: Tensor) -> Tensor:
    """exp(cos / temperature) of every user vector with these items, [C, B, I]."""
    match = torch.mm(scaled_CBD.flatten(0, 1), items_ID.T)
    return match.exp_().view(*scaled_CBD.shape[:2], len(items_ID))


def _slices(z_CBD: Tensor, sorted_items_N: Tensor, n_items: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the catalogue, each with the slice of the (item-sorted) history entries that fall into it."""
    n_vectors = z_CBD.shape[0] * z_CBD.shape[1]
    width = min(n_items, max(1, TILE_ELEMENTS[z_CBD.device.type] // n_vectors))
    starts = torch.arange(0, n_items + width, width, device=sorted_items_N.device).clamp_max(n_items)
    bounds = torch.searchsorted(sorted_items_N, starts).tolist()
    for i, start in enumerate(range(0, n_items, width)):
        yield slice(start, min(start + width, n_items)), slice(bounds[i], bounds[i + 1])
