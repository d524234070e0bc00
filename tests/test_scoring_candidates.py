"""What may be recommended: the expression and the caps by themselves, then whole runs against a plain loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_scorer import (
    N_CONCEPTS,
    N_ITEMS,
    KnownScorer,
    check,
    contents,
    drawn_users,
    item_id,
    make_bundle,
    read_data,
    read_users,
    write_bare,
    write_histories,
)

from export.bundle import Bundle
from pipeline.errors import InputError
from pipeline.manifest import digest
from pipeline.vocabulary import Vocabulary
from scoring.candidates import Candidates, Cap, open_candidates
from scoring.job import score
from scoring.run import Options, RunManifest

ITEMS = Vocabulary(
    Vocabulary.of(pl.Series(["a", "b", "c", "d"]), np.array([4, 3, 2, 1])).items.with_columns(
        price=pl.Series([1.5, None, 3.0, 20.0]),
        category=pl.Series(["x", "y", "x", None]),
        tags=pl.Series([["t"], [], ["t"], None], dtype=pl.List(pl.String)),
    )
)
COLUMNS = (
    "Columns: item_number Int32, item_id String, n_interactions Int64, price Float64, category String, "
    "tags List(String)."
)


@pytest.mark.parametrize(
    ("where", "allowed"),
    [
        ("price > 2", "cd"),
        ("NOT price > 2", "a"),
        ("price > 2 OR price IS NULL", "bcd"),
        ("category = 'x' AND n_interactions >= 3", "a"),
        ("category IN ('y', 'z')", "b"),
        ("category LIKE 'x%'", "ac"),
        ("price > avg(price)", "d"),
        ("array_contains(tags, 't')", "ac"),
        ("item_id <> 'a'", "bcd"),
    ],
)
def test_only_items_for_which_the_expression_is_true(where: str, allowed: str) -> None:
    """A null is not true, as in SQL."""
    found = open_candidates(ITEMS, where=where)
    assert "".join(ITEMS.ids(np.flatnonzero(found.allowed_I))) == allowed
    assert len(found) == len(allowed)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "prize > 2 and kind = 'x'",
            f"--where \"prize > 2 and kind = 'x'\": items have no column kind, prize. {COLUMNS}",
        ),
        ("price + 1", f"--where 'price + 1' gives Float64, expected a condition. {COLUMNS}"),
        ("TRUE", f"--where 'TRUE' gives one value for all items, expected one for each. {COLUMNS}"),
        ("max(price) > 2", f"--where 'max(price) > 2' gives one value for all items, expected one for each. {COLUMNS}"),
        ("price > 99", "No item may be recommended: --where price > 99 leave none of 4. Widen them."),
    ],
)
def test_an_expression_that_cannot_be_meant(where: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        open_candidates(ITEMS, where=where)
    assert str(e.value) == message


@pytest.mark.parametrize("where", ["price >", "price > 1, price", "SELECT 1", "foo(price)", "category > 3", ""])
def test_an_expression_that_is_none(where: str) -> None:
    with pytest.raises(InputError) as e:
        open_candidates(ITEMS, where=where)
    assert str(e.value).startswith(f"--where {where!r} cannot be evaluated: ")
    assert str(e.value).endswith(f". {COLUMNS}")


def test_lists_and_expression_are_combined(tmp_path: Path) -> None:
    (tmp_path / "allow.txt").write_text("a\nb\nc\n")
    (tmp_path / "deny.txt").write_text("c\n")
    both = {"allow": tmp_path / "allow.txt", "deny": tmp_path / "deny.txt"}
    assert open_candidates(ITEMS, **both).allowed_I.tolist() == [True, True, False, False]
    assert open_candidates(ITEMS, where="price < 2", **both).allowed_I.tolist() == [True, False, False, False]
    with pytest.raises(InputError) as e:
        open_candidates(ITEMS, where="price > 2", **both)
    assert str(e.value) == (
        f"No item may be recommended: --allow {both['allow']}, --deny {both['deny']}, --where price > 2 "
        "leave none of 4. Widen them."
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "kind",
            "--cap kind=2: items have no column kind, only item_number, item_id, n_interactions, price, category, "
            "tags.",
        ),
        (
            "tags",
            "--cap tags=2: column tags is List(String), expected one value per item, such as a name or an integer. "
            "Train with a column of such values.",
        ),
        (
            "price",
            "--cap price=2: column price is Float64, expected one value per item, such as a name or an integer. "
            "Train with a column of such values.",
        ),
    ],
)
def test_a_column_that_cannot_be_capped(column: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        open_candidates(ITEMS, caps={column: 2})
    assert str(e.value) == message


def test_items_without_a_value_are_not_capped() -> None:
    nulls = Vocabulary(ITEMS.items.with_columns(brand=pl.Series(["m", None, "m", None]), void=pl.lit(None)))
    (brand,) = open_candidates(nulls, caps={"brand": 1}).caps
    assert brand.group_I[0] == brand.group_I[2]
    assert len(set(brand.group_I.tolist())) == 3
    (void,) = open_candidates(nulls, caps={"void": 1}).caps
    assert len(set(void.group_I.tolist())) == 4
    assert open_candidates(nulls, caps={"brand": 1, "category": 9}, where="item_id <> 'd'").most(10) == 2


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=5, max_size=5),
    limits=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    n_caps=st.integers(1, 2),
    row=st.permutations([0, 1, 2, 3, 4, -1]),
    k=st.integers(1, 6),
)
def test_no_list_within_the_caps_is_better(
    groups: list[tuple[int, int]], limits: tuple[int, int], n_caps: int, row: list[int], k: int
) -> None:
    """Against every list that there is: best item first, and under one cap the largest sum of scores as well."""
    caps = tuple(Cap(np.array([group[at] for group in groups]), limits[at]) for at in range(n_caps))
    at_Bk = Candidates(np.ones(5, dtype=np.bool_), caps).choose(np.array([row, row[::-1]]), k)
    assert at_Bk.shape == (2, k)
    for ranked, at_k in ((row, at_Bk[0]), (row[::-1], at_Bk[1])):
        found = [ranked[at] for at in at_k if at >= 0]
        assert (at_k[len(found) :] == -1).all()
        places = {item: place for place, item in enumerate(ranked)}
        lists = [
            items
            for length in range(k + 1)
            for items in permutations(range(5), length)
            if list(items) == sorted(items, key=places.__getitem__)
            and all(np.bincount(cap.group_I[list(items)], minlength=1).max() <= cap.limit for cap in caps)
        ]
        # A longer list is better than its own beginning.
        best = min(lists, key=lambda items: [*(places[item] for item in items), 99])
        assert found == list(best)
        if n_caps == 1:
            assert max(sum(10 - places[item] for item in items) for items in lists) == sum(
                10 - places[i] for i in found
            )


# Whole runs.

CATEGORIES = [("a", "b", "c", None)[number % 7 % 4] for number in range(N_ITEMS)]
BRANDS = [number % 11 for number in range(N_ITEMS)]


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    columns = {"category": CATEGORIES, "brand": BRANDS}
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", columns=columns)


def ids(numbers: Sequence[int]) -> list[Any]:
    return [item_id(number, int) for number in numbers]


def write_ids(file: Path, numbers: Sequence[int]) -> Path:
    file.write_text("".join(f"{one}\n" for one in [*ids(numbers), 55_555, 55_556]))
    return file


def drawn_exclusions(users: Mapping[Any, Any]) -> dict[Any, list[Any]]:
    """Of every second user, of one who is everywhere else unknown, with repeats and unknown items."""
    draw = np.random.default_rng(4)
    some = [*list(users)[::2], 123_456]
    return {user: ids(draw.integers(0, N_ITEMS + 5, size=draw.integers(1, 25)).tolist()) for user in some}


@pytest.mark.parametrize("fallback", ["popular", "none"])
@pytest.mark.parametrize("keep_seen", [True, False])
@pytest.mark.parametrize("caps", [{}, {"category": 2}, {"category": 3, "brand": 1}])
@pytest.mark.parametrize("k", [4, 30])
def test_everything_at_once_is_what_a_plain_loop_gives(
    tmp_path: Path, bundle: Bundle, k: int, caps: dict[str, int], keep_seen: bool, fallback: str
) -> None:
    users = drawn_users(90) | {70_000 + user: [] for user in range(6)}
    exclude = drawn_exclusions(users)
    options = Options.model_validate(
        {"k": k, "keep_seen": keep_seen, "fallback": fallback, "caps": caps, "where": "brand <> 4"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 300)
        patch.setattr("scoring.job.BLOCK_PLACES", 300)
        patch.setattr("pipeline.histories.BATCH_USERS", 4)
        summary = score(
            bundle,
            KnownScorer(),
            write_histories(tmp_path / "users.parquet", users),
            tmp_path / "run",
            options,
            allow=write_ids(tmp_path / "allow.txt", range(1, N_ITEMS)),
            deny=write_ids(tmp_path / "deny.txt", range(0, N_ITEMS, 9)),
            exclude=write_histories(tmp_path / "exclude.parquet", exclude),
        )
    assert len(list((tmp_path / "run" / "data").iterdir())) > 2
    allowed = [number for number in range(1, N_ITEMS) if number % 9 and BRANDS[number] != 4]
    check(tmp_path / "run", bundle, users, options, summary, allowed=allowed, exclude=exclude)
    assert (summary.candidates, summary.unknown_allowed, summary.unknown_denied) == (len(allowed), 2, 2)
    known = set(bundle.vocabulary.items["item_id"])
    assert summary.excluded == sum(len(set(exclude.get(user, ())) & known) for user in users)
    pairs = sum(len(set(items)) for items in exclude.values())
    assert summary.exclusions_without_effect == pairs - summary.excluded


def test_caps_are_met_by_ranking_deeper_only_where_needed(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 6 of 34 items hold one of each category for most users; only the others are ranked again."""
    monkeypatch.setattr("scoring.recommendations.DEEPER", 2)
    users, scorer = drawn_users(200), KnownScorer()
    location = write_histories(tmp_path / "users.parquet", users)
    options = Options(k=3, where="category IS NOT NULL", caps={"category": 1})
    summary = score(bundle, scorer, location, tmp_path / "run", options)
    allowed = [number for number in range(N_ITEMS) if CATEGORIES[number]]
    check(tmp_path / "run", bundle, users, options, summary, allowed=allowed)
    assert summary.scored < sum(scorer.batches) < 2 * summary.scored
    lists = read_data(tmp_path / "run").join(bundle.vocabulary.items, on="item_id")
    assert lists.group_by("user_id", "category").len()["len"].max() == 1


