"""Exact top-K with one answer in every runtime: by score, then by smaller item number.

torch.topk breaks ties arbitrarily, and so may a GPU. Of the items that tie at the last place it may return any, and it
may list ties in any order. `top_k` mends the first, `in_order` the second, at a cost that grows with k and with the
number of ties at the last place, not with the catalogue (but for one comparison). They are two steps because scores are
logarithms: likelihoods that differ can have equal logarithms.

Written so that eager torch, TorchScript, torch.export and ONNX all take it.

Shape letters: B users, I items of the catalogue, k places, T ties at the last place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def top_k(likelihood_BI: Tensor, k: int, onnx: bool = False) -> tuple[Tensor, Tensor]:
    """The k largest likelihoods of each row and their columns; of those that tie at the last place, the first columns.

    Args:
        likelihood_BI: float [B, I]; what may not be chosen is zero or negative.
        k: 1 <= k <= I.
        onnx: for a graph that becomes ONNX, whose TopK takes the smaller index of equal values by itself.

    Returns:
        likelihoods [B, k] in falling order, and items int64 [B, k]. Where fewer than k are positive, the row's other
        items are unspecified (their likelihoods are not positive).
    """
    top_Bk, item_Bk = torch.topk(likelihood_BI, k, dim=1)
    if onnx:
        return top_Bk, item_Bk
    last_B1 = top_Bk[:, -1:]
    tie_BI = (likelihood_BI == last_B1) & (last_B1 > 0)
    row_T, tied_item_T = torch.nonzero(tie_BI).unbind(1)
    n_ties_B = torch.zeros_like(item_Bk[:, 0]).index_add(0, row_T, torch.ones_like(row_T))
    before_B = torch.cumsum(n_ties_B, dim=0) - n_ties_B
    n_above_B = (top_Bk > last_B1).sum(dim=1)
    order_T = torch.arange(row_T.shape[0], device=likelihood_BI.device) - before_B[row_T]
    place_T = (n_above_B[row_T] + order_T).clamp_max(k)
    item_Bk = F.pad(item_Bk, (0, 1)).index_put((row_T, place_T), tied_item_T)[:, :-1]
    return top_Bk, item_Bk


def in_order(score_Bk: Tensor, item_Bk: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by falling score, equal scores by rising item.

    Args:
        score_Bk: float [B, k].
        item_Bk: int64 [B, k], not negative and below 2**31.
    """
    score_Bk, at_Bk = torch.sort(score_Bk, dim=1, descending=True)
    falls_Bk = F.pad(score_Bk[:, 1:] < score_Bk[:, :-1], (1, 0))
    run_Bk = falls_Bk.to(torch.int64).cumsum(dim=1)
    limit = 2147483648  # 2**31 would be a float in TorchScript
    key_Bk = torch.sort(run_Bk * limit + item_Bk.gather(1, at_Bk), dim=1)[0]
    return score_Bk, key_Bk % limit
