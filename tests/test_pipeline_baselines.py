"""Popularity and EASE against their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import random_histories
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.baselines
from pipeline.baselines import BaselineScorer, choose_ease, ease, fit_baselines, popularity
from pipeline.config import DataConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError
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


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.sets(st.integers(0, 11)), st.integers(1, 15))
def test_ranking_is_a_sort(counts: list[int], seen: set[int], k: int) -> None:
    known = sorted(item for item in seen if item < len(counts))
    top = popularity(np.array(counts))(Histories.of([known]), k, excluded=Histories.of([known]))
    wanted = sorted((-count, item) for item, count in enumerate(counts) if item not in known)
    items = [item for _, item in wanted][:k]
    assert top.items[0].tolist() == items + [-1] * (k - len(items))


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
    assert choose_ease(without_test, [1.0, 10.0, 100.0])[1] == 10.0
    nobody = replace(data, validation=HeldOut(Histories.of([]), Histories.of([])))
    assert choose_ease(nobody, [1.0, 10.0, 100.0])[1] == 10.0
    assert len(tried) == 3


def test_fitted_on_the_training_histories_alone(blocks: tuple[DataConfig, Dataset]) -> None:
    config, data = blocks
    found = fit_baselines(["popularity", "ease", "popularity"], config, data.vocabulary)
    assert [name.split(" ")[0] for name in found] == ["popularity", "EASE"]
    users = data.test.histories
    l2 = choose_ease(data)[1]
    again = ease(data.train, len(data.vocabulary), l2)(users, 3, excluded=users)
    assert f"EASE (l2 = {l2:g})" in found
    assert (found[f"EASE (l2 = {l2:g})"](users, 3, excluded=users).items == again.items).all()


def test_other_interactions_are_refused(blocks: tuple[DataConfig, Dataset]) -> None:
    config, data = blocks
    rows = pl.read_parquet(config.input)
    rows.filter(pl.col("item_id") != "i00").write_parquet(config.input)
    with pytest.raises(InputError) as error:
        fit_baselines(["popularity"], config, data.vocabulary)
    assert str(error.value).startswith(f"{config.input} is not what the model was trained on: 23 items with ")
    assert f", 24 with {len(data.train.items_N)} then. " in str(error.value)
    assert str(error.value).endswith("Name the training interactions with --input.")


def test_ease_of_a_large_catalogue_is_refused() -> None:
    with pytest.raises(InputError) as error:
        ease(TRAIN, 1_000_000, 1.0)
    assert str(error.value) == (
        "EASE of 1,000,000 items needs two tables of 4,000 GB; the limit is 50,000 items. Leave out --baseline ease."
    )
