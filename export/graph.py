"""The exported graph: MacridVAE's inference as one pure function of its inputs, the same contract in every format.

Nothing here draws a random number. What depends only on the weights (item vectors of length 1, concept shares) is
computed once, at export. A history is a set: it is sorted, so that order does not change a bit of the result, and
repeats are dropped.

The decoder reads the catalogue in chunks and keeps the best k of each, so what lives at once is a [B, C, W] tile,
whatever the size of the catalogue. In ONNX the chunks are the steps of one Scan: the graph does not grow either. With
z_bc the vector of user b in concept c, h_i and a_ic those of an item, and w_bc the concept weights, the model says
p(i|b) ~ sum_c w_bc a_ic exp(z_bc . h_i / t). One product gives every exponent:
    query_bc = (z_bc / t, one-hot of c, ln w_bc - 1 / t)        row_i = (h_i, ln a_i1 .. ln a_iC, 1)
    query_bc . row_i = ln(w_bc a_ic) + (z_bc . h_i - 1) / t
It is at most ln w_bc: no exponential overflows; and since t is at least 0.025, that of an item's main concept does not
vanish either (exp(-80) / C).

`precision` says how the large tables are kept and multiplied; exponentials, sums and the top k are float32 always:
- fp32: float32 throughout.
- fp16: tables in half precision, the decoder's product too (a GPU's tensor cores), the encoder's in float32.
- int8: each row as int8 with a float32 scale, multiplied in float32: a quarter of the size.

Shape letters: B users, L longest history, C concepts, D dimensions, E = D + C + 1, H hidden units, I items of the
catalogue, G chunks of it, W items of a chunk (the last one is filled up), N items of all histories together, X excluded
items per user, k places.
"""

# No `from __future__ import annotations`: TorchScript reads the types of the attributes below.
import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from export.parity import Precision
from pipeline.model import MacridVAE
from pipeline.ranking import in_order, top_k

INPUTS = ("history_items", "history_offsets", "excluded", "allowed", "concept_weights", "k")
OUTPUTS = ("items", "scores", "concept_shares")
CHUNK_ITEMS = 8192
"""Items of a chunk, at most: 4,096 to 16,384 were equally fast (docs/benchmarks.md)."""
ABSENT = -300.0
"""The logarithm of nothing: its exponential is 0 in float32, and it is a number in float16."""


class Table(nn.Module):
    """Rows of numbers, kept in some precision."""

    values: Tensor
    """[..., any width]"""
    scale: Tensor
    """float32 [..., 1]: what int8 values are multiplied by; 1 for other precisions."""

    def __init__(self, rows: Tensor, precision: str) -> None:
        super().__init__()
        scale = torch.ones_like(rows[..., :1])
        if precision == "int8":
            scale = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
            rows = (rows / scale).round().to(torch.int8)
        self.register_buffer("values", rows.half() if precision == "fp16" else rows)
        self.register_buffer("scale", scale)
        self.scaled = precision == "int8"

    def rows(self, values: Tensor, scale: Tensor) -> Tensor:
        """Some of the rows, float32."""
        rows = values.to(torch.float32)
        return rows * scale if self.scaled else rows


class HistoryEncoder(nn.Module):
    """Histories -> the mean vector of each concept of each user."""

    item_concepts: Tensor
    """[I, C], a_ic."""
    input_bias: Tensor
    """[H]"""

    def __init__(self, model: MacridVAE, precision: str) -> None:
        super().__init__()
        self.n_items = model.n_items
        self.per_concept_norm = model.config.history_norm == "per-concept"
        encoder, size = model.encoder, model.config.embedding_size
        self.input = Table(encoder.input.weight.detach(), precision)
        self.register_buffer("item_concepts", model.assignment())
        self.register_buffer("input_bias", encoder.input.bias.detach().clone())
        self.hidden = nn.ModuleList(copy.deepcopy(layer) for layer in encoder.hidden)
        self.mean = nn.Linear(encoder.output.in_features, size)
        self.mean.load_state_dict({"weight": encoder.output.weight[:size], "bias": encoder.output.bias[:size]})

    def forward(self, history_items: Tensor, history_offsets: Tensor) -> Tensor:
        """[B, C, D], of length 1."""
        history_BL = self.padded(history_items, history_offsets)
        here_BL = history_BL < self.n_items
        item_BL = history_BL.clamp_max(self.n_items - 1)
        weight_BLC = self.item_concepts[item_BL] * here_BL[:, :, None]
        if self.per_concept_norm:
            weight_BLC = weight_BLC / weight_BLC.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        else:
            weight_BLC = weight_BLC / here_BL.sum(dim=1).clamp_min(1).to(weight_BLC.dtype).sqrt()[:, None, None]
        row_BLH = self.input.rows(self.input.values[item_BL], self.input.scale[item_BL])
        hidden_BCH = torch.tanh(weight_BLC.transpose(1, 2) @ row_BLH + self.input_bias)
        for layer in self.hidden:
            hidden_BCH = torch.tanh(layer(hidden_BCH))
        return F.normalize(self.mean(hidden_BCH), dim=-1)

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


