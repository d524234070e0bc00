"""Popularity and EASE against their definitions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import random_histories
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.baselines
from pipeline.baselines import BaselineScorer, choose_ease, compare, ease, fit_baselines, popularity
from pipeline.config import DataConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.evaluation import evaluate, ndcg_of_each
from pipeline.histories import Histories
from pipeline.split import HeldOut

N_ITEMS = 40
TRAIN = random_histories([5, 12, 1, 30, 8, 8, 3, 20, 17, 2], N_ITEMS, seed=4)
ASKED = Histories.of([[], [3], [0, 7, 39], sorted(range(0, 40, 2))])


def multi_hot(histories: Histories) -> np.ndarray:
    rows = np.zeros((len(histories), N_ITEMS))
    for user in range(len(histories)):
        rows[user, histories[user]] = 1
    return rows


def ease_by_definition(l2: float) -> np.ndarray:
    """Steck 2019, equation 8, in float64 with an explicit inverse."""
    x = multi_hot(TRAIN)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(N_ITEMS))
    return np.eye(N_ITEMS) - inverse / np.diag(inverse)


@pytest.mark.parametrize("l2", [1.0, 50.0, 2000.0])
def test_ease_is_the_closed_form(l2: float) -> None:
    weight = ease_by_definition(l2)
    np.testing.assert_allclose(np.diag(weight), 0, atol=1e-12)
    expected = multi_hot(ASKED) @ weight
    top = ease(TRAIN, N_ITEMS, l2)(ASKED, N_ITEMS)
    scores = np.empty_like(expected)
    np.put_along_axis(scores, top.items, top.scores, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_ease_of_a_user_does_not_depend_on_the_others() -> None:
    scorer = ease(TRAIN, N_ITEMS, 50.0)
    together = scorer(ASKED, 7)
    for user in range(len(ASKED)):
        alone = scorer(ASKED.take(np.array([user])), 7)
        assert (alone.items[0] == together.items[user]).all()
        assert (alone.scores[0] == together.scores[user]).all()


def test_ease_without_a_history_has_nothing_to_say() -> None:
    top = ease(TRAIN, N_ITEMS, 50.0)(Histories.of([[], []]), 3)
    assert top.items.tolist() == [[0, 1, 2]] * 2
    assert top.scores.tolist() == [[0.0, 0.0, 0.0]] * 2


def test_ease_finds_what_goes_together() -> None:
    """Pairs (0, 1), (2, 3), ...: whoever has one of a pair is recommended the other."""
    pairs = Histories.of([[2 * p, 2 * p + 1] for p in range(10)] * 3)
    top = ease(pairs, 20, 1.0)(Histories.of([[4], [15]]), 1, excluded=Histories.of([[4], [15]]))
    assert top.items.tolist() == [[5], [14]]


def test_popularity_ranks_by_count_then_number() -> None:
    scorer = popularity(np.array([3, 9, 3, 5]))
    top = scorer(Histories.of([[], [1]]), 6, excluded=Histories.of([[], [1]]))
    assert top.items.tolist() == [[1, 3, 0, 2, -1, -1], [3, 0, 2, -1, -1, -1]]
    assert top.scores[0, :4].tolist() == [9, 5, 3, 3]
    assert np.isneginf(top.scores[0, 4:]).all()
    assert top.concept_shares[1, :, 0].tolist() == [1, 1, 1, 0, 0, 0]
    allowed = np.array([True, False, True, False])
    assert scorer(Histories.of([[0]]), 2, allowed=allowed, excluded=Histories.of([[0]])).items.tolist() == [[2, -1]]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(-2, 2), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.sets(st.integers(0, 11)),
    st.integers(1, 15),
)
def test_ranking_is_a_sort(scores: list[int], seen: set[int], refused: set[int], k: int) -> None:
    """Ties, negative scores, items seen or not allowed, more places than items; beside a user without ties."""
    n = len(scores)
    score_BI = torch.tensor([scores, range(n)], dtype=torch.float32)
    scorer = BaselineScorer(n, lambda histories: score_BI.clone())
    excluded = Histories.of([sorted(item for item in seen if item < n), []])
    allowed = np.array([item not in refused for item in range(n)])
    top = scorer(Histories.of([[], []]), k, excluded=excluded, allowed=allowed)
    for user, hidden in enumerate((seen | refused, refused)):
        kept = [item for item in range(n) if item not in hidden]
        items = sorted(kept, key=lambda item: (-float(score_BI[user, item]), item))[:k]
        missing = k - len(items)
        assert top.items[user].tolist() == items + [-1] * missing
        assert top.scores[user].tolist() == score_BI[user, items].tolist() + [-np.inf] * missing
        assert top.concept_shares[user, :, 0].tolist() == [1.0] * len(items) + [0.0] * missing


def write_blocks(path: Path) -> DataConfig:
    """Everyone has most items of one block of six, and the rest is to be found."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u:03d}", f"i{(u % 4) * 6 + i:02d}") for u in range(120) for i in range(6) if rng.random() < 0.95]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(path / "rows.parquet")
    return DataConfig(input=str(path / "rows.parquet"), min_history=4, validation=20, test=20)


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[DataConfig, Dataset]:
    config = write_blocks(tmp_path)
    folder = tmp_path / "scratch"
    folder.mkdir()
    return config, load_dataset(config, folder)


