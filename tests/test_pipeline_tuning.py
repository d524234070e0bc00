"""A search that goes on where it stopped, chooses on validation users, and writes a config that trains."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tomli_w
from click.testing import CliRunner

import pipeline.progress
import pipeline.tuning
from pipeline.cli import main
from pipeline.config import Config, DataConfig, ModelConfig, TrainingConfig, load_config
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError, JobError
from pipeline.fitting import Epoch
from pipeline.histories import Histories
from pipeline.search_space import Range, SearchSpace
from pipeline.split import HeldOut
from pipeline.train import train
from pipeline.tuning import tune

SPACE: SearchSpace = {
    "training.learning_rate": Range(low=1e-4, high=1e-1, log=True),
    "model.encoder_hidden_sizes": [[4], [8, 4]],
    "training.train_batch_size": Range(low=10, high=40, step=10),
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rng = np.random.default_rng(0)
    rows = [(f"u{u:02d}", f"i{(u % 4) * 6 + i:02d}") for u in range(80) for i in range(6) if rng.random() < 0.95]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(tmp_path / "rows.parquet")
    return Config(
        data=DataConfig(input=str(tmp_path / "rows.parquet"), min_history=4, validation=15, test=15),
        model=ModelConfig(n_concepts=2, embedding_size=4, encoder_hidden_sizes=[4]),
        training=TrainingConfig(epochs=3, train_batch_size=20),
    )


def test_finds_the_best_and_writes_it(config: Config, tmp_path: Path) -> None:
    seen: list[tuple[int, float | None, int]] = []
    table = tune(
        config, SPACE, 8, tmp_path / "tuning", "cpu", lambda trial, best, epoch: seen.append((trial, best, epoch.epoch))
    )
    assert table["trial"].sort().to_list() == list(range(1, 9))
    assert table["state"].to_list() == ["complete"] * 8
    assert table["ndcg_100"].is_sorted(descending=True)
    value = dict(table.select("trial", "ndcg_100").iter_rows())
    assert seen[:3] == [(1, None, 1), (1, None, 2), (1, None, 3)]
    assert seen[-1] == (8, max(value[trial] for trial in range(1, 8)), 3)
    best = load_config(tmp_path / "tuning" / "best.toml")
    assert best == config.updated({name: table[name].to_list()[0] for name in SPACE})
    assert set(table["training.train_batch_size"]) <= {10, 20, 30, 40}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet", "tuning"]


def test_training_the_best_config_gives_what_the_search_found(config: Config, tmp_path: Path) -> None:
    table = tune(config, SPACE, 3, tmp_path / "tuning", "cpu")
    train(load_config(tmp_path / "tuning" / "best.toml"), tmp_path / "checkpoint", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "checkpoint" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["validation_ndcg_100"] for line in lines) == table["ndcg_100"][0]


def test_the_same_seed_searches_the_same_and_goes_on(config: Config, tmp_path: Path) -> None:
    one = tune(config, SPACE, 4, tmp_path / "one", "cpu")
    other = tune(config, SPACE, 4, tmp_path / "other", "cpu")
    assert one.equals(other)
    more = tune(config, SPACE, 6, tmp_path / "one", "cpu")
    assert len(more) == 6
    assert more.filter(pl.col("trial") <= 4).equals(one)
    assert more["training.learning_rate"].n_unique() == 6  # going on does not repeat the first draws
    (tmp_path / "one" / "best.toml").unlink()
    assert tune(config, SPACE, 2, tmp_path / "one", "cpu").equals(more)
    assert (tmp_path / "one" / "best.toml").exists()


def test_an_interrupted_trial_does_not_count(config: Config, tmp_path: Path) -> None:
    def interrupt(trial: int, _: float | None, epoch: Epoch) -> None:
        if (trial, epoch.epoch) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(config, SPACE, 3, tmp_path / "tuning", "cpu", interrupt)
    first = load_config(tmp_path / "tuning" / "best.toml")
    table = tune(config, SPACE, 3, tmp_path / "tuning", "cpu").sort("trial")
    assert table["trial"].to_list() == [1, 2, 3]
    assert table["state"].to_list() == ["complete"] * 3
    assert table["training.learning_rate"][0] == first.training.learning_rate


def test_another_search_in_the_folder_is_refused(config: Config, tmp_path: Path) -> None:
    tune(config, SPACE, 1, tmp_path / "tuning", "cpu")

    def refusal(config: Config, space: SearchSpace) -> str:
        with pytest.raises(InputError) as error:
            tune(config, space, 1, tmp_path / "tuning", "cpu")
        return str(error.value)

    is_another = f"{tmp_path / 'tuning' / 'study.db'} is another search: "
    remedy = " Go on with what it was started with, or choose another --output."
    other_space = {**SPACE, "model.dropout": [0.1, 0.2], "model.encoder_hidden_sizes": [[4]]}
    assert refusal(config.updated({"training.epochs": 4}), other_space) == (
        is_another + "config: training.epochs was 3 and is 4; space: model.dropout was absent and is [0.1, 0.2]; "
        "space: model.encoder_hidden_sizes was [[4], [8, 4]] and is [[4]]." + remedy
    )
    pl.read_parquet(config.data.input)[7:].write_parquet(config.data.input)
    assert refusal(config, SPACE) == is_another + "the interactions are others." + remedy


def test_a_file_that_is_no_study_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "tuning").mkdir()
    study = tmp_path / "tuning" / "study.db"
    study.write_text("notes\n" * 1000)
    with pytest.raises(InputError) as error:
        tune(config, SPACE, 1, tmp_path / "tuning", "cpu")
    assert str(error.value) == f"{study} cannot be opened as a study: file is not a database. Choose another --output."


def test_test_users_take_no_part(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the test users' histories and targets replaced by nonsense, the search finds the same."""
    honest = tune(config, SPACE, 3, tmp_path / "honest", "cpu")

    def without_test(data: DataConfig, folder: Path) -> Dataset:
        nonsense = Histories.of([[0]] * 15)
        return replace(load_dataset(data, folder), test=HeldOut(nonsense, nonsense))

    monkeypatch.setattr(pipeline.tuning, "load_dataset", without_test)
    assert tune(config, SPACE, 3, tmp_path / "blind", "cpu").equals(honest)


