"""A small checkpoint of random weights, and the bundle of all formats made from it: once per test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock

from pipeline.checkpoint import write_checkpoint
from pipeline.config import Config, ModelConfig
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary

SMALL = Config(model=ModelConfig(n_concepts=3, embedding_size=8, encoder_hidden_sizes=[16, 12]))
SMALL_ITEMS = 500


def small_model(config: ModelConfig, n_items: int, seed: int = 0) -> MacridVAE:
    """Random weights, large enough that histories matter."""
    model = MacridVAE(n_items, config)
    model.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.encoder.input.weight.mul_(20)
    return model.eval()


def random_histories(lengths: list[int], n_items: int, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    return Histories.of(
        [sorted(rng.choice(n_items, min(length, n_items), replace=False).tolist()) for length in lengths]
    )


def write_small_checkpoint(path: Path, config: Config = SMALL, n_items: int = SMALL_ITEMS) -> None:
    rng = np.random.default_rng(3)
    whole = random_histories([5, 11, 35], n_items, 1)
    shown = [whole[user][:-2].tolist() for user in range(3)]
    held_out = HeldOut(Histories.of(shown), Histories.of([whole[user][-2:].tolist() for user in range(3)]))
    write_checkpoint(
        path,
        config=config,
        vocabulary=Vocabulary.of(
            pl.Series([f"item-{i:03d}" for i in range(n_items)]), rng.integers(1, 100, n_items).astype(np.int64)
        ),
        weights=model_weights(config, n_items),
        training=random_histories([1, 200, 17, 5, 60, 8], n_items),
        validation=held_out,
        test=held_out,
        counts={"rows_read": 10},
        best_epoch=1,
        metrics={},
        metrics_lines="",
    )


def model_weights(config: Config, n_items: int) -> dict[str, torch.Tensor]:
    return small_model(config.model, n_items).state_dict()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors gain nothing from threads, and test processes side by side would wait for each other's."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Whether bytes survive a power cut is not seen from here; bringing them to disk is most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.publish._fsync", lambda path: None)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what test processes side by side make once; nobody changes what is there."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def checkpoint(shared: Path) -> Path:
    path = shared / "small" / "checkpoint"
    with FileLock(shared / "checkpoint.lock"):
        if not path.exists():
            path.parent.mkdir()
            write_small_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, shared: Path) -> Path:
    from export.exporter import export_bundle
    from scoring.runtimes import open_scorer

    path = checkpoint.parent / "bundle"
    with FileLock(shared / "bundle.lock"):
        if not path.exists():
            export_bundle(checkpoint, path, ["onnx", "torchscript", "pt2"], open_scorer)
    return path
