"""Progress on standard error: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from pipeline.dataset import Dataset
    from pipeline.fitting import Epoch

SECONDS_BETWEEN_LINES = 10.0


class Shown:
    """How far a job is, how long it will still take, and a note; a context manager."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=1.0, note="")
        self._started = time.monotonic()
        self._next_line = self._started + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def update(self, share: float, note: str) -> None:
        """Show the share of the job that is done, 0 to 1."""
        self._bar.start()
        self._bar.update(self._task, completed=share, note=note)
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            left = f"{self.seconds / share * (1 - share):,.0f} s left" if share else "starting"
            self.say(f"{self.what}: {share:.0%}, {left}; {note}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class TrainingProgress(Shown):
    """Training: `data`, `step` and `epoch` are what `pipeline.train.train` calls.

    Args:
        epochs: how many there are at most.
        tensorboard: a folder for TensorBoard's event files, a point per epoch. None: none are written.

    Raises:
        InputError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, epochs: int, tensorboard: Path | None = None) -> None:
        super().__init__("training")
        self._epochs, self._users, self._done, self._seen, self._best = epochs, 0, 0, 0, ""
        self._trained_from = self._started
        self._writer = _tensorboard(tensorboard) if tensorboard else None

    def data(self, data: Dataset) -> None:
        """Once the interactions are read."""
        self._users = len(data.train)
        self._trained_from = time.monotonic()
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in data.counts.items() if count)
        self.say(f"data, after {self.seconds:.1f} s: {counts}")

    def step(self, epoch: int, n_users: int, loss: float) -> None:
        """After every step."""
        self._done += n_users
        self._seen += n_users
        speed = self._seen / max(time.monotonic() - self._trained_from, 1e-9)
        note = f"epoch {epoch}, loss {loss:.2f}, {speed:,.0f} users/s{self._best}"
        self.update(self._done / (self._users * self._epochs), note)

    def epoch(self, epoch: Epoch) -> None:
        """After every epoch, also those that a resumed run had done before."""
        self._done = epoch.epoch * self._users
        if epoch.validation_ndcg_100 is not None:
            self._best = f", NDCG@100 {epoch.validation_ndcg_100:.4f} (best: {epoch.best_epoch})"
        if self._writer is not None:
            for name, value in asdict(epoch).items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()


class TuningProgress(Shown):
    """Tuning: `epoch` is what `pipeline.tuning.tune` calls."""

    def __init__(self, n_trials: int, epochs: int) -> None:
        super().__init__("tuning")
        self._n_trials, self._epochs = n_trials, epochs

    def epoch(self, trial: int, best: float | None, epoch: Epoch) -> None:
        """After every epoch of every trial."""
        found = "" if best is None else f", best so far {best:.4f}"
        note = (
            f"trial {trial} of {self._n_trials}, epoch {epoch.epoch}, NDCG@100 {epoch.validation_ndcg_100:.4f}{found}"
        )
        self.update((trial - 1 + min(1.0, epoch.epoch / self._epochs)) / self._n_trials, note)


def _tensorboard(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs TensorBoard. Install it: pip install 'macrid[tensorboard]'.") from None
    return SummaryWriter(str(folder))


class ScoringProgress(Shown):
    """Scoring: `users` is what `scoring.job.score` calls."""

    def __init__(self) -> None:
        super().__init__("scoring")

    def users(self, done: int, share: float) -> None:
        """After every block of users."""
        self.update(share, f"{done:,} users, {done / max(self.seconds, 1e-9):,.0f} users/s")
