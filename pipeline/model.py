"""MacridVAE: Ma, Zhou, Cui, Yang, Zhu, "Learning Disentangled Representations for Recommendation", NeurIPS 2019.

An item i belongs to concept c with share a_ic = softmax_c(cos(h_i, m_c) / t). One encoder, shared by all concepts,
reads the history once per concept, weighted by those shares, and gives each concept of a user a vector z_c on the
unit sphere. The decoder says p(i|u) ~ sum_c a_ic exp(cos(z_c, h_i) / t).

Training draws: Gumbel noise on the assignment (a relaxed one-hot, temperature 1), dropout on the encoder's input,
Gaussian noise on z. All of them come in as `Draws`, so the loss is a deterministic function that a reference can
repeat. Inference (`encode`, `assignment`) takes no draws: there is no sampler to switch off.

The encoder's first layer is a weighted sum of the rows of the history's items (an embedding bag): its cost grows with
the history, not with the catalogue.

Shape letters: B users, C concepts, D dimensions, H hidden units, I items of the catalogue, N items of all histories
together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name every torch reader expects)
from torch import Tensor, nn

from pipeline.bag import weighted_bag
from pipeline.config import ModelConfig
from pipeline.loss import catalogue_loss


class Batch(NamedTuple):
    """Histories of B users on the model's device."""

    items_N: Tensor
    """int64, item numbers."""
    offsets: Tensor
    """int64 [B + 1], where each history starts; the last one is N."""

    @property
    def users_N(self) -> Tensor:
        """int64, the row of the batch each entry belongs to."""
        rows_B = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(rows_B, self.offsets.diff(), output_size=len(self.items_N))

    def select(self, keep_N: Tensor) -> Batch:
        """The same users with the marked entries only."""
        before = F.pad(keep_N.cumsum(dim=0), (1, 0))
        return Batch(self.items_N[keep_N], before[self.offsets])


class Draws(NamedTuple):
    """The randomness of one training step."""

    gumbel_IC: Tensor | None
    """Standard Gumbel noise, or None for the plain assignment."""
    kept_NC: Tensor
    """Dropout: 0, or 1 / (1 - dropout) where the entry is kept; equal columns under `history_norm = "history"`."""
    normal_CBD: Tensor
    """Standard normal noise of z."""


class Loss(NamedTuple):
    """The terms of one step, each a scalar: means over the users of the batch."""

    reconstruction: Tensor
    kl: Tensor


class HistoryLayer(nn.Module):
    """Weighted sum of one row per item of a history, plus a bias."""

    def __init__(self, n_items: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_items, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, batch: Batch, weight_NC: Tensor, product_dtype: torch.dtype | None) -> Tensor:
        """[C, B, H] from the entries' weights in each concept."""
        return weighted_bag(batch.items_N, batch.offsets, weight_NC, self.weight, product_dtype) + self.bias


