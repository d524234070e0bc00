"""A search that goes on where it stopped, chooses on validation users, and writes a config that trains."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import pipeline.tuning
from pipeline.config import Config, DataConfig, ModelConfig, TrainingConfig, load_config
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError, JobError
from pipeline.fitting import Epoch
from pipeline.histories import Histories
from pipeline.search_space import Range, SearchSpace
from pipeline.split import HeldOut
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
    seen: list[tuple[int, int]] = []
    table = tune(
        config, SPACE, 8, tmp_path / "tuning", "cpu", lambda trial, epoch, _: seen.append((trial, epoch.epoch))
    )
    assert sorted(table["trial"]) == list(range(1, 9))
    assert seen[:3] == [(1, 1), (1, 2), (1, 3)]
    complete = table.filter(pl.col("state") == "complete")
    assert complete["ndcg_100"].is_sorted(descending=True)
    assert set(table["state"]) <= {"complete", "pruned"}
    best = load_config(tmp_path / "tuning" / "best.toml")
    row = complete.row(0, named=True)
    assert str(best.training.learning_rate) == row["training.learning_rate"]
    assert str(best.model.encoder_hidden_sizes) == row["model.encoder_hidden_sizes"]
    assert best == config.updated({name: best.fields()[name] for name in SPACE})
    assert best.training.train_batch_size in (10, 20, 30, 40)


def test_the_same_seed_searches_the_same_and_goes_on(config: Config, tmp_path: Path) -> None:
    one = tune(config, SPACE, 4, tmp_path / "one", "cpu")
    other = tune(config, SPACE, 4, tmp_path / "other", "cpu")
    assert one.equals(other)
    more = tune(config, SPACE, 6, tmp_path / "one", "cpu")
    assert len(more) == 6
    assert more.filter(pl.col("trial") <= 4).sort("trial").equals(one.sort("trial"))
    assert len(set(more["training.learning_rate"])) == 6  # going on does not repeat the first draws
    assert tune(config, SPACE, 2, tmp_path / "one", "cpu").equals(more)


def test_another_search_in_the_folder_is_refused(config: Config, tmp_path: Path) -> None:
    tune(config, SPACE, 1, tmp_path / "tuning", "cpu")
    study = tmp_path / "tuning" / "study.log"
    remedy = "Go on with what it was started with, or choose another --output."
    fewer = {name: of for name, of in SPACE.items() if "rate" in name}
    with pytest.raises(InputError) as error:
        tune(config, {**fewer, "model.dropout": [0.1, 0.2]}, 1, tmp_path / "tuning", "cpu")
    assert str(error.value).startswith(
        f"{study} is a search with another space: model.dropout was absent and is [0.1, 0.2]; "
    )
    longer = config.updated({"training.epochs": 4})
    with pytest.raises(InputError) as error:
        tune(longer, SPACE, 1, tmp_path / "tuning", "cpu")
    assert str(error.value) == f"{study} is a search with another config: training.epochs was 3 and is 4. {remedy}"
    pl.read_parquet(config.data.input)[7:].write_parquet(config.data.input)
    with pytest.raises(InputError) as error:
        tune(config, SPACE, 1, tmp_path / "tuning", "cpu")
    assert str(error.value) == f"{study} is a search with other interactions. {remedy}"


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
    failed = table.filter(pl.col("training.learning_rate") == "1e+30")
    assert 0 < len(failed) < 6
    assert failed["state"][0].startswith("The loss of step 2 (epoch 1) is nan. ")
    assert load_config(tmp_path / "tuning" / "best.toml").training.learning_rate == 0.01
    with pytest.raises(JobError) as error:
        tune(config, {"training.learning_rate": [1e30, 1e31]}, 2, tmp_path / "hopeless", "cpu")
    assert str(error.value).startswith(f"None of 2 trials in {tmp_path / 'hopeless'} was complete: The loss of step ")


def test_hopeless_trials_are_pruned(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted: five trials that reach 0.5, then one that stays at 0.1."""

    def scripted(trial: int) -> float:
        return 0.1 if trial >= 5 else 0.5

    trials: list[int] = []

    class Scripted:
        def __init__(self, *_: object) -> None:
            trials.append(len(trials))
            self.best_ndcg = scripted(trials[-1])

        def epochs(self) -> list[Epoch]:
            return [Epoch(n, 1.0, 1.0, 1.0, 0.2, self.best_ndcg, 1, 1.0, 1.0) for n in range(1, 11)]

    monkeypatch.setattr(pipeline.tuning, "Fitting", Scripted)
    table = tune(config, SPACE, 6, tmp_path / "tuning", "cpu").sort("trial")
    assert table["state"].to_list() == ["complete"] * 5 + ["pruned"]
    assert table["epochs"][5] < 10


def test_without_validation_users_there_is_nothing_to_compare(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        tune(config.updated({"data.validation": 0}), SPACE, 1, tmp_path / "tuning", "cpu")
    assert str(error.value) == (
        "Tuning compares trials on validation users, and there are none. Raise data.validation."
    )


def test_a_killed_search_goes_on(config: Config, tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "config.toml").write_text(tomli_w.dumps(config.model_dump(exclude_none=True)))
    (tmp_path / "space.toml").write_text("[training]\nlearning_rate = { low = 1e-4, high = 1e-1, log = true }\n")
    command = [sys.executable, "-m", "pipeline.cli", "tune", "--config", "config.toml", "--space", "space.toml"]
    study = tmp_path / "tuning" / "study.log"
    process = subprocess.Popen([*command, "--trials", "10000"], cwd=tmp_path, stdout=-1, stderr=-1)
    while not (study.exists() and study.read_text().count('"op_code":6') >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = len(study.read_bytes().splitlines())
    done = subprocess.run(
        [*command, "--trials", "1", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) >= 3
    assert before > 10
    again = subprocess.run(
        [*command, "--trials", str(len(rows) + 2), "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(json.loads(again.stdout)["rows"]) == len(rows) + 2
    assert "best of" not in done.stdout
