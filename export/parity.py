"""Parity: how far an exported file may be from the model, by precision, and how far it was.

What the gate (export/gate.py) measures and every bundle records. Reading a bundle needs this and not the gate.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel

Precision = Literal["fp32", "fp16", "int8"]
"""Of a graph's tables (see export/graph.py); exponentials, sums and the top k are float32 always."""


class Tolerance(NamedTuple):
    """How far a file may be from the model."""

    score: float
    """Of a score (natural log of a probability)."""
    share: float
    """Of a concept share."""
    tie: float
    """Items whose scores are closer than this may change places."""
    overlap: float
    """Least mean share of the model's top k that is found."""
    loss: float
    """Of a metric's mean over the held-out users, chance aside: few users lose or win a hit by a single tie."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(score=1e-4, share=1e-3, tie=1e-5, overlap=0.999, loss=1e-4),
    "fp16": Tolerance(score=1e-2, share=1e-2, tie=1e-2, overlap=0.999, loss=5e-4),
    "int8": Tolerance(score=1e-1, share=5e-2, tie=1e-1, overlap=0.99, loss=1e-3),
}


class Difference(BaseModel, extra="forbid", frozen=True, strict=True):
    """A metric's mean over the held-out users."""

    model: float
    artefact: float


class Parity(BaseModel, extra="forbid", frozen=True, strict=True):
    """What the gate measured for one file; it held everywhere."""

    histories: int
    """Compared, edge cases included."""
    longest_history: int
    k: int
    largest_score_difference: float
    largest_share_difference: float
    same_sets: int
    """Histories with exactly the model's top-k set; the others differ by ties within the tolerance only."""
    mean_overlap: float
    """Share of the model's top k that is found."""
    largest_disorder: float
    """By how much an item is placed above one that the model scores higher."""
    held_out_users: int
    metrics: dict[str, Difference]
    """Of those users; none where the checkpoint holds no such users."""
    same_bits_twice: bool
    largest_batch_difference: float
    """Of a user's scores alone and in a batch."""

    @property
    def largest_loss(self) -> float:
        """Of a metric's mean; 0 where none is lower."""
        return max([0.0, *(metric.model - metric.artefact for metric in self.metrics.values())])

    def sentence(self) -> str:
        """The same for people."""
        return (
            f"{self.histories:,} histories (longest {self.longest_history:,}): scores within "
            f"{self.largest_score_difference:.1e}, {self.same_sets:,} times the same top-{self.k} set "
            f"(overlap {self.mean_overlap:.4f}); {self.held_out_users:,} held-out users: metrics at most "
            f"{self.largest_loss:.1e} lower; nothing random"
        )
