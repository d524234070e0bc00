"""The exported graph: MacridVAE's inference as one pure function of its inputs, the same contract in every format.

Nothing here draws a random number. What depends only on the weights (item vectors of length 1, concept shares) is
computed once, at export. A history is gathered into a padded row per user; padding, and item number n_items, is an
item of zeros. A history is a set: it is sorted, so that order does not change a bit of the result, and repeats are
dropped.

The decoder adds one concept after another: a few [B, P] tables are alive at once, never [B, C, P]. No exponential
overflows (see pipeline/loss.py).

Shape letters: B users, L longest history, C concepts, D dimensions, H hidden units, I items of the catalogue, P = I +
1 (the last row is zeros), N items of all histories together, E excluded items per user, k places.
"""

# No `from __future__ import annotations`: TorchScript reads the types of the attributes below.
import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.model import MacridVAE
from pipeline.ranking import in_order, top_k

INPUTS = ("history_items", "history_offsets", "excluded", "allowed", "concept_weights", "k")
OUTPUTS = ("items", "scores", "concept_shares")


class RecommendationGraph(nn.Module):
    """Top-K items of a batch of histories, with scores and concept shares; see `forward`."""

    item_vectors: Tensor
    """[P, D], of length 1."""
    item_concepts: Tensor
    """[P, C]"""
    encoder_input_weight: Tensor
    """[P, H]"""
    encoder_input_bias: Tensor
    """[H]"""

    def __init__(self, model: MacridVAE) -> None:
        super().__init__()
        self.n_items, self.n_concepts = model.n_items, model.config.n_concepts
        self.temperature = model.config.temperature
        self.per_concept_norm = model.config.history_norm == "per-concept"
        size = model.config.embedding_size
        encoder = model.encoder
        with torch.no_grad():
            self.register_buffer("item_vectors", F.pad(model.items(), (0, 0, 0, 1)))
            self.register_buffer("item_concepts", F.pad(model.assignment(), (0, 0, 0, 1)))
            self.register_buffer("encoder_input_weight", F.pad(encoder.input.weight, (0, 0, 0, 1)))
            self.register_buffer("encoder_input_bias", encoder.input.bias.clone())
            self.encoder_hidden = nn.ModuleList(copy.deepcopy(layer) for layer in encoder.hidden)
            self.encoder_mean = nn.Linear(encoder.output.in_features, size)
            self.encoder_mean.load_state_dict(
                {"weight": encoder.output.weight[:size], "bias": encoder.output.bias[:size]}
            )

    def forward(
        self,
        history_items: Tensor,
        history_offsets: Tensor,
        excluded: Tensor,
        allowed: Tensor,
        concept_weights: Tensor,
        k: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rank the catalogue for each history.

        Args:
            history_items: int64 [N], item numbers 0..n_items (n_items: an unknown item, ignored), user after user.
            history_offsets: int64 [B + 1], where each user's items start; the last is N. An empty history is legal.
            excluded: int64 [B, E], items never to return, padded with n_items.
            allowed: bool [n_items], the items that may be returned.
            concept_weights: float32 [B, C], multiplies each concept's term; 1 everywhere is the plain model.
            k: int64 scalar, 1 or more.

        Returns:
            items int64 [B, k]: best first, ties by smaller number; -1 where fewer than k may be returned.
            scores float32 [B, k]: ln p(item | user) over the whole catalogue before any exclusion; -inf at item -1.
            concept_shares float32 [B, k, C]: each concept's share of p(item | user); 0 at item -1.
        """
        places = _size(k, 1)
        mean_BCD = self.encode(history_items, history_offsets)
        q_BP = self.likelihoods(mean_BCD, concept_weights)
        log_total_B1 = q_BP.sum(dim=1, keepdim=True).log()
        allowed_P = F.pad(allowed.to(q_BP.dtype), (0, 1))
        within = _smaller(places, self.n_items)
        q_Bk, item_Bk = top_k((q_BP * allowed_P).scatter(1, excluded, 0.0), within)
        missing_Bk = q_Bk <= 0
        score_Bk = (q_Bk.log() - log_total_B1).masked_fill(missing_Bk, float("-inf"))
        score_Bk, item_Bk = in_order(score_Bk, item_Bk.masked_fill(missing_Bk, self.n_items))
        absent = places - within
        score_Bk = F.pad(score_Bk, (0, absent), value=float("-inf"))
        item_Bk = F.pad(item_Bk, (0, absent), value=float(self.n_items))
        shares_BkC = self.concept_shares(mean_BCD, concept_weights, item_Bk)
        return item_Bk.masked_fill(item_Bk == self.n_items, -1), score_Bk, shares_BkC

    def encode(self, history_items: Tensor, history_offsets: Tensor) -> Tensor:
        """Mean vector of each concept of each user, [B, C, D], of length 1."""
        history_BL = self.padded(history_items, history_offsets)
        weight_BLC = self.item_concepts[history_BL]
        if self.per_concept_norm:
            weight_BLC = weight_BLC / weight_BLC.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        else:
            length_B = (history_BL < self.n_items).sum(dim=1).clamp_min(1)
            weight_BLC = weight_BLC / length_B.to(weight_BLC.dtype).sqrt()[:, None, None]
        sum_BCH = weight_BLC.transpose(1, 2) @ self.encoder_input_weight[history_BL]
        hidden_BCH = torch.tanh(sum_BCH + self.encoder_input_bias)
        for layer in self.encoder_hidden:
            hidden_BCH = torch.tanh(layer(hidden_BCH))
        return F.normalize(self.encoder_mean(hidden_BCH), dim=-1)

    def padded(self, history_items: Tensor, history_offsets: Tensor) -> Tensor:
        """Histories as sorted rows without repeats, [B, L], filled up with n_items."""
        n = history_items.shape[0]
        start_B1 = history_offsets[:-1, None]
        length_B1 = history_offsets[1:, None] - start_B1
        position_1L = torch.arange(_size(length_B1.max().clamp_min(1), 1), device=history_items.device)[None]
        at_BL = torch.where(position_1L < length_B1, start_B1 + position_1L, n)
        history_BL = F.pad(history_items, (0, 1), value=float(self.n_items))[at_BL]
        history_BL = torch.sort(history_BL, dim=1)[0]
        repeated_BL = F.pad(history_BL[:, 1:] == history_BL[:, :-1], (1, 0))
        return history_BL.masked_fill(repeated_BL, self.n_items)

    def likelihoods(self, mean_BCD: Tensor, concept_weights: Tensor) -> Tensor:
        """sum_c weight_bc a_ic exp(cos(z_bc, h_i) / t), [B, P]: p(i|u) but for a factor per user; last column 0."""
        scaled_BCD = mean_BCD / self.temperature
        q_BP = self._likelihood(scaled_BCD, concept_weights, 0)
        for c in range(1, self.n_concepts):
            q_BP = q_BP + self._likelihood(scaled_BCD, concept_weights, c)
        return q_BP

    def _likelihood(self, scaled_BCD: Tensor, concept_weights: Tensor, c: int) -> Tensor:
        match_BP = torch.exp(scaled_BCD[:, c] @ self.item_vectors.T)
        return match_BP * (concept_weights[:, c, None] * self.item_concepts[:, c])

    def concept_shares(self, mean_BCD: Tensor, concept_weights: Tensor, item_Bk: Tensor) -> Tensor:
        """Each concept's share of the likelihood of these items, [B, k, C]; 0 for item n_items."""
        cos_BkC = self.item_vectors[item_Bk] @ mean_BCD.transpose(1, 2)
        term_BkC = torch.exp(cos_BkC / self.temperature) * self.item_concepts[item_Bk] * concept_weights[:, None]
        return term_BkC / term_BkC.sum(dim=2, keepdim=True).clamp_min(1e-37)


def _size(value: Tensor, least: int) -> int:
    """A tensor's value as a size: scripting takes int(), torch.export takes item() and a promise."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return int(value)
    else:
        size: int = value.item()  # type: ignore[assignment]
        torch._check(size >= least)
        return size


def _smaller(k: int, n_items: int) -> int:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return min(k, n_items)
    else:
        within: int = torch.sym_min(k, n_items)
        torch._check(within >= 1)
        torch._check(within <= n_items)
        return within
