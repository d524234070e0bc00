"""Training: Adam on the negative evidence lower bound; the epoch with the best validation NDCG@100 wins.

Everything random (first weights, order of users, dropout, noise) comes from one generator per device, seeded by the
config: on a CPU the same config, data and number of threads give the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint import CheckpointManifest, write_checkpoint
from pipeline.config import Config, TrainingConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.eager import EagerScorer, to_batch
from pipeline.errors import InputError, JobError
from pipeline.evaluation import evaluate, mean_ndcg
from pipeline.histories import Histories
from pipeline.model import Batch, MacridVAE
from pipeline.publish import check_directory, scratch_directory
from pipeline.split import HeldOut


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training users gave; one line of `metrics.jsonl`."""

    epoch: int
    loss: float
    """Mean over users of reconstruction + kl_weight * kl + l2, as optimised."""
    reconstruction: float
    kl: float
    kl_weight: float
    """Of the epoch's last step."""
    validation_ndcg_100: float | None
    """None without validation users."""
    best_epoch: int
    seconds: float
    """Training and validation."""
    users_per_second: float
    """Training alone."""


def fit(
    model: MacridVAE,
    users: Histories,
    validation: HeldOut,
    config: Config,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Iterator[Epoch]:
    """Train the model in place, an epoch per item; once the iterator is exhausted, the model holds its best epoch.

    Args:
        model: on its device; its weights are drawn anew.
        users: one history per training user.
        validation: held-out users that choose the epoch; if there are none, the last epoch is kept.
        config: `training` is used, and `model.dropout` and the like by the model itself.
        on_step: called after every step with the epoch, the number of users it saw, and their mean loss.

    Raises:
        JobError: the loss is no longer finite.
    """
    training = config.training
    device = model.item_embedding.device
    generator = torch.Generator(device).manual_seed(training.seed)
    order = np.random.default_rng(training.seed)
    model.initialise(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    n_batches = -(-len(users) // training.train_batch_size)
    step, best_epoch, best_ndcg, best_weights = 0, 0, -1.0, _copy(model)
    for epoch in range(1, training.epochs + 1):
        started = time.perf_counter()
        sums, kl_weight = np.zeros(3), 0.0
        for rows in np.array_split(order.permutation(len(users)), n_batches):
            step += 1
            kl_weight = annealed(training, step, n_batches)
            values = _step(model, optimizer, to_batch(users.take(rows), device), generator, kl_weight, training)
            if not np.isfinite(values[0]):
                raise JobError(
                    f"The loss of step {step} (epoch {epoch}) is {values[0]}. "
                    "Lower training.learning_rate or raise model.temperature."
                )
            sums += np.multiply(values, len(rows))
            if on_step is not None:
                on_step(epoch, len(rows), values[0])
        if not all(torch.isfinite(weight).all() for weight in model.parameters()):
            raise JobError(f"Weights are no longer finite after epoch {epoch}. Lower training.learning_rate.")
        trained = time.perf_counter()
        ndcg = mean_ndcg(EagerScorer(model), validation.histories, validation.targets) if len(validation) else None
        if ndcg is None or ndcg > best_ndcg:
            best_epoch, best_ndcg, best_weights = epoch, ndcg or 0.0, _copy(model)
        yield Epoch(
            epoch=epoch,
            loss=float(sums[0] / len(users)),
            reconstruction=float(sums[1] / len(users)),
            kl=float(sums[2] / len(users)),
            kl_weight=kl_weight,
            validation_ndcg_100=ndcg,
            best_epoch=best_epoch,
            seconds=time.perf_counter() - started,
            users_per_second=len(users) / (trained - started),
        )
        if epoch - best_epoch >= training.stopping_step:
            break
    model.load_state_dict(best_weights)


def annealed(training: TrainingConfig, step: int, n_batches: int) -> float:
    """Weight of the KL term at a step (counted from 1): it grows by 1 / kl_anneal_steps a step up to kl_weight."""
    anneal_steps = 5 * n_batches if training.kl_anneal_steps == "5-epochs" else training.kl_anneal_steps
    return min(training.kl_weight, step / anneal_steps) if anneal_steps else training.kl_weight


def l2_penalty(model: MacridVAE, training: TrainingConfig) -> Tensor | float:
    """Sum of w^2 of item and prototype vectors, and of encoder weights (not biases), each times its weight."""
    tables, encoder = training.l2_weights
    penalty: Tensor | float = 0.0
    if tables:
        penalty = penalty + tables * (model.item_embedding.square().sum() + model.prototypes.square().sum())
    if encoder:
        weights = (p for name, p in model.encoder.named_parameters() if name.endswith("weight"))
        penalty = penalty + encoder * sum(weight.square().sum() for weight in weights)
    return penalty


def _step(
    model: MacridVAE,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    generator: torch.Generator,
    kl_weight: float,
    training: TrainingConfig,
) -> list[float]:
    """One update; what was optimised, and its reconstruction and KL terms."""
    terms = model(batch, model.draw(batch, generator))
    loss = terms.reconstruction + kl_weight * terms.kl + l2_penalty(model, training)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    values: list[float] = torch.stack([loss, terms.reconstruction, terms.kl]).detach().double().tolist()
    return values


def _copy(model: MacridVAE) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def train(
    config: Config,
    output: Path,
    device: str,
    on_data: Callable[[Dataset], None] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> CheckpointManifest:
    """Interactions to checkpoint: read, split, fit, test, publish.

    Args:
        config: everything that decides the result.
        output: the checkpoint's folder, replaced at the very end; beside it, `NAME.metrics.jsonl` grows by a line per
            epoch meanwhile.
        device: cpu or cuda.
        on_data: called once the data are read.
        on_step: see `fit`.
        on_epoch: called after every epoch.

    Raises:
        InputError: the input, the config or `output` cannot be used.
        JobError: the loss is no longer finite, or the disk is full.
    """
    check_directory(output)
    log = output.with_name(f"{output.name}.metrics.jsonl")
    with scratch_directory(output) as scratch, _deterministic(device):
        data = load_dataset(config.data, scratch)
        if on_data is not None:
            on_data(data)
        with torch.device("meta"):
            model = MacridVAE(len(data.vocabulary), config.model)
        model.to_empty(device=device)
        best_epoch = 0
        with log.open("w", encoding="utf-8") as lines:
            for epoch in fit(model, data.train, data.validation, config, on_step=on_step):
                best_epoch = epoch.best_epoch
                print(json.dumps(asdict(epoch)), file=lines, flush=True)
                if on_epoch is not None:
                    on_epoch(epoch)
        measured = evaluate(EagerScorer(model), data.test.histories, data.test.targets) if len(data.test) else {}
        return write_checkpoint(
            output,
            config=config,
            vocabulary=data.vocabulary,
            weights=model.state_dict(),
            training=data.train,
            validation=data.validation,
            test=data.test,
            counts=data.counts,
            best_epoch=best_epoch,
            metrics=measured,
            metrics_lines=log.read_text(encoding="utf-8"),
        )


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """On a CPU, refuse operations that could give other bits on another run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


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
