"""MacridVAE in float64 NumPy, straight from the formulas of Ma et al. (NeurIPS 2019), for the tests.

It shares nothing with `pipeline.model`: histories are dense multi-hot rows, concepts are visited one by one, noise
comes in as arrays, and nothing is shifted, sliced or fused.

Shape letters: B users, C concepts, D dimensions, H hidden units, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ModelConfig
from pipeline.histories import Histories

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


class Noise(NamedTuple):
    """The randomness of one training step, dense."""

    gumbel_IC: Array | None
    kept_CBI: Array
    """0 where dropout hides the item, 1 / (1 - dropout) elsewhere."""
    normal_CBD: Array


def random_weights(config: ModelConfig, n_items: int, seed: int = 0) -> dict[str, Array]:
    """Weights by the names and shapes of `weights.safetensors`, large enough that every part of the model matters."""
    widths, size = config.encoder_hidden_sizes, config.embedding_size
    shapes = {
        "item_embedding": (n_items, size),
        "prototypes": (config.n_concepts, size),
        "encoder.input.weight": (n_items, widths[0]),
        "encoder.input.bias": (widths[0],),
        "encoder.output.weight": (2 * size, widths[-1]),
        "encoder.output.bias": (2 * size,),
    }
    for j, (before, after) in enumerate(pairwise(widths)):
        shapes |= {f"encoder.hidden.{j}.weight": (after, before), f"encoder.hidden.{j}.bias": (after,)}
    rng = np.random.default_rng(seed)
    scale = {
        name: shape[-1] ** -0.5 if name.startswith(("encoder.h", "encoder.o")) else 1 for name, shape in shapes.items()
    }
    return {name: rng.normal(0, scale[name], shape) for name, shape in shapes.items()}


def dense(histories: Histories, n_items: int) -> Array:
    """Multi-hot histories, [B, I]."""
    x_BI = np.zeros((len(histories), n_items))
    for user in range(len(histories)):
        x_BI[user, histories[user]] = 1
    return x_BI


def assignment(weights: Weights, config: ModelConfig, gumbel_IC: Array | None = None) -> Array:
    """c_ik = softmax_k(cos(h_i, m_k) / t), [I, C]; Gumbel noise is added to the logits of a relaxed one-hot draw."""
    logits_IC = _unit(weights["item_embedding"]) @ _unit(weights["prototypes"]).T / config.temperature
    if gumbel_IC is not None:
        logits_IC = logits_IC + gumbel_IC
    odds_IC = np.exp(logits_IC)
    return odds_IC / odds_IC.sum(axis=1, keepdims=True)


def encode(
    weights: Weights, config: ModelConfig, x_BI: Array, share_IC: Array, kept_CBI: Array | None = None
) -> tuple[Array, Array]:
    """(mu, sigma), each [C, B, D]: the encoder applied to every concept's part of the histories."""
    means, deviations = [], []
    for c in range(config.n_concepts):
        if config.history_norm == "per-concept":  # the authors: mask, normalise, drop out
            input_BI = _l2_normalize(x_BI * share_IC[:, c])
        else:  # RecBole: normalise, drop out, mask
            input_BI = _l2_normalize(x_BI) * share_IC[:, c]
        if kept_CBI is not None:
            input_BI = input_BI * kept_CBI[c]
        hidden_BH = np.tanh(input_BI @ weights["encoder.input.weight"] + weights["encoder.input.bias"])
        for j in range(len(config.encoder_hidden_sizes) - 1):
            hidden_BH = np.tanh(
                hidden_BH @ weights[f"encoder.hidden.{j}.weight"].T + weights[f"encoder.hidden.{j}.bias"]
            )
        head = hidden_BH @ weights["encoder.output.weight"].T + weights["encoder.output.bias"]
        means.append(_unit(head[:, : config.embedding_size]))
        deviations.append(config.prior_std * np.exp(-head[:, config.embedding_size :] / 2))
    return np.stack(means), np.stack(deviations)


def terms(weights: Weights, config: ModelConfig, z_CBD: Array, share_IC: Array) -> Array:
    """Each concept's term of p(i|u) before the sum over items, [B, I, C]: c_ik exp(cos(z_k, h_i) / t)."""
    items_ID = _unit(weights["item_embedding"])
    parts = [
        share_IC[:, c] * np.exp(_unit(z_CBD[c]) @ items_ID.T / config.temperature) for c in range(config.n_concepts)
    ]
    return np.stack(parts, axis=-1)


def loss(weights: Weights, config: ModelConfig, x_BI: Array, noise: Noise) -> tuple[float, float]:
    """(reconstruction, KL): means over users of -sum_i x_i log p(i|z) and of sum_k KL(q(z_k) || N(0, prior_std^2)).

    The KL's term in mu is left out: |mu| = 1 makes it the constant 1 / (2 prior_std^2).
    """
    share_IC = assignment(weights, config, noise.gumbel_IC)
    mu_CBD, sigma_CBD = encode(weights, config, x_BI, share_IC, noise.kept_CBI)
    q_BI = terms(weights, config, mu_CBD + sigma_CBD * noise.normal_CBD, share_IC).sum(axis=-1)
    p_BI = q_BI / q_BI.sum(axis=1, keepdims=True)
    reconstruction_B = -(x_BI * np.log(p_BI)).sum(axis=1)
    prior = config.prior_std
    kl_CB = (np.log(prior / sigma_CBD) + (sigma_CBD**2 + mu_CBD**2) / (2 * prior**2) - 1 / 2).sum(axis=-1)
    return float(reconstruction_B.mean()), float((kl_CB - 1 / (2 * prior**2)).sum(axis=0).mean())


def recommend(
    weights: Weights, config: ModelConfig, x_BI: Array, concept_weights_BC: Array | None = None
) -> tuple[Array, Array]:
    """(log p(i|u) [B, I], concept shares [B, I, C]) at inference: no noise, z = mu, terms times concept weights."""
    share_IC = assignment(weights, config)
    part_BIC = terms(weights, config, encode(weights, config, x_BI, share_IC)[0], share_IC)
    if concept_weights_BC is not None:
        part_BIC = part_BIC * concept_weights_BC[:, None, :]
    q_BI = part_BIC.sum(axis=-1)
    return np.log(q_BI / q_BI.sum(axis=1, keepdims=True)), part_BIC / q_BI[:, :, None]


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _l2_normalize(x_BI: Array) -> Array:
    """As TensorFlow's: a sum of squares below 1e-12 counts as 1e-12, so an empty history stays zero."""
    return x_BI / np.sqrt(np.maximum((x_BI**2).sum(axis=1, keepdims=True), 1e-12))
