"""Exact top-K with one answer in every runtime: by score, then by smaller item number.

torch.topk breaks ties arbitrarily, and so may a GPU. Of the items that tie at the last place it may return any, in
any order. Both are mended afterwards, at a cost that grows with k and with the number of such ties, not with the
catalogue (but for one comparison). Written so that eager torch, TorchScript, torch.export and ONNX all take it.

Shape letters: B users, I items of the catalogue, k places, T ties at the last place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def top_k(score_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns.

    Args:
        score_BI: float [B, I]; what may not be chosen is negative or zero.
        k: 1 <= k <= I.

    Returns:
        scores [B, k] in falling order, and items int64 [B, k], equal scores in rising order of items. Where fewer
        than k scores are positive, the rest of the row's items are unspecified (their scores are not positive).
    """
    n_items = score_BI.shape[1]
    top_Bk, item_Bk = torch.topk(score_BI, k, dim=1)
    last_B1 = top_Bk[:, -1:]
    tie_BI = (score_BI == last_B1) & (last_B1 > 0)
    row_T, tied_item_T = torch.nonzero(tie_BI).unbind(1)
    n_ties_B = tie_BI.sum(dim=1)
    before_B = torch.cumsum(n_ties_B, dim=0) - n_ties_B
    n_above_B = (top_Bk > last_B1).sum(dim=1)
    order_T = torch.arange(row_T.shape[0], device=score_BI.device) - before_B[row_T]
    place_T = (n_above_B[row_T] + order_T).clamp_max(k)
    item_Bk = F.pad(item_Bk, (0, 1)).index_put((row_T, place_T), tied_item_T)[:, :-1]
    run_Bk = F.pad(top_Bk[:, 1:] < top_Bk[:, :-1], (1, 0)).to(torch.int64).cumsum(dim=1)
    key_Bk = torch.sort(run_Bk * n_items + item_Bk, dim=1)[0]
    return top_Bk, key_Bk % n_items
