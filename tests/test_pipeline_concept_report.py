from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from conftest import random_histories, small_model

from pipeline.categories import Categories, agreement
from pipeline.concept_report import report
from pipeline.concepts import independence
from pipeline.config import ModelConfig
from pipeline.eager import EagerScorer, to_batch
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.vocabulary import Vocabulary

N_ITEMS = 12


def separated_model() -> MacridVAE:
    """Item i lies on prototype i % 3, so its concept is certain."""
    config = ModelConfig(n_concepts=3, embedding_size=4, encoder_hidden_sizes=[5])
    model = small_model(config, N_ITEMS)
    with torch.no_grad():
        model.prototypes.copy_(torch.eye(4)[:3] * 5)
        model.item_embedding.copy_(torch.eye(4)[torch.arange(N_ITEMS) % 3] * 2)
    return model


def catalogue(**columns: list[str]) -> Vocabulary:
    vocabulary = Vocabulary.of(pl.Series(range(100, 100 + N_ITEMS)), np.arange(N_ITEMS)[::-1].astype(np.int64))
    return Vocabulary(vocabulary.items.with_columns(**{name: pl.Series(values) for name, values in columns.items()}))


LETTERS = Categories.of(pl.Series(["a", "b", "c"] * 4))


def test_report_by_hand() -> None:
    users = Histories.of([[0, 3, 6], [], [1, 4], [2, 5, 7], [0, 1, 3]])
    titles = [f"title {item}" for item in range(N_ITEMS)]
    found = report(separated_model(), catalogue(title=titles), users, LETTERS)
    certain = 1 - 2 * np.exp(-10)
    assert found.measures["median_largest_share"] == pytest.approx(certain, abs=1e-6)
    assert found.measures["effective_concepts"] == pytest.approx(3, abs=1e-6)
    assert found.measures["dead_concepts"] == found.measures["duplicate_concepts"] == 0
    assert [found.measures[name] for name in ("purity", "matched_purity", "ari", "macro_score")] == [1, 1, 1, 3]
    # Items' columns are indicators of three equally large groups, so pairs correlate by -1/2; the fourth is constant.
    assert found.measures["item_independence"] == pytest.approx(0.5, abs=1e-6)
    assert found.concepts.drop("interactions", "closest_cosine").rows() == [
        (0, 1 / 3, 1 / 2, "a", 1.0, ["title 0", "title 3", "title 6"]),
        (1, 1 / 3, 1 / 4, "b", 1.0, ["title 1", "title 4", "title 7"]),
        (2, 1 / 3, 1 / 4, "c", 1.0, ["title 2", "title 5", "title 8"]),
    ]
    interactions = [11 + 8 + 5 + 2, 10 + 7 + 4 + 1, 9 + 6 + 3]
    assert found.concepts["interactions"].to_list() == pytest.approx([n / 66 for n in interactions], abs=1e-3)
    assert found.concepts["closest_cosine"].to_list() == [0, 0, 0]


def test_masses_that_are_the_categories_are_disentangled_and_complete() -> None:
    """One category of four is left out of each history, so that shares vary."""
    rng = np.random.default_rng(0)
    users = Histories.of([sorted(rng.choice(N_ITEMS, 5, replace=False).tolist()) for _ in range(300)])
    measures = report(separated_model(), catalogue(), users, LETTERS).measures
    for name in ("mass_disentanglement", "mass_completeness", "mass_informativeness"):
        assert measures[name] > 0.95, name
    assert 0 <= measures["code_disentanglement"] <= 1


def test_user_independence_is_of_the_means_of_each_concept() -> None:
    model, users = separated_model(), random_histories([3, 5, 2, 8, 6], N_ITEMS)
    with torch.no_grad():
        mean_CUD = model.encode(to_batch(users, torch.device("cpu")), model.assignment()).numpy()
    expected = np.mean([independence(mean_UD) for mean_UD in mean_CUD])
    found = report(model, catalogue(), users, None).measures["user_independence"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_is_not_known_is_left_out() -> None:
    of_items = [
        "median_largest_share",
        "effective_concepts",
        "dead_concepts",
        "duplicate_concepts",
        "item_independence",
    ]
    found = report(separated_model(), catalogue(), None, None)
    assert list(found.measures) == of_items
    assert found.concepts.columns == ["concept", "items", "interactions", "closest_cosine", "examples"]
    assert found.concepts["examples"][0].to_list() == ["100", "103", "106"], "ids where there are no titles"
    nobody = report(separated_model(), catalogue(), Histories.of([[], []]), LETTERS)
    assert list(nobody.measures) == [*of_items, "purity", "matched_purity", "nmi", "ari", "macro_score"]
    assert nobody.concepts.columns == [*found.concepts.columns[:-1], "category", "category_share", "examples"]


def test_dead_and_duplicate_concepts_are_counted() -> None:
    """Concept 2 moves beside concept 1, where it wins no item; its own are equally far from all."""
    model = separated_model()
    with torch.no_grad():
        model.prototypes[2] = model.prototypes[1] - 0.01 * model.prototypes[2]
    found = report(model, catalogue(), None, None)
    assert (found.measures["dead_concepts"], found.measures["duplicate_concepts"]) == (1, 1)
    assert found.concepts["items"].to_list() == pytest.approx([2 / 3, 1 / 3, 0])
    assert found.concepts["closest_cosine"].to_list() == pytest.approx([0, 1, 1], abs=1e-3)


def test_a_single_concept() -> None:
    config = ModelConfig(n_concepts=1, embedding_size=4, encoder_hidden_sizes=[5])
    found = report(small_model(config, N_ITEMS), catalogue(), random_histories([3, 4], N_ITEMS), LETTERS)
    assert found.concepts["closest_cosine"].to_list() == [-1]
    assert found.measures["median_largest_share"] == 1
    assert found.measures["matched_purity"] == pytest.approx(1 / 3)


def test_many_users_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.concept_report.MEASURED_USERS", 10)
    users = random_histories([3] * 25, N_ITEMS)
    measures = report(separated_model(), catalogue(), users, LETTERS).measures
    every_third = users.take(np.arange(0, 25, 3))
    assert measures == report(separated_model(), catalogue(), every_third, LETTERS).measures


def test_the_report_measures_what_is_shown_to_users() -> None:
    """The assignment is that of inference: the shares by which the scorer attributes."""
    model = small_model(ModelConfig(n_concepts=3, embedding_size=4, encoder_hidden_sizes=[5]), N_ITEMS)
    assignment_IC = model.assignment().detach().numpy()
    found = report(model, catalogue(), None, LETTERS)
    assert found.measures["matched_purity"] == agreement(assignment_IC, LETTERS).matched_purity
    assert EagerScorer(model).n_concepts == len(found.concepts)
