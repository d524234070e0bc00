"""Bundle: the self-contained directory that scoring reads.

    manifest.json           config, formats with what the gate measured, metrics, digests of the files below
    items.parquet           the vocabulary: item_number, item_id, n_interactions, and any titles known
    weights.safetensors     float32, as in the checkpoint
    MODEL_CARD.md           the same facts for people
    model.onnx, model.torchscript.pt, model.pt2
    model.onnx.data         the ONNX graph's weights, where they are too large for one file
    manifest.sig            where it was signed: Ed25519 over manifest.json (see export/signing.py)

Opening needs neither the model's code nor torch. Everything that one file says about another is held against it:
digests, the number of items, the names and shapes of the weights, which graphs there are. What the manifest says about
the past (metrics, parity, operators, versions, how the model was trained) cannot be checked from the files: a signature
binds it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from export.parity import Parity, Precision
from export.signing import SIGNATURE, check_signature
from pipeline.config import Config, ModelConfig
from pipeline.errors import InputError
from pipeline.folder import Stamp, check_unchanged
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import FileDigest, Manifest, check_files, manifest_bytes, parse_manifest
from pipeline.metrics import Measure
from pipeline.scorer import Scorer
from pipeline.vocabulary import Vocabulary

VOCABULARY = "items.parquet"
WEIGHTS = "weights.safetensors"

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
    precision: Precision
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
    stamps: dict[str, Stamp]
    """Of its files when they were hashed."""

    def check_opened(self, scorer: Scorer) -> None:
        """Make sure that a graph opened since is the one that was verified, and fits the vocabulary.

        Files are hashed first and loaded later, by libraries that want a path. Whoever writes to one of them in
        between, or exports a new bundle into its place, is noticed here.

        Raises:
            JobError: a file was written to or replaced.
            InputError: the graph has other numbers of items or concepts than the manifest.
        """
        check_unchanged(self.directory, self.stamps)
        found, declared = (scorer.n_items, scorer.n_concepts), (self.manifest.n_items, self.manifest.n_concepts)
        if found != declared:
            raise InputError(
                f"The graph of {self.directory} has {found[0]} items and {found[1]} concepts, but its {MANIFEST} says "
                f"{declared[0]} and {declared[1]}. Export the checkpoint again."
            )


def read_bundle(path: Path, public_key: Path | None = None) -> Bundle:
    """Open a bundle and verify every file.

    Args:
        path: the bundle.
        public_key: PEM file of whoever must have signed it. None: signed or not.

    Raises:
        InputError: it is not signed with that key (see `check_signature`), a file is missing or altered (see
            `check_files`), or manifest, vocabulary, weights and graphs do not fit one another.
    """
    content = manifest_bytes(path, BundleManifest)
    if public_key is not None:
        check_signature(path, content, public_key)
    manifest = parse_manifest(path, content, BundleManifest)
    _check_formats(path, manifest)
    stamps = check_files(path, manifest, beside=[SIGNATURE])
    vocabulary = Vocabulary.read(path / VOCABULARY)
    if len(vocabulary) != manifest.n_items:
        raise InputError(
            f"{path / VOCABULARY} has {len(vocabulary)} items, but this bundle's graph has {manifest.n_items}. "
            "Export the checkpoint again."
        )
    _check_weights(path / WEIGHTS, manifest)
    digest = FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return Bundle(path, manifest, vocabulary, digest, stamps)


def weight_shapes(model: ModelConfig, n_items: int) -> dict[str, list[int]]:
    """Names and shapes of the weights, as `MacridVAE` has them."""
    widths, size = model.encoder_hidden_sizes, model.embedding_size
    shapes = {
        "item_embedding": [n_items, size],
        "prototypes": [model.n_concepts, size],
        "encoder.input.weight": [n_items, widths[0]],
        "encoder.input.bias": [widths[0]],
        "encoder.output.weight": [2 * size, widths[-1]],
        "encoder.output.bias": [2 * size],
    }
    for layer, (before, after) in enumerate(pairwise(widths)):
        shapes |= {f"encoder.hidden.{layer}.weight": [after, before], f"encoder.hidden.{layer}.bias": [after]}
    return shapes


def _check_formats(path: Path, manifest: BundleManifest) -> None:
    """Each declared graph is there under its name, and no graph that the gate never saw."""
    declared = {form: record.file for form, record in manifest.formats.items()}
    there = {form: file for form, file in FILES.items() if file in manifest.files}
    if declared != there:
        raise InputError(
            f"{path / MANIFEST} declares the graphs {_listed(declared)}, but names the files of {_listed(there)}. "
            "Export the checkpoint again."
        )
    if absent := [name for name in (VOCABULARY, WEIGHTS) if name not in manifest.files]:
        raise InputError(f"{path / MANIFEST} does not name {absent[0]}. Export the checkpoint again.")
    if manifest.n_concepts != manifest.config.model.n_concepts:
        raise InputError(
            f"{path / MANIFEST} says {manifest.n_concepts} concepts, but its config "
            f"{manifest.config.model.n_concepts}. Export the checkpoint again."
        )


def _listed(graphs: dict[str, str]) -> str:
    return ", ".join(f"{form!r:.40} ({file!r:.40})" for form, file in sorted(graphs.items())) or "none"


def _check_weights(path: Path, manifest: BundleManifest) -> None:
    """Read the header: names, types and shapes."""
    try:
        with safe_open(path, framework="numpy") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (not a dict)
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}. Export the checkpoint again.") from None
    expected = {name: ("F32", shape) for name, shape in weight_shapes(manifest.config.model, manifest.n_items).items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"{path}: {name!r:.200} is {_described(found.get(name))}, but by the config and the number of items "
                f"it is {_described(expected.get(name))}. Export the checkpoint again."
            )


def _described(weight: tuple[str, list[int]] | None) -> str:
    return "absent" if weight is None else f"{weight[0]} {weight[1]}"
