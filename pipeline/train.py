"""Training: interactions to checkpoint. Read, split, fit, test, publish.

While it runs, `NAME.metrics.jsonl` beside the output grows by a line per epoch, and `NAME.training.pt` holds the state
of a recent epoch, from which `--resume` goes on; both as a whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch

from pipeline import workers
from pipeline.baselines import cheap_baselines, compare, fit
from pipeline.checkpoint import CheckpointManifest, write_checkpoint
from pipeline.config import Config
from pipeline.dataset import Dataset, load_dataset
from pipeline.eager import EagerScorer
from pipeline.errors import InputError
from pipeline.evaluation import evaluate_each
from pipeline.fitting import Epoch, Fitting, OnStep, deterministic
from pipeline.metrics import Comparison, Measure
from pipeline.model import MacridVAE
from pipeline.publish import check_directory, publish_file, scratch_directory

SAVING_SHARE = 0.05
"""At most about this share of the time goes into saving states."""


def train(
    config: Config,
    output: Path,
    device: str,
    *,
    resume: bool = False,
    on_data: Callable[[Dataset], None] | None = None,
    on_step: OnStep | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> CheckpointManifest | None:
    """Train a model on what the config names.

    Args:
        config: everything that decides the result.
        output: the checkpoint's folder, replaced at the very end.
        device: cpu or cuda.
        resume: go on from the state that a stopped run of the same config and data left; without one, begin.
        on_data: called once the data are read.
        on_step: see `Fitting.epochs`.
        on_epoch: called after every epoch; when resuming, first once for each epoch that is done.

    Returns:
        What was published; None in every worker but the first.

    Raises:
        InputError: the input, the config or `output` cannot be used, or the state is of another run.
        JobError: the loss is no longer finite, or the disk is full.
    """
    check_directory(output)
    with workers.joined(device), scratch_directory(output) as scratch, deterministic(device):
        if workers.rank():
            on_data = on_step = on_epoch = None  # the first worker speaks
        data = load_dataset(config.data, scratch)
        if on_data is not None:
            on_data(data)
        model = MacridVAE.empty(len(data.vocabulary), config.model, device)
        fitting = Fitting(model, data.train, data.validation, config)
        saved = _Saved(output, config, data)
        epochs = saved.load(fitting) if resume else []
        with saved.log(epochs) as write_line:
            for epoch in epochs:
                if on_epoch is not None:
                    on_epoch(epoch)
            for epoch in fitting.epochs(on_step):
                epochs.append(epoch)
                write_line(epoch)
                saved.save_in_time(fitting, epochs)
                if on_epoch is not None:
                    on_epoch(epoch)
        if workers.rank():
            return None
        measured, compared = _measure(model, data)
        manifest = write_checkpoint(
            output,
            config=config,
            vocabulary=data.vocabulary,
            weights=model.state_dict(),
            training=data.train,
            validation=data.validation,
            test=data.test,
            counts=data.counts,
            best_epoch=fitting.best_epoch,
            metrics=measured,
            metrics_lines="".join(_line(epoch) for epoch in epochs),
            data_sha256=saved.data_sha256,
            baselines=compared,
        )
        saved.path.unlink(missing_ok=True)
        return manifest


def _measure(model: MacridVAE, data: Dataset) -> tuple[dict[str, Measure], dict[str, Comparison]]:
    """The model on the test users, and the cheap baselines on the same; nothing without test users."""
    if not len(data.test):
        return {}, {}
    measured, values = evaluate_each(EagerScorer(model), data.test.histories, data.test.targets)
    baselines = fit(cheap_baselines(len(data.vocabulary)), data)
    return measured, compare(values["ndcg@100"], baselines, data.test)


class _Saved:
    """The state file of one training run, and its log of epochs; the first worker writes both."""

    def __init__(self, output: Path, config: Config, data: Dataset) -> None:
        self.path = output.with_name(f"{output.name}.training.pt")
        self._log = output.with_name(f"{output.name}.metrics.jsonl")
        self._config, self.data_sha256 = config.fields(), data.digest()
        self._saved_at, self._seconds = time.monotonic(), 0.0

    def load(self, fitting: Fitting) -> list[Epoch]:
        """Continue the fitting from the file, if there is one; the epochs done so far."""
        if not self.path.is_file():
            return []
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            before, data, epochs = state["config"], state["data"], [Epoch(**epoch) for epoch in state["epochs"]]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
            raise InputError(f"{self.path} is not a state of training: {error}. Train anew without --resume.") from None
        changed = [
            f"{name} was {before.get(name)!r} and is {now!r}"
            for name, now in self._config.items()
            if before.get(name) != now
        ]
        if data != self.data_sha256:
            changed.append("the interactions are others")
        if changed:
            raise InputError(
                f"{self.path} was left by another run: {'; '.join(changed)}. "
                "Resume with what it was started with, or train anew without --resume."
            )
        fitting.load_state_dict(state["fitting"])
        return epochs

    def save_in_time(self, fitting: Fitting, epochs: list[Epoch]) -> None:
        """Save the state, unless the last time was too recent for what saving costs."""
        now = time.monotonic()
        if not workers.first_says(self._seconds <= SAVING_SHARE * (now - self._saved_at)):
            return
        state = {
            "config": self._config,
            "data": self.data_sha256,
            "epochs": [asdict(epoch) for epoch in epochs],
            "fitting": fitting.state_dict(),
        }
        if workers.rank() == 0:
            publish_file(self.path, lambda file: torch.save(state, file))
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - now

    @contextmanager
    def log(self, epochs: list[Epoch]) -> Iterator[Callable[[Epoch], None]]:
        """The log file, begun with these epochs."""
        if workers.rank():
            yield lambda _: None
            return
        with self._log.open("w", encoding="utf-8") as lines:
            lines.writelines(map(_line, epochs))

            def write_line(epoch: Epoch) -> None:
                lines.write(_line(epoch))
                lines.flush()

            yield write_line


def _line(epoch: Epoch) -> str:
    return json.dumps(asdict(epoch)) + "\n"


def training_device(wanted: str) -> str:
    """The device to train on: auto takes CUDA where torch finds it.

    Raises:
        InputError: CUDA was asked for and torch finds none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda was asked for, but torch finds no CUDA device. "
            "Run on a machine with a GPU and a CUDA build of torch, or choose --device cpu."
        )
    return "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu")
