"""Tuning: a search for the hyper-parameters with the best validation NDCG@100, by Optuna.

The study is one SQLite file, `study.db` in the output folder: a search that was stopped, or killed at any moment, goes
on when it is started again. (Optuna's journal does not: the lock that a kill leaves behind stops every later search.)
Test users take no part: they are read, counted, and left alone. One process works on a study at a time.

Optuna's tree-structured Parzen estimator proposes, after ten random trials. Its median pruner ends a trial whose best
epoch so far is below the median of the other trials at that epoch. Unlike Hyperband it needs no budget to be chosen; it
spares the first five trials, and every trial's first epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config import Config
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError, JobError
from pipeline.fitting import Epoch, Fitting, deterministic
from pipeline.model import MacridVAE
from pipeline.publish import publish_file, scratch_directory
from pipeline.search_space import Range, SearchSpace

try:
    import optuna
    import tomli_w
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy import NullPool
    from sqlalchemy.exc import DatabaseError
except ImportError:
    raise InputError("Tuning needs Optuna. Install it: pip install 'macrid[tune]'.") from None

STUDY, BEST = "study.db", "best.toml"
SPARED_EPOCHS = 10
"""No trial is pruned before: by default the KL weight grows for five epochs, and small learning rates start low."""

FAILURE = "failure"
"""Attribute of a failed trial: why."""


def tune(
    config: Config,
    space: SearchSpace,
    n_trials: int,
    output: Path,
    device: str,
    on_epoch: Callable[[int, float | None, Epoch], object] = lambda *_: None,
) -> pl.DataFrame:
    """Search until the study has `n_trials` finished trials; `best.toml` holds the best config so far.

    Args:
        config: what the trials start from; its data decide what is measured, its `training.seed` also what is tried.
        space: what a trial may change.
        n_trials: complete, pruned and failed ones, those of earlier calls included.
        output: folder of the study.
        device: cpu or cuda.
        on_epoch: called with the trial's number (from 1), the best value of the trials before, and the epoch.

    Returns:
        One row per finished trial, the best first: `trial`, `ndcg_100` (of its best epoch), `epochs`,
        `state` (complete, pruned, or why it failed), and the fields that it set.

    Raises:
        InputError: there are no validation users, or the folder has a study of something else.
        JobError: no trial was complete.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    with scratch_directory(output) as scratch, deterministic(device):
        data = load_dataset(config.data, scratch)
        if not len(data.validation):
            raise InputError("Tuning compares trials on validation users, and there are none. Raise data.validation.")
        study = _open_study(output / STUDY, config, space, data)
        while True:
            finished = _finished(study)
            complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
            best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
            if best is not None:
                _write(output / BEST, _settings(config, space, best))
            if len(finished) >= n_trials:
                break
            trial = study.ask()
            for name, of in space.items():
                _draw(trial, name, of)
            settings = _settings(config, space, trial)
            model = MacridVAE.empty(len(data.vocabulary), settings.model, device)
            fitting = Fitting(model, data.train, data.validation, settings)
            state = _fit(fitting, trial, partial(on_epoch, len(finished) + 1, best.value if best else None))
            study.tell(trial, fitting.best_ndcg if state == TrialState.COMPLETE else None, state)
    table = _table(finished, config, space)
    if best is None:
        raise JobError(f"None of {len(table)} trials in {output} was complete: {table['state'][0]}")
    return table


def _open_study(path: Path, config: Config, space: SearchSpace, data: Dataset) -> optuna.Study:
    try:
        # Without a pool no connection outlives its use.
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool})
    except DatabaseError as error:
        raise InputError(f"{path} cannot be opened as a study: {error.orig}. Choose another --output.") from None
    study = optuna.create_study(
        storage=storage,
        study_name="macrid",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=SPARED_EPOCHS),
    )
    now: dict[str, Any] = {
        "config": config.fields(),
        "space": {name: of.model_dump() if isinstance(of, Range) else of for name, of in space.items()},
        "data": data.digest(),
    }
    before = study.user_attrs.get("of", now)
    changed = [line for what in ("config", "space") for line in _differences(what, before[what], now[what])]
    if before["data"] != now["data"]:
        changed.append("the interactions are others")
    if changed:
        raise InputError(
            f"{path} is another search: {'; '.join(changed)}. "
            "Go on with what it was started with, or choose another --output."
        )
    study.set_user_attr("of", now)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # its process is gone
    # Another seed than before: the same one would repeat the first random trials.
    study.sampler = optuna.samplers.TPESampler(seed=config.training.seed + len(study.trials))
    return study


def _differences(what: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{what}: {name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _draw(trial: optuna.Trial, name: str, of: Range | list[object]) -> None:
    if isinstance(of, list):
        trial.suggest_categorical(name, range(len(of)))  # by place: Optuna takes no lists as choices
    elif of.whole:
        trial.suggest_int(name, int(of.low), int(of.high), step=int(of.step or 1), log=of.log)
    else:
        trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)


def _settings(config: Config, space: SearchSpace, trial: optuna.Trial | FrozenTrial) -> Config:
    """What a trial trained with."""
    drawn = trial.params
    return config.updated(
        {name: of[drawn[name]] if isinstance(of, list) else drawn[name] for name, of in space.items()}
    )


def _fit(fitting: Fitting, trial: optuna.Trial, on_epoch: Callable[[Epoch], object]) -> TrialState:
    """Fit to the end, or until the trial is pruned or fails."""
    try:
        for epoch in fitting.epochs():
            on_epoch(epoch)
            trial.report(fitting.best_ndcg, epoch.epoch)
            if trial.should_prune():
                return TrialState.PRUNED
    except JobError as error:
        trial.set_user_attr(FAILURE, str(error))
        return TrialState.FAIL
    return TrialState.COMPLETE


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count, in the order they ended: not those of killed processes."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in ended or FAILURE in trial.user_attrs]


def _table(finished: list[FrozenTrial], config: Config, space: SearchSpace) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "trial": number,
            "ndcg_100": max(trial.intermediate_values.values(), default=None),
            "epochs": trial.last_step or 0,
            "state": trial.user_attrs.get(FAILURE, trial.state.name.lower()),
            **{name: _settings(config, space, trial).fields()[name] for name in space},
        }
        for number, trial in enumerate(finished, start=1)
    ]
    order = {"complete": 0, "pruned": 1}
    rows.sort(key=lambda row: (order.get(row["state"], 2), -(row["ndcg_100"] or 0.0)))
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def readable(table: pl.DataFrame) -> pl.DataFrame:
    """What `tune` returns, for people: the fields in one column, numbers with four digits."""
    fields = [name for name in table.columns if "." in name]
    settings = [
        ", ".join(f"{name.partition('.')[2]} {_short(value)}" for name, value in row.items())
        for row in table.select(fields).iter_rows(named=True)
    ]
    return table.drop(fields).with_columns(pl.Series("settings", settings))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, config: Config) -> None:
    text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    publish_file(path, lambda file: file.write(text.encode()))
