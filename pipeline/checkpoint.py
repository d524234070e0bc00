"""Checkpoint: the directory that training writes and everything after it reads.

manifest.json         config, counts, metrics, digests of the files below
weights.safetensors   float32, the state dict of `MacridVAE`
items.parquet         the vocabulary
histories.parquet     split, history, targets: users as item numbers (no user ids), for the export's checks
metrics.jsonl         one line per epoch
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.manifest import Manifest, digests, read_manifest, versions, write_manifest
from pipeline.metrics import Comparison, Measure
from pipeline.model import MacridVAE
from pipeline.publish import publish_directory
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary

WEIGHTS = "weights.safetensors"
KEPT_USERS = {"training": 256, "validation": 10_000, "test": 10_000}
"""Users of each split whose histories the checkpoint keeps, at most; of training, a sample with the longest."""


class CheckpointManifest(Manifest):
    """What a checkpoint says about itself."""

    kind: Literal["checkpoint"] = "checkpoint"
    format_version: Literal[2] = 2
    config: Config
    counts: dict[str, int]
    """Rows, users and items read, kept and dropped, and why."""
    data_sha256: str | None
    """`Dataset.digest` of what the weights learned from; None for weights trained elsewhere."""
    best_epoch: int | None
    metrics: dict[str, Measure]
    """Of the test users."""
    baselines: dict[str, Comparison]
    """Fitted on the same training users, measured on the same test users; see `pipeline.baselines`."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, its files verified."""

    manifest: CheckpointManifest
    vocabulary: Vocabulary
    weights: dict[str, torch.Tensor]
    training: Histories
    """A few training users, the longest history among them."""
    validation: HeldOut
    test: HeldOut

    def model(self) -> MacridVAE:
        """The model with these weights, on the CPU."""
        return _model(self.weights, len(self.vocabulary), self.manifest.config)


def write_checkpoint(
    path: Path,
    *,
    config: Config,
    vocabulary: Vocabulary,
    weights: dict[str, torch.Tensor],
    training: Histories,
    validation: HeldOut,
    test: HeldOut,
    counts: dict[str, int],
    best_epoch: int | None,
    metrics: dict[str, Measure],
    metrics_lines: str,
    data_sha256: str | None = None,
    baselines: Mapping[str, Comparison] | None = None,
) -> CheckpointManifest:
    """Publish a checkpoint: readers see the former one (or none) until this one is whole.

    Args:
        path: the folder; an older checkpoint there is replaced.
        config: what the weights were trained with; `model` decides their shapes.
        vocabulary: item i of the vocabulary is row i of the item tables.
        weights: names and shapes of `MacridVAE`'s state dict, any float dtype; stored as float32.
        training: the training users; a few are kept.
        validation: held-out users the epoch was chosen by; may be empty.
        test: held-out users the metrics are of; may be empty.
        counts: what the data loader reported.
        best_epoch: the epoch the weights are of; None for weights trained elsewhere.
        metrics: of the test users.
        metrics_lines: one JSON object per epoch.
        data_sha256: digest of the data set; None for weights trained elsewhere.
        baselines: what was measured beside the model, by name.

    Raises:
        InputError: names or shapes of the weights do not fit the config and vocabulary.
    """
    weights = {name: weight.detach().to("cpu", torch.float32).contiguous() for name, weight in weights.items()}
    check_weights(weights, len(vocabulary), config, str(path))
    with publish_directory(path) as folder:
        vocabulary.write(folder / "items.parquet")
        save_file(weights, folder / WEIGHTS)
        # safetensors makes it readable by its owner alone; whoever exports may be somebody else.
        shutil.copymode(folder / "items.parquet", folder / WEIGHTS)
        _write_histories(folder / "histories.parquet", training, validation, test)
        (folder / "metrics.jsonl").write_text(metrics_lines, encoding="utf-8")
        manifest = CheckpointManifest(
            files=digests(folder),
            versions=versions("torch", "numpy", "polars", "pyarrow", "safetensors"),
            config=config,
            counts=counts,
            data_sha256=data_sha256,
            best_epoch=best_epoch,
            metrics=metrics,
            baselines=dict(baselines or {}),
        )
        write_manifest(folder, manifest)
    return manifest


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint and verify it.

    Raises:
        InputError: a file is missing or altered (see `read_manifest`), or weights, vocabulary and config do not fit.
    """
    manifest = read_manifest(path, CheckpointManifest)
    vocabulary = Vocabulary.read(path / "items.parquet")
    weights = load_file(path / WEIGHTS)
    check_weights(weights, len(vocabulary), manifest.config, str(path))
    table = pq.read_table(path / "histories.parquet")
    training = _held_out(table, "training").histories
    return Checkpoint(manifest, vocabulary, weights, training, _held_out(table, "validation"), _held_out(table, "test"))


def read_model(path: Path, n_items: int, config: Config) -> MacridVAE:
    """The model, on the CPU, of a checkpoint or bundle that has been opened (and so verified).

    Raises:
        InputError: its weights do not fit the config and the number of items.
    """
    weights = load_file(path / WEIGHTS)
    check_weights(weights, n_items, config, str(path))
    return _model(weights, n_items, config)


def check_weights(weights: dict[str, torch.Tensor], n_items: int, config: Config, where: str) -> None:
    """Compare names and shapes with what the config asks for.

    Raises:
        InputError: naming every weight that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in MacridVAE(n_items, config.model).state_dict().items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"{name} is unexpected" for name in sorted(weights.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & weights.keys()):
        if tuple(weights[name].shape) != wanted[name]:
            problems.append(f"{name} has shape {list(weights[name].shape)}, expected {list(wanted[name])}")
    if problems:
        raise InputError(
            f"The weights of {where} do not fit its config and its {n_items} items: {'; '.join(problems)}. "
            "Correct [model] in the config, or use the weights that belong to it."
        )


def _model(weights: dict[str, torch.Tensor], n_items: int, config: Config) -> MacridVAE:
    with torch.device("meta"):
        model = MacridVAE(n_items, config.model)
    model.load_state_dict(weights, assign=True)
    return model


def _write_histories(path: Path, training: Histories, validation: HeldOut, test: HeldOut) -> None:
    by_length = np.argsort(-training.lengths, kind="stable")
    sample = by_length[np.linspace(0, len(by_length) - 1, min(len(by_length), KEPT_USERS["training"]), dtype=np.int64)]
    nothing = Histories.of([()] * len(sample))
    splits = {"training": HeldOut(training.take(sample), nothing), "validation": validation, "test": test}
    rows: dict[str, list[object]] = {"split": [], "history": [], "targets": []}
    for split, users in splits.items():
        for user in range(min(len(users.histories), KEPT_USERS[split])):
            rows["split"].append(split)
            rows["history"].append(users.histories[user])
            rows["targets"].append(users.targets[user])
    items = pa.list_(pa.int32())
    schema = pa.schema([("split", pa.string()), ("history", items), ("targets", items)])
    pq.write_table(pa.table(rows, schema=schema), path, compression="zstd")


def _held_out(table: pa.Table, split: str) -> HeldOut:
    rows = table.filter(pc.equal(table["split"], split))
    return HeldOut(Histories.from_arrow(rows["history"]), Histories.from_arrow(rows["targets"]))
