"""Every user of the input is in `users/` once, with the reason where he got fewer items than were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from known_scorer import (
    N_ITEMS,
    KnownScorer,
    check,
    contents,
    drawn_users,
    interactions,
    item_id,
    make_bundle,
    read_data,
    read_users,
    write_histories,
)
from numpy.typing import NDArray

from export.bundle import Bundle, read_bundle
from pipeline.histories import Histories
from pipeline.scorer import TopK
from scoring.job import score
from scoring.run import Options
from scoring.runtimes import open_scorer

LONG = 100_000


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("known") / "bundle")


def account(run: Path) -> dict[Any, tuple[Any, ...]]:
    """Status, history length, known items, recommended, reason by user."""
    return {user: tuple(rest) for user, *rest in read_users(run).rows()}


def ids(numbers: range) -> list[Any]:
    return [item_id(number, int) for number in numbers]


def test_a_user_with_100_000_items(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", n_items=LONG + 3)
    users = {1: ids(range(LONG)), 2: ids(range(2)), 3: []}
    location = write_histories(tmp_path / "in.parquet", users)
    score(bundle, KnownScorer(LONG + 3), location, tmp_path / "run", Options(k=5, fallback="none"))
    assert account(tmp_path / "run") == {
        1: ("scored", LONG, LONG, 3, "excluded"),
        2: ("scored", 2, 2, 5, None),
        3: ("cold", 0, 0, 0, "no_fallback"),
    }
    given = read_data(tmp_path / "run").filter(pl.col("user_id") == 1)
    assert sorted(given["item_id"]) == sorted(ids(range(LONG, LONG + 3)))


def test_a_user_with_100_000_items_in_a_real_graph(tmp_path: Path, bundle: Path) -> None:
    """Of which the catalogue knows 490; his neighbours get what they get without him."""
    opened = read_bundle(bundle)
    item_ids = opened.vocabulary.items["item_id"].to_list()
    whale = item_ids[10:] + [f"unknown-{at}" for at in range(LONG - len(item_ids) + 10)]
    others = {f"user-{at}": item_ids[at : at + 5] for at in range(20)}
    scorer, found = open_scorer(bundle, "onnx", "cpu"), {}
    for name, users in (("alone", others), ("with", {**others, "whale": whale})):
        location = write_histories(tmp_path / f"{name}.parquet", users, pl.String, pl.String)
        score(opened, scorer, location, tmp_path / name, Options(k=20))
        found[name] = read_data(tmp_path / name)
    assert account(tmp_path / "with")["whale"] == ("scored", LONG, 490, 10, "excluded")
    whales = found["with"].filter(pl.col("user_id") == "whale")
    assert sorted(whales["item_id"]) == item_ids[:10]
    alone, beside = found["alone"], found["with"].filter(pl.col("user_id") != "whale")
    assert alone.select("user_id", "rank", "item_id").equals(beside.select("user_id", "rank", "item_id"))


def test_users_without_items_and_with_only_unknown_ones(tmp_path: Path, known: Bundle) -> None:
    users = {1: [], 2: [5], 3: [1_000], 4: [5, 6, 5]}
    location = write_histories(tmp_path / "in.parquet", users)
    score(known, KnownScorer(), location, tmp_path / "popular", Options(k=5))
    assert account(tmp_path / "popular") == {
        1: ("cold", 0, 0, 5, None),
        2: ("unknown", 1, 0, 5, None),
        3: ("scored", 1, 1, 5, None),
        4: ("unknown", 2, 0, 5, None),
    }
    score(known, KnownScorer(), location, tmp_path / "none", Options(k=5, fallback="none"))
    assert account(tmp_path / "none") == {
        1: ("cold", 0, 0, 0, "no_fallback"),
        2: ("unknown", 1, 0, 0, "no_fallback"),
        3: ("scored", 1, 1, 5, None),
        4: ("unknown", 2, 0, 0, "no_fallback"),
    }


def test_duplicate_rows_change_nothing(tmp_path: Path, known: Bundle) -> None:
    users = {user: items for user, items in drawn_users(50).items() if items}
    rows = interactions(users)
    rows.unique().write_parquet(tmp_path / "once.parquet")
    pl.concat([rows] * 3).sample(fraction=1, shuffle=True, seed=2).write_parquet(tmp_path / "thrice.parquet")
    once = score(known, KnownScorer(), str(tmp_path / "once.parquet"), tmp_path / "one", Options(k=5))
    thrice = score(known, KnownScorer(), str(tmp_path / "thrice.parquet"), tmp_path / "two", Options(k=5))
    assert contents(tmp_path / "one", "data", "users") == contents(tmp_path / "two", "data", "users")
    assert thrice.interactions == 3 * len(rows)
    assert (thrice.users, thrice.history_items) == (once.users, once.history_items)


def test_a_user_spread_over_all_partitions_is_one_user(
    tmp_path: Path, known: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 days, a file each with a row of the user; the job itself has many parts."""
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 50)
    users = drawn_users(60)
    users = {user: items for user, items in users.items() if items} | {77_777: ids(range(N_ITEMS - 8))}
    rows = interactions(users).sample(fraction=1, shuffle=True, seed=3)
    for day in range(40):
        folder = tmp_path / "in" / f"day={day}"
        folder.mkdir(parents=True)
        mine = pl.DataFrame({"user_id": [77_777], "item_id": [item_id(day % (N_ITEMS - 8), int)]})
        pl.concat([rows[day::40].filter(pl.col("user_id") != 77_777), mine]).write_parquet(folder / "a.parquet")
    summary = score(known, KnownScorer(), str(tmp_path / "in"), tmp_path / "run", Options(k=10))
    assert len(list((tmp_path / "run" / "users").iterdir())) > 5
    check(tmp_path / "run", known, users, Options(k=10), summary)
    assert account(tmp_path / "run")[77_777] == ("scored", N_ITEMS - 8, N_ITEMS - 8, 8, "excluded")


