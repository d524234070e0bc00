"""Tuning: a search for the hyper-parameters with the best validation NDCG@100, by Optuna.

The study is one file, `study.log` in the output folder: a search that was stopped goes on when it is started again.
Test users take no part: they are read, counted, and left alone. One process works on a study at a time.

Optuna's tree-structured Parzen estimator proposes; its median pruner ends a trial whose best epoch so far is below the
median of the other trials at that epoch: unlike Hyperband it needs no budget to be chosen, and it never ends a trial
before there is something to compare it with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from pipeline.config import Config
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError, JobError
from pipeline.fitting import Epoch, Fitting
from pipeline.model import MacridVAE
from pipeline.publish import publish_file
from pipeline.search_space import Range, SearchSpace

try:
    import optuna
    import tomli_w
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    raise InputError("Tuning needs Optuna. Install it: pip install 'macrid[tune]'.") from None

STUDY, BEST = "study.log", "best.toml"
WARM_UP_TRIALS = 5
"""Trials drawn at random, and never pruned, before the search learns from them."""


def tune(
    config: Config,
    space: SearchSpace,
    n_trials: int,
    output: Path,
    device: str,
    on_epoch: Callable[[int, Epoch, float | None], None] | None = None,
) -> pl.DataFrame:
    """Search until the study has `n_trials` finished trials; write the best config to `best.toml`.

    Args:
        config: what the trials start from; its data decide what is measured.
        space: what a trial may change.
        n_trials: complete, pruned and failed ones, those of earlier calls included.
        output: folder of the study.
        device: cpu or cuda.
        on_epoch: called with the trial's number (from 1), its epoch, and the best value of the study so far.

    Returns:
        One row per finished trial, the best first: `trial`, `ndcg_100` (of its best epoch), `epochs`, `state`
        (complete, pruned, or why it failed), and the fields it set.

    Raises:
        InputError: there are no validation users, or the folder has a study of something else.
        JobError: no trial was complete.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="macrid-tune-") as scratch:
        data = load_dataset(config.data, Path(scratch))
        if not len(data.validation):
            raise InputError("Tuning compares trials on validation users, and there are none. Raise data.validation.")
        study = _open_study(output, config, space, data)

        def objective(trial: optuna.Trial) -> float:
            settings = config.updated({name: _suggest(trial, name, of) for name, of in space.items()})
            model = MacridVAE.empty(len(data.vocabulary), settings.model, device)
            try:
                fitting = Fitting(model, data.train, data.validation, settings)
                for epoch in fitting.epochs():
                    trial.set_user_attr("epochs", epoch.epoch)
                    if on_epoch is not None:
                        on_epoch(trial.number + 1, epoch, _best(study))
                    trial.report(fitting.best_ndcg, epoch.epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
            except JobError as error:
                trial.set_user_attr("failure", str(error))
                raise
            return fitting.best_ndcg

        while len(_finished(study)) < n_trials:
            study.optimize(objective, n_trials=1, catch=(JobError,))
    table = _table(study)
    if _best(study) is None:
        raise JobError(f"None of {len(table)} trials in {output} was complete: {table['state'][0]}")
    best = config.updated({name: _value(name, study.best_trial.params, space) for name in space})
    publish_file(output / BEST, lambda file: file.write(_toml(best).encode()))
    return table


def _open_study(output: Path, config: Config, space: SearchSpace, data: Dataset) -> optuna.Study:
    of = {
        "config": config.fields(),
        "space": {name: one.model_dump() if isinstance(one, Range) else one for name, one in space.items()},
        "data": data.digest(),
    }
    of = json.loads(json.dumps(of))
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(output / STUDY))),
        study_name="macrid",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS, n_warmup_steps=1),
    )
    for what, now in of.items():
        before = study.user_attrs.setdefault(what, now)
        if before != now:
            raise InputError(
                f"{output / STUDY} is a search with {_difference(what, before, now)}. "
                "Go on with what it was started with, or choose another --output."
            )
        study.set_user_attr(what, now)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process is gone; it does not count
    # Another seed than before: the same one would repeat the first random trials.
    study.sampler = optuna.samplers.TPESampler(
        seed=config.training.seed + len(study.trials), n_startup_trials=WARM_UP_TRIALS
    )
    return study


def _difference(what: str, before: object, now: object) -> str:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return "other interactions"
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f"another {what}: " + "; ".join(
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}" for name in names
    )


def _suggest(trial: optuna.Trial, name: str, of: Range | list[object]) -> object:
    if isinstance(of, list):  # by place: Optuna takes no lists as choices
        return of[trial.suggest_categorical(name, range(len(of)))]
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), step=int(of.step or 1), log=of.log)
    return trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)


def _value(name: str, drawn: dict[str, object], space: SearchSpace) -> object:
    of, value = space[name], drawn[name]
    return of[value] if isinstance(of, list) and isinstance(value, int) else value


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that count: those of killed processes do not."""
    return [
        trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED") or "failure" in trial.user_attrs
    ]


def _best(study: optuna.Study) -> float | None:
    values = [trial.value for trial in study.trials if trial.state.name == "COMPLETE" and trial.value is not None]
    return max(values, default=None)


def _table(study: optuna.Study) -> pl.DataFrame:
    space: SearchSpace = {
        name: of if isinstance(of, list) else Range(**of) for name, of in study.user_attrs["space"].items()
    }
    rows = []
    for trial in _finished(study):
        reported = max(trial.intermediate_values.values(), default=None)
        rows.append(
            {
                "trial": trial.number + 1,
                "ndcg_100": reported,
                "epochs": trial.user_attrs.get("epochs", 0),
                "state": trial.user_attrs.get("failure", trial.state.name.lower()),
                **{name: str(_value(name, trial.params, space)) for name in space},
            }
        )
    order = {"complete": 0, "pruned": 1}
    rows.sort(key=lambda row: (order.get(str(row["state"]), 2), -(row["ndcg_100"] or 0.0)))
    return pl.DataFrame(rows)


def _toml(config: Config) -> str:
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