class Encoder(nn.Module):
    """One history in one concept -> the mean and the log-variance head of z."""

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        widths = config.encoder_hidden_sizes
        self.input = HistoryLayer(n_items, widths[0])
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], 2 * config.embedding_size)

    def forward(
        self, batch: Batch, weight_NC: Tensor, product_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(mean, v), both [C, B, D]; the mean has length 1 and ln(sigma^2 / prior_std^2) = -v."""
        hidden_CBH = torch.tanh(self.input(batch, weight_NC, product_dtype))
        low = product_dtype == torch.bfloat16
        with torch.autocast(hidden_CBH.device.type, dtype=torch.bfloat16, enabled=low):
            for layer in self.hidden:
                hidden_CBH = torch.tanh(layer(hidden_CBH))
            both_CBE = self.output(hidden_CBH)
        mean_CBD, v_CBD = both_CBE.to(weight_NC.dtype).chunk(2, dim=-1)
        return F.normalize(mean_CBD, dim=-1), v_CBD


class MacridVAE(nn.Module):
    """The model; its state dict has exactly the names and shapes of `weights.safetensors`."""

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Parameter(torch.empty(n_items, config.embedding_size))
        self.prototypes = nn.Parameter(torch.empty(config.n_concepts, config.embedding_size))
        self.encoder = Encoder(n_items, config)
        self.product_dtype: torch.dtype | None = None

    @classmethod
    def empty(cls, n_items: int, config: ModelConfig, device: str) -> MacridVAE:
        """A model on a device whose weights have no values yet."""
        with torch.device("meta"):
            model = cls(n_items, config)
        return model.to_empty(device=device)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.item_embedding)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The authors' first weights: Glorot-uniform tables, biases normal (deviation 0.001, cut at two)."""
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.trunc_normal_(parameter, std=0.001, a=-0.002, b=0.002, generator=generator)

    @torch.no_grad()
    def turn(self, items_ID: Tensor, prototypes_CD: Tensor) -> None:
        """Give items and prototypes the directions of these vectors of length 1; their own lengths stay.

        Only directions have a meaning, but Adam turns a long vector more slowly.
        """
        for table, unit in ((self.item_embedding, items_ID), (self.prototypes, prototypes_CD)):
            table.copy_(table.norm(dim=1, keepdim=True) * unit.to(table.device))

    def items(self) -> Tensor:
        """Item vectors of length 1, [I, D]."""
        return F.normalize(self.item_embedding, dim=1)

    def assignment(self, gumbel_IC: Tensor | None = None) -> Tensor:
        """Share of each item in each concept, [I, C]: softmax(cos / temperature), of noisy logits if noise is given."""
        logits_IC = self.items() @ F.normalize(self.prototypes, dim=1).T / self.config.temperature
        if gumbel_IC is not None:
            logits_IC = logits_IC + gumbel_IC
        return torch.softmax(logits_IC, dim=1)

    def encode(self, batch: Batch, assignment_IC: Tensor) -> Tensor:
        """Mean vector of each concept of each user, [C, B, D], of length 1: z at inference."""
        mean_CBD: Tensor = self.encoder(batch, self._history_weights(batch, assignment_IC))[0]
        return mean_CBD

    def draw(self, batch: Batch, generator: torch.Generator) -> Draws:
        """The randomness of one step, in a fixed order."""
        config, like = self.config, self.item_embedding
        gumbel_IC = None
        if config.gumbel:
            exponential_IC = like.new_empty(self.n_items, config.n_concepts).exponential_(generator=generator)
            gumbel_IC = -exponential_IC.log()
        n_masks = config.n_concepts if config.history_norm == "per-concept" else 1
        kept = like.new_empty(len(batch.items_N), n_masks).bernoulli_(1 - config.dropout, generator=generator)
        kept_NC = (kept / (1 - config.dropout)).expand(-1, config.n_concepts)
        shape = (config.n_concepts, len(batch.offsets) - 1, config.embedding_size)
        return Draws(gumbel_IC, kept_NC, like.new_empty(shape).normal_(generator=generator))

    def forward(self, batch: Batch, draws: Draws) -> Loss:
        """Loss terms of a batch, the two halves of the paper's evidence lower bound.

        Reconstruction is the mean over users of -sum over the history of log p(item | z). ||mean|| is 1, so the KL
        divergence of a concept is, up to a constant, the sum over dimensions of (e^l - l - 1) / 2 with l = ln(sigma^2
        / prior_std^2).
        """
        assignment_IC = self.assignment(draws.gumbel_IC)
        weight_NC, shown = self._history_weights(batch, assignment_IC) * draws.kept_NC, batch
        if self.config.history_norm == "history":  # an entry is dropped for all concepts: half of them cost nothing
            keep_N = draws.kept_NC[:, 0] > 0
            weight_NC, shown = weight_NC[keep_N], batch.select(keep_N)
        mean_CBD, v_CBD = self.encoder(shown, weight_NC, self.product_dtype)
        std_CBD = self.config.prior_std * torch.exp(-v_CBD / 2)
        z_CBD = F.normalize(mean_CBD + std_CBD * draws.normal_CBD, dim=-1)
        loss_B = catalogue_loss(
            z_CBD,
            self.items(),
            assignment_IC.T.contiguous(),
            batch.users_N,
            batch.items_N,
            self.config.temperature,
            self.product_dtype,
        )
        kl_CB = ((torch.exp(-v_CBD) + v_CBD - 1) / 2).sum(dim=-1)
        return Loss(loss_B.mean(), kl_CB.sum(dim=0).mean())

    def _history_weights(self, batch: Batch, assignment_IC: Tensor) -> Tensor:
        """Weight of each history entry in each concept before dropout, [N, C]."""
        weight_NC = assignment_IC[batch.items_N]
        if self.config.history_norm == "history":
            return weight_NC * batch.offsets.diff().to(weight_NC.dtype).rsqrt()[batch.users_N, None]
        squares_BC = weight_NC.new_zeros(len(batch.offsets) - 1, weight_NC.shape[1])
        norm_BC = squares_BC.index_add(0, batch.users_N, weight_NC.square()).clamp_min(1e-12).sqrt()
        return weight_NC / norm_BC[batch.users_N]