class CatalogueDecoder(nn.Module):
    """Vectors of users -> the best items of the catalogue, chunk by chunk."""

    log_shares: Tensor
    """[G, W, C], ln a_ic; what fills up the last chunk is -300, and exp(-300) is 0."""
    start: Tensor
    """int64 [G], the first item of each chunk."""
    onnx: bool
    """Whether the graph is about to become ONNX: a Scan for the loop, and TopK's own order of ties."""

    def __init__(self, model: MacridVAE, precision: str) -> None:
        super().__init__()
        self.n_items, self.n_concepts = model.n_items, model.config.n_concepts
        self.temperature, self.half_product = model.config.temperature, precision == "fp16"
        self.absent = ABSENT  # TorchScript knows no globals
        self.onnx = False
        self.n_chunks = -(-self.n_items // CHUNK_ITEMS)
        self.width = -(-self.n_items // self.n_chunks)
        filling = (0, 0, 0, self.n_chunks * self.width - self.n_items)
        log_shares = F.pad(model.assignment().clamp_min(1e-38).log(), filling, value=ABSENT)
        vectors = F.pad(model.items(), filling)
        self.register_buffer("log_shares", log_shares.reshape(self.n_chunks, self.width, -1))
        self.register_buffer("start", torch.arange(self.n_chunks) * self.width)
        self.item_vectors = Table(vectors.reshape(self.n_chunks, self.width, -1), precision)

    def queries(self, mean_BCD: Tensor, concept_weights: Tensor) -> Tensor:
        """What is multiplied with the rows of items, [B, C, E]; a weight of 0 becomes exp(-300), which is 0."""
        log_weight_BC = concept_weights.log().clamp_min(self.absent) - 1 / self.temperature
        one_hot_BCC = torch.eye(self.n_concepts, device=mean_BCD.device).expand(mean_BCD.shape[0], -1, -1)
        return torch.cat([mean_BCD / self.temperature, one_hot_BCC, log_weight_BC[:, :, None]], dim=2)

    def forward(self, query_BCE: Tensor, excluded: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each user the k largest likelihoods [B, k], their items, and the sum over the whole catalogue [B, 1].

        Likelihoods are p(i|b) but for one factor per user; 0 where fewer than k items may be returned.
        """
        allowed_GW = F.pad(allowed, (0, self.n_chunks * self.width - self.n_items)).reshape(self.n_chunks, self.width)
        total_B1, q_BM, item_BM = self.best_of_chunks(query_BCE, excluded, _smaller(k, self.width), allowed_GW)
        _at_most(k, q_BM.shape[1])
        q_Bk, at_Bk = top_k(q_BM, k, self.onnx)
        return q_Bk, item_BM.gather(1, at_Bk), total_B1

    def best_of_chunks(
        self, query_BCE: Tensor, excluded: Tensor, k: int, allowed_GW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum [B, 1], and likelihoods and items of the best k of each chunk [B, G k]."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if self.onnx:
                return self.scan(query_BCE, excluded, k, allowed_GW)
        total_B1 = torch.zeros_like(query_BCE[:, :1, 0])
        likelihoods: list[Tensor] = []
        items: list[Tensor] = []
        for g in range(self.n_chunks):
            chunk = (self.item_vectors.values[g], self.item_vectors.scale[g], self.log_shares[g], allowed_GW[g])
            sum_B1, q_Bk, item_Bk = self.best_of_chunk(query_BCE, excluded, k, chunk, self.start[g])
            total_B1 = total_B1 + sum_B1
            likelihoods.append(q_Bk)
            items.append(item_Bk)
        return total_B1, torch.cat(likelihoods, dim=1), torch.cat(items, dim=1)

    @torch.jit.unused
    def scan(self, query_BCE: Tensor, excluded: Tensor, k: int, allowed_GW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`best_of_chunks` as one operator, whose body is there once."""

        def step(total_B1: Tensor, chunk: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            values, scale, log_shares, allowed_W, start = chunk
            sum_B1, q_Bk, item_Bk = self.best_of_chunk(
                query_BCE, excluded, k, (values, scale, log_shares, allowed_W), start
            )
            return total_B1 + sum_B1, (q_Bk, item_Bk)

        vectors = self.item_vectors
        chunks = (vectors.values, vectors.scale, self.log_shares, allowed_GW, self.start)
        total_B1, (q_GBk, item_GBk) = scan(step, torch.zeros_like(query_BCE[:, :1, 0]), chunks)
        return total_B1, q_GBk.transpose(0, 1).flatten(1), item_GBk.transpose(0, 1).flatten(1)

    def best_of_chunk(
        self, query_BCE: Tensor, excluded: Tensor, k: int, chunk: tuple[Tensor, Tensor, Tensor, Tensor], start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of a chunk's likelihoods [B, 1], and the k largest that may be returned with their items, by item."""
        values, scale, log_shares, allowed_W = chunk
        row_WE = self.rows(values, scale, log_shares)
        if self.half_product:
            exponent_BCW = (query_BCE.half() @ row_WE.half().T).to(torch.float32)
        else:
            exponent_BCW = query_BCE @ row_WE.T
        q_BW = exponent_BCW.exp().sum(dim=1)
        sum_B1 = q_BW.sum(dim=1, keepdim=True)
        at_BX = excluded - start
        elsewhere_BX = ((at_BX < 0) | (at_BX >= self.width)).to(q_BW.dtype)
        q_BW = (q_BW * allowed_W).scatter_reduce(1, at_BX.clamp(0, self.width - 1), elsewhere_BX, "prod")
        q_Bk, at_Bk = top_k(q_BW, k, self.onnx)
        # By item, so that the position of a candidate decides ties as its item would.
        at_Bk, order_Bk = torch.sort(at_Bk, dim=1)
        return sum_B1, q_Bk.gather(1, order_Bk), at_Bk + start

    def rows(self, values: Tensor, scale: Tensor, log_shares: Tensor) -> Tensor:
        """The rows of items, [..., E]."""
        vectors = self.item_vectors.rows(values, scale)
        return torch.cat([vectors, log_shares, torch.ones_like(log_shares[..., :1])], dim=-1)

    def concept_shares(self, query_BCE: Tensor, item_Bk: Tensor) -> Tensor:
        """Each concept's share of the likelihood of these items, [B, k, C]."""
        g_Bk, w_Bk = torch.div(item_Bk, self.width, rounding_mode="floor"), item_Bk % self.width
        vectors = self.item_vectors
        row_BkE = self.rows(vectors.values[g_Bk, w_Bk], vectors.scale[g_Bk, w_Bk], self.log_shares[g_Bk, w_Bk])
        term_BkC = (row_BkE @ query_BCE.transpose(1, 2)).exp()
        return term_BkC / term_BkC.sum(dim=2, keepdim=True).clamp_min(1e-37)


class RecommendationGraph(nn.Module):
    """Top-K items of a batch of histories, with scores and concept shares; see `forward`."""

    def __init__(self, model: MacridVAE, precision: Precision = "fp32") -> None:
        super().__init__()
        self.n_items, self.n_concepts, self.precision = model.n_items, model.config.n_concepts, precision
        with torch.no_grad():
            self.encoder = HistoryEncoder(model, precision)
            self.decoder = CatalogueDecoder(model, precision)

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
            excluded: int64 [B, X], items never to return, padded with n_items.
            allowed: bool [n_items], the items that may be returned.
            concept_weights: float32 [B, C], multiplies each concept's term; 1 everywhere is the plain model.
            k: int64 scalar, 1 or more.

        Returns:
            items int64 [B, k]: best first, ties by smaller number; -1 where fewer than k may be returned.
            scores float32 [B, k]: ln p(item | user) over the whole catalogue before any exclusion; -inf at item -1.
            concept_shares float32 [B, k, C]: each concept's share of p(item | user); 0 at item -1.
        """
        places = _size(k, 1)
        within = _smaller(places, self.n_items)
        query_BCE = self.decoder.queries(self.encoder(history_items, history_offsets), concept_weights)
        q_Bk, item_Bk, total_B1 = self.decoder(query_BCE, excluded, allowed, within)
        missing_Bk = q_Bk <= 0
        score_Bk = (q_Bk.log() - total_B1.log()).masked_fill(missing_Bk, float("-inf"))
        score_Bk, item_Bk = in_order(score_Bk, item_Bk.masked_fill(missing_Bk, self.n_items))
        missing_Bk = item_Bk == self.n_items
        shares_BkC = self.decoder.concept_shares(query_BCE, item_Bk.clamp_max(self.n_items - 1))
        absent = places - within
        return (
            F.pad(item_Bk.masked_fill(missing_Bk, -1), (0, absent), value=-1.0),
            F.pad(score_Bk, (0, absent), value=float("-inf")),
            F.pad(shares_BkC.masked_fill(missing_Bk[:, :, None], 0.0), (0, 0, 0, absent)),
        )


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
        _at_most(within, n_items)
        return within


def _at_most(k: int, size: int) -> None:
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        torch._check(k <= size)
