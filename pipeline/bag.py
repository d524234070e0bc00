"""Weighted bag: for each user and concept, the weighted sum of one table row per item of the history.

The forward pass is torch's embedding bag. On a CPU its own backward pass takes many times as long; so here the gradient
of the table is an embedding bag too, of the transposed sums, and the gradient of the weights one small matrix product
per user, which reads each row once for all concepts. On a GPU torch's own backward pass is used.

Shape letters: B users, C concepts, H width, I items of the catalogue, N items of all histories together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

GROUP_ENTRIES = 512
"""Entries whose table rows are read in one call: enough to hide the cost of a call, few enough to stay in the cache."""


def weighted_bag(
    items_N: Tensor, offsets: Tensor, weight_NC: Tensor, table_IH: Tensor, product_dtype: torch.dtype | None = None
) -> Tensor:
    """Sums [C, B, H], differentiable in the weights and the table.

    Args:
        items_N: int64, the histories' items.
        offsets: int64 [B + 1], where each history starts; the last one is N.
        weight_NC: weight of each entry in each concept.
        table_IH: a row per item.
        product_dtype: on a CPU, of the factors of the sums and of the table's gradient. None: the table's.
    """
    if table_IH.device.type != "cpu":
        return _forward(items_N, offsets, weight_NC, table_IH)
    sums_CBH: Tensor = _Bag.apply(  # type: ignore[no-untyped-call]
        items_N, offsets, weight_NC, table_IH, product_dtype or table_IH.dtype
    )
    return sums_CBH


def _forward(items_N: Tensor, offsets: Tensor, weight_NC: Tensor, table_IH: Tensor) -> Tensor:
    n_concepts, n_users = weight_NC.shape[1], len(offsets) - 1
    concepts_C1 = torch.arange(n_concepts, device=offsets.device)[:, None]
    starts_CB = concepts_C1 * len(items_N) + offsets[:-1]
    sums = F.embedding_bag(
        items_N.repeat(n_concepts),
        table_IH,
        starts_CB.flatten(),
        mode="sum",
        per_sample_weights=weight_NC.T.flatten(),
    )
    return sums.view(n_concepts, n_users, table_IH.shape[1])


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, items_N: Tensor, offsets: Tensor, weight_NC: Tensor, table_IH: Tensor, product_dtype: torch.dtype
    ) -> Tensor:
        ctx.dtype = table_IH.dtype
        weight_NC, table_IH = weight_NC.to(product_dtype), table_IH.to(product_dtype)
        ctx.save_for_backward(items_N, offsets, weight_NC, table_IH)
        return _forward(items_N, offsets, weight_NC, table_IH).to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        items_N, offsets, weight_NC, table_IH = ctx.saved_tensors
        grad_CBH = grad_outputs[0].to(table_IH.dtype).contiguous()
        grad_table_IH = _table_gradient(items_N, offsets, weight_NC, grad_CBH, len(table_IH), ctx.dtype)
        return None, None, _weight_gradient(items_N, offsets, table_IH, grad_outputs[0]).T, grad_table_IH, None


def _table_gradient(
    items_N: Tensor, offsets: Tensor, weight_NC: Tensor, grad_CBH: Tensor, n_items: int, dtype: torch.dtype
) -> Tensor:
    """[I, H]: row i is the sum, over the entries of item i and the concepts, of weight x the gradient of the sum."""
    n_concepts, n_users, width = grad_CBH.shape
    users_N = torch.repeat_interleave(torch.arange(n_users), offsets.diff(), output_size=len(items_N))
    order_N = torch.argsort(items_N, stable=True)
    count_I = torch.bincount(items_N, minlength=n_items)
    starts_I = count_I.cumsum(0) - count_I
    users_N, weight_NC = users_N[order_N], weight_NC[order_N]
    if n_concepts * n_items > len(items_N):  # few entries per item: going through the table once is cheaper
        vectors_NC = users_N[:, None] + torch.arange(n_concepts) * n_users
        return F.embedding_bag(
            vectors_NC.flatten(),
            grad_CBH.view(-1, width),
            starts_I * n_concepts,
            mode="sum",
            per_sample_weights=weight_NC.flatten(),
        ).to(dtype)
    grad_IH = torch.zeros(n_items, width, dtype=dtype)
    for grad_BH, weight_N in zip(grad_CBH, weight_NC.T.contiguous(), strict=True):  # one concept stays in the cache
        grad_IH += F.embedding_bag(users_N, grad_BH, starts_I, mode="sum", per_sample_weights=weight_N)
    return grad_IH


def _weight_gradient(items_N: Tensor, offsets: Tensor, table_IH: Tensor, grad_CBH: Tensor) -> Tensor:
    """[C, N]: each entry's table row times the gradient of its user's sums.

    In the gradient's dtype: for bfloat16 products, oneDNN would compile a kernel for every length of a history.
    """
    grad_BCH = grad_CBH.transpose(0, 1).contiguous()
    grad_CN = grad_CBH.new_empty(len(grad_CBH), len(items_N))
    bounds = offsets.tolist()
    first = 0
    for last in range(1, len(bounds)):
        if last + 1 < len(bounds) and bounds[last + 1] - bounds[first] <= GROUP_ENTRIES:
            continue
        rows = table_IH[items_N[bounds[first] : bounds[last]]].to(grad_BCH.dtype)
        for user in range(first, last):
            mine = slice(bounds[user], bounds[user + 1])
            theirs = rows[mine.start - bounds[first] : mine.stop - bounds[first]]
            torch.mm(grad_BCH[user], theirs.T, out=grad_CN[:, mine])
        first = last
    return grad_CN