def test_deep_rankings_come_in_batches_bounded_by_their_concept_shares(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.histories.BATCH_SCORES", N_ITEMS * N_CONCEPTS * 2)
    users, scorer = drawn_users(40), KnownScorer()
    location = write_histories(tmp_path / "users.parquet", users)
    options = Options(k=3, where="category IS NOT NULL", caps={"category": 1})
    score(bundle, scorer, location, tmp_path / "run", options)
    allowed = [number for number in range(N_ITEMS) if CATEGORIES[number]]
    check(tmp_path / "run", bundle, users, options, allowed=allowed)
    assert max(scorer.batches) == 6
    assert scorer.batches[-1] <= 2


def test_a_users_exclusions_do_not_make_a_batch_wide(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scorer pads is bounded by the longer of history and exclusions."""
    monkeypatch.setattr("pipeline.histories.PADDED_ITEMS", 2 * N_ITEMS)
    users = {user: [item_id(user % 3, int)] for user in range(30)}
    exclude = {user: ids(range(5, N_ITEMS)) for user in range(0, 30, 3)}
    location, scorer = write_histories(tmp_path / "users.parquet", users), KnownScorer()
    where = write_histories(tmp_path / "exclude.parquet", exclude)
    score(bundle, scorer, location, tmp_path / "run", Options(k=9), exclude=where)
    check(tmp_path / "run", bundle, users, Options(k=9), exclude=exclude)
    assert scorer.batches == [20, 2, 2, 2, 2, 2]


def test_exclusions_may_come_as_interactions_for_bare_users(tmp_path: Path, bundle: Bundle) -> None:
    users = drawn_users(30)
    exclude = drawn_exclusions(users)
    rows = [(user, item) for user, items in exclude.items() for item in items]
    (tmp_path / "exclude").mkdir()
    for at in range(3):
        pl.DataFrame(rows[at::3], schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row").write_parquet(
            tmp_path / "exclude" / f"{at}.parquet"
        )
    bare, history = write_bare(tmp_path / "bare.parquet", [*users]), write_histories(tmp_path / "h.parquet", users)
    score(
        bundle,
        KnownScorer(),
        bare,
        tmp_path / "run",
        Options(k=9),
        history=history,
        exclude=str(tmp_path / "exclude"),
    )
    check(tmp_path / "run", bundle, users, Options(k=9), exclude=exclude)
    manifest = RunManifest.model_validate_json((tmp_path / "run/manifest.json").read_bytes())
    assert manifest.exclude is not None
    assert list(manifest.exclude.files) == ["0.parquet", "1.parquet", "2.parquet"]


def test_the_manifest_holds_what_was_chosen(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "users.parquet", drawn_users(9))
    allow = write_ids(tmp_path / "allow.txt", range(20))
    options = Options(k=3, where="brand < 9", caps={"brand": 1})
    score(bundle, KnownScorer(), location, tmp_path / "run", options, allow=allow)
    manifest = RunManifest.model_validate_json((tmp_path / "run/manifest.json").read_bytes())
    assert (manifest.options, manifest.exclude) == (options, None)
    assert {name: items.model_dump() for name, items in manifest.lists.items()} == {
        "allow": {"location": str(allow), "file": digest(allow).model_dump(), "ids": 22, "unknown": 2}
    }


def test_nothing_chosen_is_everything_allowed(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "users.parquet", drawn_users(40))
    everything = write_ids(tmp_path / "allow.txt", range(N_ITEMS))
    score(bundle, KnownScorer(), location, tmp_path / "one", Options(k=9))
    score(bundle, KnownScorer(), location, tmp_path / "two", Options(k=9, caps={"item_id": 1}), allow=everything)
    assert contents(tmp_path / "one", "data", "users") == contents(tmp_path / "two", "data", "users")


@pytest.mark.parametrize(
    ("exclude", "user_type", "item_type", "message"),
    [
        (
            {1: [7, 8]},
            pl.Int64,
            pl.Int64,
            "--exclude FILE names no item of the bundle (ids: 2). Write its ids as training had them, 1000 for one.",
        ),
        (
            {1: [7]},
            pl.Int32,
            pl.Int64,
            "User ids are Int64 in USERS, but Int32 in --exclude FILE. Write both with one type.",
        ),
        (
            {1: ["7"]},
            pl.Int64,
            pl.String,
            "FILE: Item ids are String, but the model was trained with Int64. Cast them.",
        ),
    ],
)
def test_exclusions_that_cannot_be_meant(
    tmp_path: Path, bundle: Bundle, exclude: Any, user_type: Any, item_type: Any, message: str
) -> None:
    users = write_histories(tmp_path / "users.parquet", {1: [1_000]})
    file = write_histories(tmp_path / "exclude.parquet", exclude, user_type, item_type)
    with pytest.raises(InputError) as e:
        score(bundle, KnownScorer(), users, tmp_path / "run", Options(), exclude=file)
    assert str(e.value) == message.replace("FILE", file).replace("USERS", users)
    assert not (tmp_path / "run").exists()


def test_exclusions_of_bare_users_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    users = write_histories(tmp_path / "users.parquet", {1: [1_000]})
    bare = write_bare(tmp_path / "bare.parquet", [1])
    with pytest.raises(InputError) as e:
        score(bundle, KnownScorer(), users, tmp_path / "run", Options(), exclude=bare)
    assert str(e.value) == (
        f"--exclude {bare} holds bare users: beside user_id it has neither item_id nor history. "
        "Name the interactions of the users."
    )


def test_users_who_may_get_nothing_are_accounted_for(tmp_path: Path, bundle: Bundle) -> None:
    users = {1: [1_000], 2: [], 3: [1_000]}
    location = write_histories(tmp_path / "users.parquet", users)
    exclude = write_histories(tmp_path / "exclude.parquet", {1: ids(range(N_ITEMS)), 2: ids(range(N_ITEMS))})
    score(bundle, KnownScorer(), location, tmp_path / "run", Options(k=2), exclude=exclude)
    assert read_users(tmp_path / "run").select("user_id", "recommended").rows() == [(1, 0), (2, 0), (3, 2)]