def test_l2_is_chosen_on_validation_users(blocks: tuple[DataConfig, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = blocks
    tried: list[float] = []

    def scripted(scorer: BaselineScorer, histories: Histories, targets: Histories) -> float:
        assert (histories, targets) == (data.validation.histories, data.validation.targets)
        tried.append(0.0)
        return [0.2, 0.5, 0.4][len(tried) - 1]

    monkeypatch.setattr(pipeline.baselines, "mean_ndcg", scripted)
    without_test = replace(data, test=HeldOut(Histories.of([]), Histories.of([])))
    scorer, l2 = choose_ease(without_test, [1.0, 10.0, 100.0])
    assert l2 == 10.0
    again = ease(data.train, len(data.vocabulary), 10.0)
    users = data.test.histories
    assert (scorer(users, 24).scores == again(users, 24).scores).all()
    nobody = replace(data, validation=HeldOut(Histories.of([]), Histories.of([])))
    assert choose_ease(nobody, [1.0, 10.0, 100.0])[1] == 10.0
    assert len(tried) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_choosing_takes_two_tables() -> None:
    """What the refusal of a large catalogue says; in a process of its own, as the peak of this one is not its own."""
    code = """
import re, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from pipeline.baselines import choose_ease
from pipeline.histories import Histories
from pipeline.split import HeldOut

def resident(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def data(n_items):
    validation = HeldOut(Histories.of([[1]]), Histories.of([[2]]))
    return SimpleNamespace(train=Histories.of([[0, 1], [1, 2]]), validation=validation, vocabulary=range(n_items))

torch.set_num_threads(1)
choose_ease(data(50), [1.0, 2.0])  # what is loaded on first use
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = resident("VmRSS")
choose_ease(data(2000), [1.0, 2.0, 3.0])
print((resident("VmHWM") - before) / (2000 * 2000 * 4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1.5 < float(done.stdout) < 2.5


def test_fitted_on_the_training_histories_alone(blocks: tuple[DataConfig, Dataset]) -> None:
    config, data = blocks
    found = fit_baselines(["popularity", "ease", "popularity"], config, data.vocabulary)
    assert list(found) == ["popularity", "ease"]
    users = data.test.histories
    scorer, l2 = found["ease"]
    assert (l2, found["popularity"].l2) == (choose_ease(data)[1], None)
    again = ease(data.train, len(data.vocabulary), l2)(users, 3, excluded=users)
    assert (scorer(users, 3, excluded=users).items == again.items).all()


def test_titles_that_moved_since_training_do_not_matter(blocks: tuple[DataConfig, Dataset], tmp_path: Path) -> None:
    config, data = blocks
    moved = config.model_copy(update={"items": str(tmp_path / "moved.parquet")})
    assert list(fit_baselines(["popularity"], moved, data.vocabulary)) == ["popularity"]


def test_compared_with_itself_a_baseline_has_no_advantage(blocks: tuple[DataConfig, Dataset]) -> None:
    config, data = blocks
    found = fit_baselines(["ease", "popularity"], config, data.vocabulary)
    compared = compare(ndcg_of_each(found["ease"].scorer, data.test.histories, data.test.targets), found, data.test)
    for name, (scorer, l2) in found.items():
        assert compared[name].l2 == l2
        assert compared[name].metrics == evaluate(scorer, data.test.histories, data.test.targets)
    itself, other = compared["ease"].advantage, compared["popularity"].advantage
    assert (itself.mean, itself.standard_error, itself.low, itself.high) == (0, 0, 0, 0)
    assert other.low > 0  # blocks are what popularity cannot see
    difference = compared["ease"].metrics["ndcg@100"].mean - compared["popularity"].metrics["ndcg@100"].mean
    assert other.mean == pytest.approx(difference)


def test_other_interactions_are_refused(blocks: tuple[DataConfig, Dataset], tmp_path: Path) -> None:
    config, data = blocks
    rows = pl.read_parquet(config.input)
    rows.filter(pl.col("item_id") != "i00").write_parquet(config.input)
    (tmp_path / "again").mkdir()
    now = load_dataset(config, tmp_path / "again")
    with pytest.raises(InputError) as error:
        fit_baselines(["popularity"], config, data.vocabulary)
    assert str(error.value) == (
        f"{config.input} is not what the model was trained on: 23 items with {len(now.train.items_N)} training "
        f"interactions now, 24 with {len(data.train.items_N)} then. Name the training interactions with --input."
    )


def test_ease_of_a_large_catalogue_is_refused(
    blocks: tuple[DataConfig, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as error:
        ease(TRAIN, 1_000_000, 1.0)
    assert str(error.value) == (
        "EASE of 1,000,000 items needs two tables of 4,000 GB; the limit is 50,000 items. Leave out --baseline ease."
    )
    monkeypatch.setattr(pipeline.baselines, "EASE_ITEMS", 23)
    monkeypatch.setattr(pipeline.baselines, "load_dataset", None)  # refused before anything is read
    config, data = blocks
    with pytest.raises(InputError, match=r"^EASE of 24 items needs "):
        fit_baselines(["popularity", "ease"], config, data.vocabulary)