@pytest.mark.parametrize(
    ("options", "sources", "reasons"),
    [
        ({"k": 5}, {}, [None, "excluded", None]),
        ({"k": N_ITEMS + 1}, {}, ["few_allowed"] * 3),
        ({"k": N_ITEMS}, {}, ["excluded", "excluded", "few_allowed"]),  # fallbacks need interactions, 5 have none
        ({"k": 5, "fallback": "none"}, {}, [None, "excluded", "no_fallback"]),
        ({"k": 5, "caps": {"kind": 2}}, {}, ["capped", "excluded", "capped"]),
        ({"k": 5, "caps": {"kind": 2}, "keep_seen": True}, {}, ["capped"] * 3),
        ({"k": 5}, {"allow": range(4)}, ["few_allowed"] * 3),
        ({"k": 5}, {"exclude": {1: range(36), 3: range(32)}}, ["excluded", "excluded", "excluded"]),
        ({"k": 5}, {"exclude": {1: range(35), 3: range(30)}}, [None, "excluded", None]),
    ],
)
def test_why_a_user_got_fewer_items(
    tmp_path: Path, options: dict[str, Any], sources: dict[str, Any], reasons: list[str | None]
) -> None:
    """One who has item 0, one who has all but 3 items, and one who has none."""
    bundle = make_bundle(tmp_path / "bundle", columns={"kind": [number % 2 for number in range(N_ITEMS)]})
    users = {1: ids(range(1)), 2: ids(range(N_ITEMS - 3)), 3: []}
    given: dict[str, Any] = {}
    if "allow" in sources:
        given["allow"] = tmp_path / "allow.txt"
        given["allow"].write_text("".join(f"{one}\n" for one in ids(sources["allow"])))
    if "exclude" in sources:
        exclude = {user: ids(numbers) for user, numbers in sources["exclude"].items()}
        given["exclude"] = write_histories(tmp_path / "exclude.parquet", exclude)
    location = write_histories(tmp_path / "in.parquet", users)
    score(bundle, KnownScorer(), location, tmp_path / "run", Options.model_validate(options), **given)
    accounts = account(tmp_path / "run")
    assert [accounts[user][-1] for user in users] == reasons
    counts = dict(read_data(tmp_path / "run").group_by("user_id").len().iter_rows())
    assert {user: counts.get(user, 0) for user in users} == {user: accounts[user][3] for user in users}
    assert all((accounts[user][3] < options["k"]) == (accounts[user][-1] is not None) for user in users)


class Certain(KnownScorer):
    """Gives all but two items a probability of zero."""

    def __call__(self, histories: Histories, k: int, *, allowed: NDArray[np.bool_] | None = None, **more: Any) -> TopK:
        return super().__call__(histories, k, allowed=np.arange(self.n_items) >= self.n_items - 2, **more)


def test_items_without_probability_are_not_recommended(tmp_path: Path, known: Bundle) -> None:
    location = write_histories(tmp_path / "in.parquet", {1: [1_000]})
    score(known, Certain(), location, tmp_path / "run", Options(k=5))
    assert account(tmp_path / "run") == {1: ("scored", 1, 1, 2, "improbable")}
