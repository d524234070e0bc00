from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.config import load_config
from pipeline.demo_data import (
    CATEGORIES,
    COLD_USER,
    KNOWN_USERS,
    NEW_USERS,
    UNKNOWN_USER,
    _best_matching,
    match_concepts,
    write_demo,
)
from pipeline.errors import InputError

FILES = ["interactions.parquet", "items.parquet", "pipeline.toml", "users.parquet"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "made" / "on demand"
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def interactions(demo: Path) -> pl.DataFrame:
    return pl.read_parquet(demo / "interactions.parquet")


@pytest.fixture(scope="module")
def items(demo: Path) -> pl.DataFrame:
    return pl.read_parquet(demo / "items.parquet")


@pytest.fixture(scope="module")
def users(demo: Path) -> pl.DataFrame:
    return pl.read_parquet(demo / "users.parquet")


def test_same_seed_same_bytes(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "again")
    write_demo(tmp_path / "other", seed=8)
    assert sorted(file.name for file in demo.iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (demo / name).read_bytes()
        other = (tmp_path / "other" / name).read_bytes() == (demo / name).read_bytes()
        assert other == (name == "pipeline.toml")


def test_items(items: pl.DataFrame) -> None:
    assert items.schema == {"item_id": pl.String, "title": pl.String, "category": pl.String}
    assert 1_400 < len(items) < 1_600
    assert items["item_id"].is_unique().all()
    assert items["item_id"].is_sorted()
    assert items["title"].is_unique().all()
    assert set(items["category"]) == set(CATEGORIES)
    assert items.select(pl.col("title").str.ends_with(pl.format(" ({})", "category"))).to_series().all()


def test_every_kind_and_thing_is_a_word() -> None:
    for kinds, things in CATEGORIES.values():
        for words in (kinds.split(","), things.split(",")):
            assert len(words) == 16 == len(set(words))
            assert all(word == word.strip() and word for word in words)


def test_interactions(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    assert interactions.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert interactions["user_id"].unique().sort().to_list() == [f"user-{user:05d}" for user in range(KNOWN_USERS)]
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert not interactions.select("user_id", "item_id").is_duplicated().any()
    assert interactions["timestamp"].is_sorted()
    assert interactions["user_id"].value_counts()["count"].min() >= 5


def test_planted_truth(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    """Users stay in up to three categories but for the noise; within a category few items take most of the interest."""
    log = interactions.join(items, on="item_id")
    per_user = log.group_by("user_id", "category").len().sort("user_id", "len", descending=True)
    top_three = per_user.group_by("user_id").head(3)["len"].sum() / len(log)
    assert 0.95 < top_three < 0.99
    taken = per_user.filter(pl.col("len") >= 4).group_by("user_id").len()["len"]
    assert taken.value_counts().filter(pl.col("len") <= 3)["count"].sum() > 0.99 * KNOWN_USERS
    assert all(taken.value_counts().filter(pl.col("len") == n)["count"].item() > 0.25 * KNOWN_USERS for n in (1, 2, 3))
    for category in CATEGORIES:
        counts = log.filter(category=category)["item_id"].value_counts()["count"].sort(descending=True)
        assert counts.head(len(counts) // 10).sum() > 0.25 * counts.sum()


def test_users_to_score(users: pl.DataFrame, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    assert users.schema == {"user_id": pl.String, "history": pl.List(pl.String)}
    assert users["user_id"].to_list() == [f"user-{user:05d}" for user in range(KNOWN_USERS + NEW_USERS + 2)]
    histories = dict(users.iter_rows())
    assert histories.pop(COLD_USER) == []
    unknown = histories.pop(UNKNOWN_USER)
    assert len(unknown) == 2
    assert not set(unknown) & set(items["item_id"])
    assert min(map(len, histories.values())) >= 5
    assert {item for history in histories.values() for item in history} <= set(items["item_id"])
    known = interactions.group_by("user_id", maintain_order=True).agg("item_id")
    assert all(histories[user] == taken for user, taken in known.iter_rows())


def test_config_loads_and_names_the_files(demo: Path) -> None:
    config = load_config(demo / "pipeline.toml")
    assert (config.data.input, config.data.items) == ("interactions.parquet", "items.parquet")
    assert config.model.n_concepts == len(CATEGORIES)


def test_match_by_hand() -> None:
    """Six items: concept 1 is fruit, concept 0 is tools but for one fruit, concept 2 has no item and is left over."""
    assignment_IC = np.array(
        [[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.5, 0.2, 0.3]],
        dtype=np.float32,
    )
    found = match_concepts(assignment_IC, ["fruit"] * 3 + ["tool"] * 3)
    assert found.table.rows() == [(0, "tool", 4, 0.75), (1, "fruit", 2, 1.0), (2, None, 0, 0.0)]
    assert found.table.schema == {"concept": pl.Int64, "category": pl.String, "n_items": pl.Int64, "share": pl.Float64}
    assert found.purity == 5 / 6
    # H(c) = log 3 - 2/3 log 2, H(g) = log 2, I = log 2 - 2/3 H(1/4) with H(1/4) = log 4 - 3/4 log 3
    log2, log3 = np.log(2), np.log(3)
    information = log2 - 2 / 3 * (2 * log2 - 3 / 4 * log3)
    assert found.nmi == pytest.approx(2 * information / ((log3 - 2 / 3 * log2) + log2), abs=1e-12)


def test_match_uses_mass_where_greedy_would_fail() -> None:
    """Greedy takes 0.9 and is left with 0.0; the best pairs sum to 1.6."""
    assert _best_matching(np.array([[0.9, 0.8], [0.8, 0.0]])) == [1, 0]


def test_perfect_independent_and_single() -> None:
    categories = ["a", "b", "c"] * 4
    perfect = match_concepts(np.eye(3)[[2, 0, 1] * 4], categories)
    assert (perfect.purity, perfect.nmi) == (1.0, pytest.approx(1.0, abs=1e-12))
    assert perfect.table["category"].to_list() == ["b", "c", "a"]
    independent = match_concepts(np.eye(2)[[0, 1, 0, 1]], ["a", "a", "b", "b"])
    assert (independent.purity, independent.nmi) == (0.5, pytest.approx(0.0, abs=1e-12))
    single = match_concepts(np.ones((3, 1)), ["a"] * 3)
    assert (single.purity, single.nmi) == (1.0, 1.0)


def test_fewer_concepts_than_categories() -> None:
    found = match_concepts(np.ones((6, 1)), ["a", "a", "b", "b", "b", "c"])
    assert found.table.rows() == [(0, "b", 6, 0.5)]
    assert (found.purity, found.nmi) == (0.5, 0.0)


def test_too_many_categories() -> None:
    assert match_concepts(np.eye(12), [f"{g:02d}" for g in range(12)]).purity == 1.0
    with pytest.raises(InputError) as e:
        match_concepts(np.eye(13), [f"{g:02d}" for g in range(13)])
    assert str(e.value) == "matching concepts takes at most 12 categories; these items have 13."


@given(
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5).flatmap(
        lambda shape: hnp.arrays(float, shape, elements=st.floats(0, 100))
    )
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_matching_is_the_best_of_all(mass_CG: NDArray[np.float64]) -> None:
    """Against every one-to-one matching: injections of the shorter side into the longer."""
    matched_C = _best_matching(mass_CG)
    taken = [category for category in matched_C if category is not None]
    assert len(matched_C) == len(mass_CG)
    assert len(taken) == len(set(taken))
    mass = mass_CG if mass_CG.shape[0] <= mass_CG.shape[1] else mass_CG.T
    best = max(
        sum(mass[row, at] for row, at in enumerate(order)) for order in permutations(range(mass.shape[1]), len(mass))
    )
    assert sum(mass_CG[c, g] for c, g in enumerate(matched_C) if g is not None) == pytest.approx(best, rel=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_order_of_items_concepts_and_names_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assignment_IC = rng.dirichlet(np.full(4, 0.3), 40)
    category_I = rng.choice(["a", "b", "c"], 40)
    found = match_concepts(assignment_IC, category_I.tolist())
    items, concepts, renamed = (
        rng.permutation(40),
        rng.permutation(4),
        dict(zip("abc", rng.permutation(["x", "y", "z"]), strict=True)),
    )
    again = match_concepts(
        assignment_IC[items][:, concepts], [str(renamed[category]) for category in category_I[items]]
    )
    assert again.purity == pytest.approx(found.purity, abs=1e-12)
    assert again.nmi == pytest.approx(found.nmi, abs=1e-12)
    before = {row[0]: row[1:] for row in found.table.iter_rows()}
    for at, category, n_items, share in again.table.iter_rows():
        old_category, old_n_items, old_share = before[int(concepts[at])]
        assert category == (None if old_category is None else renamed[old_category])
        assert (n_items, share) == (old_n_items, pytest.approx(old_share))


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_nmi_against_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 30
    concept_I, category_I = rng.integers(0, 3, n), rng.integers(0, 3, n)
    joint = {pair: np.mean((concept_I == pair[0]) & (category_I == pair[1])) for pair in product(range(3), range(3))}
    p_C, p_G = (np.bincount(labels, minlength=3) / n for labels in (concept_I, category_I))
    information = sum(p * np.log(p / (p_C[c] * p_G[g])) for (c, g), p in joint.items() if p)
    entropies = -sum(p * np.log(p) for p in [*p_C, *p_G] if p)
    found = match_concepts(np.eye(3)[concept_I], [str(category) for category in category_I])
    assert found.nmi == pytest.approx(2 * information / entropies, abs=1e-12)
