"""Bundle: the self-contained directory that scoring reads.

    manifest.json           config, formats with what the gate measured, metrics, digests of the files below
    items.parquet           the vocabulary: item_number, item_id, n_interactions, and any titles known
    weights.safetensors     float32, as in the checkpoint
    MODEL_CARD.md           the same facts for people
    model.onnx, model.torchscript.pt, model.pt2
    model.onnx.data         the ONNX graph's weights, where they are too large for one file

Opening needs neither the model's code nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from export.gate import Parity
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import FileDigest, Manifest, digest, read_manifest
from pipeline.metrics import Measure
from pipeline.vocabulary import Vocabulary

FILES = {"onnx": "model.onnx", "torchscript": "model.torchscript.pt", "pt2": "model.pt2"}
"""The formats, and the name of each one's file."""
ONNX_WEIGHTS = "model.onnx.data"
"""Where the ONNX graph keeps weights of 2 GB and more."""


class Format(BaseModel, extra="forbid", frozen=True, strict=True):
    """One file of the graph."""

    file: str
    opset: int | None
    """Of ONNX."""
    operators: dict[str, int]
    """How often each occurs; none draws random numbers."""
    parity: Parity


class BundleManifest(Manifest):
    """What a bundle says about itself."""

    kind: Literal["bundle"] = "bundle"
    format_version: Literal[2] = 2
    checkpoint: FileDigest
    """The manifest of the checkpoint this bundle was made from."""
    config: Config
    counts: dict[str, int]
    metrics: dict[str, Measure]
    """Of the test users, measured at the end of training."""
    n_items: int
    n_concepts: int
    precision: Literal["fp32", "fp16", "int8"]
    """Of the tables; exponentials, sums and the top k are float32 always."""
    formats: dict[str, Format]

    def parity(self) -> dict[str, Parity]:
        """What the gate measured, by format."""
        return {name: form.parity for name, form in self.formats.items()}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified."""

    directory: Path
    manifest: BundleManifest
    vocabulary: Vocabulary
    digest: FileDigest
    """Of its manifest, and so of all its files."""


def read_bundle(path: Path) -> Bundle:
    """Open a bundle and verify every file.

    Raises:
        InputError: a file is missing or altered (see `read_manifest`), or the vocabulary does not fit the graph.
    """
    manifest = read_manifest(path, BundleManifest)
    vocabulary = Vocabulary.read(path / "items.parquet")
    if len(vocabulary) != manifest.n_items:
        raise InputError(
            f"{path / 'items.parquet'} has {len(vocabulary)} items, but this bundle's graph has {manifest.n_items}. "
            "Export the checkpoint again."
        )
    return Bundle(path, manifest, vocabulary, digest(path / MANIFEST))
