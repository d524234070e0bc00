from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.config import load_config
from pipeline.demo_data import (
    CATEGORIES,
    COLD_USER,
    KNOWN_USERS,
    NEW_USERS,
    UNKNOWN_USER,
    write_demo,
)

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
