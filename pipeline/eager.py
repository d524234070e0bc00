"""The model itself as a scorer: for validation, for evaluating a checkpoint, and to hold exported graphs against.

Plain and separate from the exported graph on purpose: two forms of one formula that must agree. The catalogue is
decoded in slices; what grows with it is one score per user and item, so users are ranked a group at a time.

Shape letters: B users, C concepts, D dimensions, I items of the catalogue, N items of all histories together, k
places.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.histories import Histories
from pipeline.model import Batch, MacridVAE
from pipeline.ranking import in_order, top_k
from pipeline.scorer import TopK

SLICE_ELEMENTS = 2**24
"""Elements of one [C, B, slice] tile of the catalogue: 64 MiB."""
TABLE_SCORES = 2**26
"""Users times catalogue that are ranked at once, at most (but one user at least): 256 MiB."""


def to_batch(histories: Histories, device: torch.device) -> Batch:
    """Histories as tensors on a device."""
    items_N = torch.from_numpy(histories.items_N.astype(np.int64))
    return Batch(items_N.to(device), torch.from_numpy(histories.offsets).to(device))


def to_top_k(score_Bk: Tensor, item_Bk: Tensor, share_BkC: Tensor, k: int) -> TopK:
    """Sorted scores, at most k of each user, as arrays of k places; what scores -inf is missing, and so is the rest."""
    missing_Bk = score_Bk == -torch.inf
    item_Bk = item_Bk.masked_fill(missing_Bk, -1)
    share_BkC = share_BkC.masked_fill(missing_Bk[:, :, None], 0)
    absent = k - score_Bk.shape[1]
    return TopK(
        F.pad(item_Bk, (0, absent), value=-1).cpu().numpy(),
        F.pad(score_Bk, (0, absent), value=-torch.inf).cpu().numpy(),
        F.pad(share_BkC, (0, 0, 0, absent)).cpu().numpy(),
    )


class EagerScorer:
    """Scores histories with the current weights of a model; see `pipeline.scorer.Scorer`."""

    def __init__(self, model: MacridVAE) -> None:
        self.model = model
        self.n_items = model.n_items
        self.n_concepts = model.config.n_concepts

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
        concept_weights: NDArray[np.float32] | None = None,
    ) -> TopK:
        """Top-K of each history; arguments and result as in `pipeline.scorer.Scorer`."""
        most = max(1, TABLE_SCORES // self.n_items)
        if len(histories) <= most:
            return self._rank(histories, k, excluded, allowed, concept_weights)
        parts = []
        for start in range(0, len(histories), most):
            rows = np.arange(start, min(start + most, len(histories)))
            excluded_here = None if excluded is None else excluded.take(rows)
            weights_here = None if concept_weights is None else concept_weights[rows]
            parts.append(self._rank(histories.take(rows), k, excluded_here, allowed, weights_here))
        return TopK(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    @torch.inference_mode()
    def _rank(
        self,
        histories: Histories,
        k: int,
        excluded: Histories | None,
        allowed: NDArray[np.bool_] | None,
        concept_weights: NDArray[np.float32] | None,
    ) -> TopK:
        device, dtype = self.model.item_embedding.device, self.model.item_embedding.dtype
        weight_CB = torch.ones(self.n_concepts, len(histories), device=device, dtype=dtype)
        if concept_weights is not None:
            weight_CB = torch.from_numpy(concept_weights.T.copy()).to(device, dtype)
        assignment_IC = self.model.assignment()
        mean_CBD = self.model.encode(to_batch(histories, device), assignment_IC)
        q_BI = self._likelihoods(mean_CBD, assignment_IC, weight_CB)
        log_total_B1 = q_BI.sum(dim=1, keepdim=True).log()
        if allowed is not None:
            q_BI[:, ~torch.from_numpy(allowed).to(device)] = 0
        if excluded is not None:
            seen = to_batch(excluded, device)
            q_BI[seen.users_N, seen.items_N] = 0
        q_Bk, item_Bk = top_k(q_BI, min(k, self.n_items))
        score_Bk, item_Bk = in_order((q_Bk.log() - log_total_B1).masked_fill(q_Bk <= 0, -torch.inf), item_Bk)
        share_BkC = self._terms(mean_CBD, assignment_IC, weight_CB, item_Bk)
        share_BkC /= share_BkC.sum(dim=2, keepdim=True)
        return to_top_k(score_Bk, item_Bk, share_BkC, k)

    def _likelihoods(self, mean_CBD: Tensor, assignment_IC: Tensor, weight_CB: Tensor) -> Tensor:
        """sum_c weight_cb a_ic exp(cos(z_cb, h_i) / t), [B, I]: p(i|u) but for one factor per user."""
        items_ID, temperature = self.model.items(), self.model.config.temperature
        n_concepts, n_users = weight_CB.shape
        width = max(1, SLICE_ELEMENTS // max(1, n_concepts * n_users))
        q_BI = mean_CBD.new_empty(n_users, self.n_items)
        for start in range(0, self.n_items, width):
            columns = slice(start, start + width)
            term_CBI = (mean_CBD @ items_ID[columns].T / temperature).exp_()
            q_BI[:, columns] = torch.einsum("cbi,ic,cb->bi", term_CBI, assignment_IC[columns], weight_CB)
        return q_BI

    def _terms(self, mean_CBD: Tensor, assignment_IC: Tensor, weight_CB: Tensor, item_Bk: Tensor) -> Tensor:
        """Each concept's term of the likelihood of these items, [B, k, C]."""
        cos_BkC = self.model.items()[item_Bk] @ mean_CBD.permute(1, 2, 0)
        match_BkC = (cos_BkC / self.model.config.temperature).exp()
        return match_BkC * assignment_IC[item_Bk] * weight_CB.T[:, None]