def test_failed_trials_are_told_and_the_search_goes_on(config: Config, tmp_path: Path) -> None:
    space: SearchSpace = {"training.learning_rate": [1e30, 0.01]}
    table = tune(config, space, 6, tmp_path / "tuning", "cpu")
    failed = table.filter(pl.col("training.learning_rate") == 1e30)
    assert 0 < len(failed) < 6
    assert failed["state"][0].startswith("The loss of step 2 (epoch 1) is nan. ")
    assert failed.row(0, named=True)["epochs"] == 0
    assert failed["ndcg_100"][0] is None
    assert load_config(tmp_path / "tuning" / "best.toml").training.learning_rate == 0.01
    with pytest.raises(JobError) as error:
        tune(config, {"training.learning_rate": [1e30, 1e31]}, 2, tmp_path / "hopeless", "cpu")
    assert str(error.value).startswith(f"None of 2 trials in {tmp_path / 'hopeless'} was complete: The loss of step ")


def test_hopeless_trials_are_pruned(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted: five trials that reach 0.5, then one that stays at 0.1, from the first epoch on."""
    values = iter([0.5] * 5 + [0.1])

    class Scripted:
        def __init__(self, *_: object) -> None:
            self.best_ndcg = next(values)

        def epochs(self) -> list[Epoch]:
            return [Epoch(n, 1.0, 1.0, 1.0, 0.2, self.best_ndcg, 1, 1.0, 1.0) for n in range(1, 16)]

    monkeypatch.setattr(pipeline.tuning, "Fitting", Scripted)
    table = tune(config, SPACE, 6, tmp_path / "tuning", "cpu").sort("trial")
    assert table["state"].to_list() == ["complete"] * 5 + ["pruned"]
    assert table["epochs"].to_list() == [15] * 5 + [pipeline.tuning.SPARED_EPOCHS]


def test_choices_of_several_types(config: Config, tmp_path: Path) -> None:
    space: SearchSpace = {"training.kl_anneal_steps": [2, "5-epochs"], "training.kl_weight": [0, 0.5]}
    table = tune(config, space, 6, tmp_path / "tuning", "cpu")
    assert set(table["training.kl_anneal_steps"]) == {"2", "5-epochs"}
    assert set(table["training.kl_weight"]) == {0.0, 0.5}


def test_without_validation_users_there_is_nothing_to_compare(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        tune(config.updated({"data.validation": 0}), SPACE, 1, tmp_path / "tuning", "cpu")
    assert str(error.value) == (
        "Tuning compares trials on validation users, and there are none. Raise data.validation."
    )


def write_inputs(config: Config, folder: Path) -> list[str]:
    """The arguments of a search in this folder."""
    (folder / "config.toml").write_text(tomli_w.dumps(config.model_dump(exclude_none=True)))
    (folder / "space.toml").write_text("[training]\nlearning_rate = { low = 1e-4, high = 1e-1, log = true }\n")
    return ["tune", "--config", "config.toml", "--space", "space.toml", "--device", "cpu", "--json"]


def test_a_killed_search_goes_on(config: Config, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", *write_inputs(config, tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def finished() -> int:
        try:
            with closing(sqlite3.connect(tmp_path / "tuning" / "study.db", timeout=30)) as study:
                return int(study.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0])
        except sqlite3.OperationalError:
            return 0

    with subprocess.Popen(
        [*command, "--trials", "10000"], cwd=tmp_path, env=environment, stdout=-1, stderr=-1
    ) as process:
        while finished() < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    done = finished()
    wanted = str(done + 2)
    again = subprocess.run(
        [*command, "--trials", wanted], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    rows = json.loads(again.stdout)["rows"]
    assert sorted(row["trial"] for row in rows) == list(range(1, done + 3))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert finished() >= done
    assert sorted(path.name for path in (tmp_path / "tuning").iterdir()) == ["best.toml", "study.db"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.toml", "rows.parquet", "space.toml", "tuning"),
    ]


def test_what_people_see(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.progress, "SECONDS_BETWEEN_LINES", 0.0)
    arguments = [argument for argument in write_inputs(config, tmp_path) if argument != "--json"]
    done = CliRunner().invoke(main, [*arguments, "--trials", "2"])
    assert done.exit_code == 0, done.output
    value = load_config(tmp_path / "tuning" / "best.toml").training.learning_rate
    assert done.stdout.startswith("tuning/best.toml: the best of 2 trials\n")
    assert f"learning_rate {value:.4g}" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith("tuning: 17%, ")
    assert "; trial 1 of 2, epoch 1, NDCG@100 0." in lines[0]
    assert lines[-1].startswith("tuning: 100%, 0 s left; trial 2 of 2, epoch 3, NDCG@100 0.")
    assert ", best so far 0." in lines[-1]


def test_a_missing_extra(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "pipeline.tuning")
    done = CliRunner().invoke(main, write_inputs(config, tmp_path))
    assert (done.exit_code, done.stderr) == (
        2,
        "Error: Tuning needs Optuna. Install it: pip install 'macrid[tune]'.\n",
    )
