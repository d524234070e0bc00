"""Fitting: Adam on the negative evidence lower bound; the epoch with the best validation NDCG@100 wins.

Everything random (first weights, order of users, dropout, noise) comes from one generator per device, seeded by the
config: on a CPU the same config, data and number of threads give the same bits, and so does a fitting that was stopped
after any epoch and continued from its state.

Several workers (see `pipeline.workers`) see the same batches: each takes its share of a batch's users, the gradients
are averaged. Each draws its own noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pipeline import workers
from pipeline.config import Config, TrainingConfig
from pipeline.eager import EagerScorer, to_batch
from pipeline.errors import InputError, JobError
from pipeline.evaluation import mean_ndcg
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.penalties import penalty
from pipeline.spectral import spectral_start
from pipeline.split import HeldOut

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training users gave; one line of `metrics.jsonl`."""

    epoch: int
    loss: float
    """Mean over users of reconstruction + kl_weight * kl + penalties, as optimised."""
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


class Fitting:
    """A model that is being fitted in place, on its device; its first weights are drawn at once.

    Args:
        model: on its device; what its weights were does not matter.
        users: one history per training user.
        validation: held-out users that choose the epoch; if there are none, the last epoch is kept.
        config: `training` is used, and `model.dropout` and the like by the model itself.

    Raises:
        InputError: there are more workers than users in a batch.
    """

    def __init__(self, model: MacridVAE, users: Histories, validation: HeldOut, config: Config) -> None:
        self.model, self.users, self.validation, self.training = model, users, validation, config.training
        self.n_batches = -(-len(users) // self.training.train_batch_size)
        if len(users) // self.n_batches < workers.size():
            raise InputError(
                f"{workers.size()} workers cannot share batches of {len(users) // self.n_batches} users. "
                "Start fewer workers, or raise training.train_batch_size."
            )
        model.product_dtype = getattr(torch, self.training.precision)
        device = model.item_embedding.device
        self.generator = torch.Generator(device).manual_seed(self.training.seed)
        self.order = np.random.default_rng(self.training.seed)
        model.initialise(self.generator)
        if self.training.initialisation == "spectral":
            items_ID, prototypes_CD = spectral_start(users, model.n_items, config.model, self.training.seed)
            model.turn(torch.from_numpy(items_ID), torch.from_numpy(prototypes_CD))
        if workers.rank():
            self.generator.manual_seed(self.training.seed + workers.rank())
        self.replica = DistributedDataParallel(model) if workers.size() > 1 else model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.training.learning_rate)
        self.average = None
        if self.training.averaged_epochs:
            self.average = AveragedModel(model, multi_avg_fn=self._move_average)
        self.epoch, self.best_epoch, self.best_ndcg, self.best_weights = 0, 0, -1.0, _copy(model)

    @property
    def measured(self) -> MacridVAE:
        """The model that is validated and kept: the moving average of the weights if there is one."""
        return self.model if self.average is None else cast(MacridVAE, self.average.module)

    @property
    def finished(self) -> bool:
        """All epochs are done, or the last `stopping_step` brought nothing better."""
        training = self.training
        return self.epoch >= training.epochs or self.epoch - self.best_epoch >= training.stopping_step

    def epochs(self, on_step: OnStep | None = None) -> Iterator[Epoch]:
        """Fit, an epoch per item; once exhausted, the model holds its best epoch.

        Args:
            on_step: called after every step with the epoch, the number of users it saw, and their mean loss.

        Raises:
            JobError: the loss is no longer finite.
        """
        while not self.finished:
            started = time.perf_counter()
            self.epoch += 1
            means = self._pass(on_step)
            trained = time.perf_counter()
            ndcg = self._validate()
            if ndcg is None or ndcg > self.best_ndcg:
                self.best_epoch, self.best_ndcg, self.best_weights = self.epoch, ndcg or 0.0, _copy(self.measured)
            yield Epoch(
                epoch=self.epoch,
                loss=float(means[0]),
                reconstruction=float(means[1]),
                kl=float(means[2]),
                kl_weight=kl_weight(self.training, self.epoch * self.n_batches, self.n_batches),
                validation_ndcg_100=ndcg,
                best_epoch=self.best_epoch,
                seconds=time.perf_counter() - started,
                users_per_second=len(self.users) / (trained - started),
            )
        self.model.load_state_dict(self.best_weights)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on: tensors, numbers and strings. Every worker must call it."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": workers.all_say(self.generator.get_state()),
            "order": self.order.bit_generator.state,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_ndcg": self.best_ndcg,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, by as many workers.

        Raises:
            InputError: another number of workers took it.
        """
        if len(state["generators"]) != workers.size():
            raise InputError(
                f"{len(state['generators'])} workers trained until epoch {state['epoch']}, {workers.size()} would go "
                "on. Start as many as before, or train anew without --resume."
            )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generators"][workers.rank()].cpu())
        self.order.bit_generator.state = state["order"]
        self.epoch, self.best_epoch, self.best_ndcg = state["epoch"], state["best_epoch"], state["best_ndcg"]
        self.best_weights = state["best_weights"]

    def _pass(self, on_step: OnStep | None) -> NDArray[np.float64]:
        """One pass over the users; means of loss, reconstruction and KL."""
        sums = np.zeros(3)
        step = (self.epoch - 1) * self.n_batches
        for rows in np.array_split(self.order.permutation(len(self.users)), self.n_batches):
            step += 1
            values = self._step(rows, step)
            if not np.isfinite(values[0]):
                raise JobError(
                    f"The loss of step {step} (epoch {self.epoch}) is {values[0]}. "
                    "Lower training.learning_rate or raise model.temperature."
                )
            sums += values * len(rows)
            if on_step is not None:
                on_step(self.epoch, len(rows), float(values[0]))
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise JobError(f"Weights are no longer finite after epoch {self.epoch}. Lower training.learning_rate.")
        return sums / len(self.users)

    def _step(self, rows: NDArray[np.int64], step: int) -> NDArray[np.float64]:
        """One update; what was optimised, and its reconstruction and KL terms."""
        training, mine = self.training, rows[workers.rank() :: workers.size()]
        share = len(mine) / len(rows)
        batch = to_batch(self.users.take(mine), self.model.item_embedding.device)
        terms = self.replica(batch, self.model.draw(batch, self.generator))
        expected = terms.reconstruction + kl_weight(training, step, self.n_batches) * terms.kl
        loss = expected * (share * workers.size()) + penalty(self.model, training)
        self.optimizer.param_groups[0]["lr"] = learning_rate(training, step, self.n_batches)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        values = torch.stack([loss / workers.size(), terms.reconstruction * share, terms.kl * share])
        return workers.total(values.detach().double()).cpu().numpy()

    def _move_average(self, average: Any, weights: Any, n_averaged: Tensor | int) -> None:
        """One step of the moving average; a young one moves faster, or it would remember the first weights."""
        n = int(n_averaged)
        kept = min(1 - 1 / (1 + self.training.averaged_epochs * self.n_batches), (1 + n) / (10 + n))
        torch._foreach_lerp_(average, weights, 1 - kept)

    def _validate(self) -> float | None:
        if not len(self.validation):
            return None
        ndcg = None
        if workers.rank() == 0:
            ndcg = mean_ndcg(EagerScorer(self.measured), self.validation.histories, self.validation.targets)
        return workers.first_says(ndcg)


def kl_weight(training: TrainingConfig, step: int, n_batches: int) -> float:
    """Weight of the KL term at a step (counted from 1): it grows by 1 / kl_anneal_steps a step up to kl_weight."""
    anneal_steps = 5 * n_batches if training.kl_anneal_steps == "5-epochs" else training.kl_anneal_steps
    return min(training.kl_weight, step / anneal_steps) if anneal_steps else training.kl_weight


def learning_rate(training: TrainingConfig, step: int, n_batches: int) -> float:
    """Adam's step size at a step (counted from 1): as it is, or falling to 0 along half a cosine over all epochs."""
    if training.learning_rate_schedule == "constant":
        return training.learning_rate
    done = (step - 1) / (training.epochs * n_batches)
    return training.learning_rate * (1 + math.cos(math.pi * done)) / 2


def _copy(model: MacridVAE) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """On a CPU, refuse operations that could give other bits on another run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
