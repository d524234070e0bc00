"""Penalties: what the loss adds whatever the batch.

Shape letters: I items, C concepts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import TrainingConfig
from pipeline.model import MacridVAE


def penalty(model: MacridVAE, training: TrainingConfig) -> Tensor | float:
    """The L2 penalty, less `sharpness_weight` times what an item tells of its concept."""
    total: Tensor | float = l2_penalty(model, training)
    if training.sharpness_weight:
        total = total - training.sharpness_weight * concept_information(model.assignment())
    return total


def concept_information(assignment_IC: Tensor) -> Tensor:
    """Mutual information of item and concept in nats, 0 to log C: H(mean assignment) - mean of H(assignment).

    Large when every item has one concept and every concept as many items (regularised information maximisation: Krause,
    Perona, Gomes, "Discriminative Clustering by Regularized Information Maximization", NeurIPS 2010).
    """
    return _entropy(assignment_IC.mean(dim=0)) - _entropy(assignment_IC).mean()


def _entropy(p: Tensor) -> Tensor:
    """Of distributions along the last dimension; the smallest normal number keeps the gradient finite at 0."""
    entropy: Tensor = torch.special.entr(p.clamp_min(torch.finfo(p.dtype).tiny)).sum(dim=-1)
    return entropy


def l2_penalty(model: MacridVAE, training: TrainingConfig) -> Tensor | float:
    """Sum of w^2 of item and prototype vectors, and of encoder weights (not biases), each times its weight."""
    tables, encoder = training.l2_weights
    total: Tensor | float = 0.0
    if tables:
        total = total + tables * (model.item_embedding.square().sum() + model.prototypes.square().sum())
    if encoder:
        weights = (p for name, p in model.encoder.named_parameters() if name.endswith("weight"))
        total = total + encoder * sum(weight.square().sum() for weight in weights)
    return total
