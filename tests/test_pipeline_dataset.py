import os
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.histories import Histories

REAL_DATA = Path(os.environ.get("MACRID_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

Rows = list[tuple[int, int, float]]


def rows_of(n_users: int, n_items: int, seed: int = 1) -> Rows:
    """Distinct pairs: histories of 1 to 24 items, some items much more often than others."""
    rng = np.random.default_rng(seed)
    taste = 1 / np.arange(1, n_items + 1)
    return [
        (100 - 7 * user, 1000 + int(item), float(rng.integers(1, 6)))
        for user in range(n_users)
        for item in rng.choice(n_items, rng.integers(1, 25), replace=False, p=taste / taste.sum())
    ]


def write(file: Path, rows: Rows) -> Path:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(file)
    return file


def load(source: Path | Rows, **config: object) -> Dataset:
    """The folder goes at once: on POSIX a mapped file stays readable."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, list):
            source = write(Path(folder, "x.parquet"), source)
        return load_dataset(DataConfig(input=str(source), **config), Path(folder))


def refusal(source: Path | Rows, **config: object) -> str:
    with pytest.raises(InputError) as error:
        load(source, **config)
    return str(error.value)


def item_ids(dataset: Dataset, histories: Histories) -> list[list[object]]:
    return [dataset.vocabulary.ids(histories[user]).to_list() for user in range(len(histories))]


def content(dataset: Dataset) -> tuple[object, ...]:
    histories = (
        dataset.train,
        dataset.validation.histories,
        dataset.validation.targets,
        dataset.test.histories,
        dataset.test.targets,
    )
    arrays = [array.tolist() for h in histories for array in (h.items_N, h.offsets)]
    return dataset.vocabulary.items.to_dict(as_series=False), arrays, dataset.counts


def kept_histories(rows: Rows, min_rating: float, min_history: int) -> dict[int, set[int]]:
    """The users to split, worked out plainly."""
    histories = defaultdict(set)
    for user, item, rating in rows:
        if rating >= min_rating:
            histories[user].add(item)
    return {user: items for user, items in sorted(histories.items()) if len(items) >= min_history}


# Both splits


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-5, 5), st.integers(0, 9), st.sampled_from([1.0, 3.5, 5.0])), min_size=1, max_size=120
    ),
    split=st.sampled_from(["held-out-users", "random"]),
    min_history=st.integers(1, 4),
    amounts=st.sampled_from([(0.1, 0.3), (0.25, 0.25), (0.0, 0.4), (0, 0)]),
)
def test_counts_add_up(rows, split, min_history, amounts):
    config = {"split": split, "min_rating": 3.5, "min_history": min_history}
    kept = kept_histories(rows, 3.5, min_history)
    if not kept:
        assert "leaves no user to train on" in refusal(rows, **config)
        return
    dataset = load(rows, validation=amounts[0], test=amounts[1], **config)
    counts = Counter(dataset.counts)
    rated = [(user, item) for user, item, rating in rows if rating >= 3.5]
    pairs_per_user = Counter(user for user, _ in set(rated))
    assert counts["rows_read"] == len(rows)
    assert counts["rows_below_min_rating"] == len(rows) - len(rated)
    assert counts["duplicate_rows"] == len(rated) - len(set(rated))
    assert counts["users"] == len(pairs_per_user)
    assert counts["users_below_min_history"] == len(pairs_per_user) - len(kept)
    assert counts["rows_of_users_below_min_history"] == sum(n for n in pairs_per_user.values() if n < min_history)
    assert counts["training_users"] == len(dataset.train)
    assert counts["validation_users"] == len(dataset.validation)
    assert counts["test_users"] == len(dataset.test)
    assert counts["items"] == len(dataset.vocabulary)
    assert counts["rows_read"] == sum(
        counts[name]
        for name in (
            "rows_below_min_rating",
            "duplicate_rows",
            "rows_of_users_below_min_history",
            "training_interactions",
            "validation_interactions",
            "test_interactions",
            "held_out_items_outside_catalogue",
            "rows_of_held_out_users_without_targets",
        )
    )
    held_out = counts["validation_users"] + counts["test_users"] + counts["held_out_users_without_targets"]
    if split == "held-out-users":
        assert counts["users"] == counts["users_below_min_history"] + counts["training_users"] + held_out
    else:
        assert counts["training_users"] == len(kept)
        assert held_out == 2 * len(kept)


@pytest.mark.parametrize("split", ["held-out-users", "random"])
def test_every_count_is_always_there(split):
    rows = [(user, item, 5.0) for user in range(10) for item in range(10)]
    assert load(rows, split=split, validation=0, test=0).counts == {
        "rows_read": 100,
        "rows_below_min_rating": 0,
        "duplicate_rows": 0,
        "users": 10,
        "users_below_min_history": 0,
        "rows_of_users_below_min_history": 0,
        "training_users": 10,
        "training_interactions": 100,
        "validation_users": 0,
        "validation_interactions": 0,
        "test_users": 0,
        "test_interactions": 0,
        "held_out_users_without_targets": 0 if split == "held-out-users" else 20,
        "rows_of_held_out_users_without_targets": 0,
        "held_out_items_outside_catalogue": 0,
        "items": 10,
    }


@pytest.mark.parametrize("split", ["held-out-users", "random"])
def test_neither_buckets_blocks_files_order_nor_form_show(tmp_path, monkeypatch, split):
    rows = rows_of(60, 40)
    config = {"split": split, "validation": 0.2, "test": 0.2}
    expected = content(load(rows, **config))
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 37)
    assert content(load(rows, **config)) == expected
    monkeypatch.setattr("pipeline.split.BLOCK_ITEMS", 11)
    assert content(load(rows, **config)) == expected
    rows = np.random.default_rng(0).permutation(np.array(rows)).tolist()
    for at in range(3):
        write(tmp_path / f"{at}.parquet", rows[at::3])
    assert content(load(tmp_path, **config)) == expected
    frame = pl.read_parquet(tmp_path / "*.parquet")
    frame.group_by("user_id").agg(history="item_id").write_parquet(tmp_path / "h")
    assert content(load(tmp_path / "h", **config)) == expected


@pytest.mark.parametrize("split", ["held-out-users", "random"])
def test_the_seed_draws_the_split(split):
    rows = rows_of(60, 40)
    one, again, other = (content(load(rows, split=split, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one[1] != other[1]


@pytest.mark.parametrize("split", ["held-out-users", "random"])
def test_histories_are_ascending_and_mapped(split):
    dataset = load(rows_of(60, 40), split=split)
    for histories in (dataset.train, dataset.test.histories, dataset.test.targets):
        assert isinstance(histories.items_N, np.memmap)
        assert (histories.items_N.dtype, histories.offsets.dtype) == (np.int32, np.int64)
        assert all((np.diff(histories[user]) > 0).all() for user in range(len(histories)))


@pytest.mark.parametrize("split", ["held-out-users", "random"])
def test_the_vocabulary_is_what_training_saw(split):
    dataset = load(rows_of(60, 40), split=split, validation=0.3, test=0.3)
    seen = Counter(item for history in item_ids(dataset, dataset.train) for item in history)
    items = dataset.vocabulary.items
    assert dict(zip(items["item_id"], items["n_interactions"], strict=True)) == seen
    assert items["item_id"].is_sorted()
    assert items["item_number"].to_list() == list(range(len(seen)))


def test_string_ids_and_titles(tmp_path):
    people = [("zoë", ["b", "a"]), ("adam", ["c", "a", "ü"]), ("bea", ["a"])]
    pl.DataFrame(people, schema=["user_id", "history"], orient="row").write_parquet(tmp_path / "x.parquet")
    pl.DataFrame({"item_id": ["ü", "d", "a"], "title": ["U", "D", "A"]}).write_parquet(tmp_path / "items")
    dataset = load(tmp_path / "x.parquet", items=str(tmp_path / "items"), min_history=2, validation=0, test=0)
    assert dataset.vocabulary.items.rows() == [(0, "a", 2, "A"), (1, "b", 1, None), (2, "c", 1, None), (3, "ü", 1, "U")]
    assert item_ids(dataset, dataset.train) == [["a", "c", "ü"], ["a", "b"]]  # adam, zoë
    assert dataset.counts["rows_read"] == 6


# Held-out users


def test_held_out_users_share_nothing_with_training_but_the_catalogue():
    rows = rows_of(90, 400)
    kept = kept_histories(rows, 0, 5)
    assert len({frozenset(items) for items in kept.values()}) == len(kept)  # a history tells whose it is
    dataset = load(rows, validation=20, test=0.25)
    trained = {frozenset(history) for history in item_ids(dataset, dataset.train)}
    catalogue = {item for history in trained for item in history}
    assert len(catalogue) < 350
    held_out = [items for items in kept.values() if frozenset(items) not in trained]
    assert len(trained) + len(held_out) == len(kept)
    found = Counter()
    for evaluated in (dataset.validation, dataset.test):
        pairs = zip(item_ids(dataset, evaluated.histories), item_ids(dataset, evaluated.targets), strict=True)
        for history, targets in pairs:
            assert not set(history) & set(targets)
            assert len(targets) == int(0.2 * (len(history) + len(targets))) >= 1
            found[frozenset(history + targets)] += 1
    assert found == Counter(frozenset(items & catalogue) for items in held_out if len(items & catalogue) >= 5)
    assert len(dataset.test) + len(dataset.validation) == found.total()


def test_held_out_users_are_the_last_of_a_permutation_of_ascending_ids():
    """Item u is only user u's, and items 900 and up are everyone's."""
    rows = [(user, item, 5.0) for user in range(50) for item in [user, *range(900, 910)]]
    dataset = load(rows, validation=7, test=0.1, seed=3)
    order = np.random.RandomState(3).permutation(50)
    own = [history[0] for history in item_ids(dataset, dataset.train)]
    assert own == sorted(order[:38])
    assert (len(dataset.validation), len(dataset.test)) == (7, 5)
    assert dataset.counts["held_out_items_outside_catalogue"] == 12


def test_splits_are_pinned():
    """Published figures belong to their held-out users: see what a new numpy changes."""
    rows = [(user, item, 5.0) for user in range(12) for item in range(10)]
    assert np.random.RandomState(98765).permutation(12).tolist() == [11, 9, 2, 7, 8, 4, 1, 10, 6, 0, 3, 5]
    dataset = load(rows, validation=2, test=2)
    assert dataset.validation.targets.items_N.tolist() == [3, 4, 4, 6]
    assert dataset.test.targets.items_N.tolist() == [0, 2, 4, 9]
    dataset = load(rows[:30], split="random", validation=0.1, test=0.2)
    assert dataset.validation.targets.items_N.tolist() == [0, 7, 8]
    assert dataset.test.targets.items_N.tolist() == [6, 7, 2, 5, 1, 4]


def test_amounts_are_exact():
    """0.29 of 100 is 29 users, although 0.29 * 100 is 28.999999999999996."""
    rows = [(user, item, 5.0) for user in range(100) for item in range(5)]
    dataset = load(rows, validation=0.29, test=0.07)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (64, 29, 7)


@pytest.mark.parametrize(("fold_in", "hundredths"), [(0.8, 20), (0.71, 29), (0.9, 10), (0.43, 57)])
def test_targets_are_the_floor_of_their_share(fold_in, hundredths):
    """1 - 0.8 is 0.19999999999999996, yet 5 items have a target and 10 have two."""
    rows = [(user, item, 5.0) for user in range(200) for item in range(user + 1)]
    dataset = load(rows, validation=0, test=150, fold_in=fold_in, min_history=1)
    n_items = dataset.test.histories.lengths + dataset.test.targets.lengths
    assert np.array_equal(dataset.test.targets.lengths, n_items * hundredths // 100)
    if fold_in == 0.8:
        assert np.array_equal(dataset.test.targets.lengths, [int(0.2 * n) for n in n_items])


def test_targets_are_drawn_evenly():
    rows = [(user, item, 5.0) for user in range(2000) for item in range(20)]
    drawn = np.bincount(load(rows, validation=0, test=1900).test.targets.items_N, minlength=20)
    assert drawn.sum() == 1900 * 4
    assert np.abs(drawn - 380).max() < 4 * np.sqrt(1900 * 0.2 * 0.8)


def test_held_out_users_with_too_little_left_are_counted():
    """Three users of five train on items 0 to 5; each of the others knows just some of these."""
    alone = {user: [*range(6)] if user < 3 else [1, 2, 3, 4, 100 + user, 200 + user] for user in range(5)}
    rows = [(user, item, 5.0) for user, items in alone.items() for item in items]
    seed = next(s for s in range(99) if set(np.random.RandomState(s).permutation(5)[3:].tolist()) == {3, 4})
    counts = load(rows, validation=1, test=1, seed=seed).counts
    assert counts["held_out_items_outside_catalogue"] == 4
    assert counts["held_out_users_without_targets"] == 2
    assert counts["rows_of_held_out_users_without_targets"] == 8
    assert counts["validation_users"] == counts["test_users"] == 0
    dataset = load(rows, validation=1, test=1, seed=seed, min_history=1, fold_in=0.6)
    assert dataset.counts["held_out_users_without_targets"] == 0
    assert dataset.test.targets.lengths.tolist() == [1]  # floor(0.4 * 4)


# Random split


def test_random_split_divides_every_history():
    rows = rows_of(90, 400)
    kept = kept_histories(rows, 0, 5)
    dataset = load(rows, split="random", validation=0.1, test=0.29)
    train = item_ids(dataset, dataset.train)
    catalogue = {item for history in train for item in history}
    assert len({frozenset(history) for history in train}) == len(train) == len(kept)  # a history tells whose it is
    validation, test = (
        list(zip(item_ids(dataset, held_out.histories), item_ids(dataset, held_out.targets), strict=True))
        for held_out in (dataset.validation, dataset.test)
    )
    assert 0 < len(validation) < len(test) < len(kept)
    outside = 0
    for trained, items in zip(map(set, train), kept.values(), strict=True):
        n_validation, n_test = len(items) // 10, len(items) * 29 // 100
        assert trained <= items
        assert len(trained) == len(items) - n_validation - n_test
        is_validated = bool(validation) and set(validation[0][0]) == trained
        validated = set(validation.pop(0)[1]) if is_validated else set()
        is_tested = bool(test) and set(test[0][0]) == trained | validated
        tested = set(test.pop(0)[1]) if is_tested else set()
        assert (len(validated) > 0, len(tested) > 0) == (is_validated, is_tested)
        assert len(validated) <= n_validation
        assert len(tested) <= n_test
        assert len(validated) + len(tested) == len(validated | tested)
        assert validated | tested == (items - trained) & catalogue
        outside += len(items - trained - catalogue)
    assert (validation, test) == ([], [])
    assert dataset.counts["held_out_items_outside_catalogue"] == outside > 0


def test_random_targets_are_drawn_evenly():
    rows = [(user, item, 5.0) for user in range(2000) for item in range(20)]
    dataset = load(rows, split="random", validation=0.1, test=0.2)
    for held_out, n in ((dataset.validation, 2), (dataset.test, 4)):
        drawn = np.bincount(held_out.targets.items_N, minlength=20)
        assert drawn.sum() == 2000 * n
        assert np.abs(drawn - 100 * n).max() < 4 * np.sqrt(100 * n * (1 - n / 20))


# Refusals


def test_nobody_left_to_train_on():
    rows = [(user, item, 5.0) for user in range(10) for item in range(6)]
    assert refusal(rows, validation=4, test=0.6) == (
        "data.validation = 4 and data.test = 0.6 hold out 4 and 6 of 10 users: none is left to train on. Lower them."
    )


def test_nothing_left_to_train_on(tmp_path):
    file = write(tmp_path / "x.parquet", [(1, 1, 5.0), (1, 2, 5.0), (1, 2, 4.0), (2, 1, 1.0), (3, 1, 4.0)])
    assert refusal(file, min_rating=4.0, min_history=3) == (
        f"{file} leaves no user to train on: of 5 rows, 1 are below min_rating; of 2 users left, 2 have fewer than 3"
        " items. Lower data.min_rating or data.min_history."
    )


def test_random_split_by_numbers_of_users():
    assert refusal([], split="random", validation=0.1, test=500) == (
        'data.test = 500 is a number of users, but split = "random" holds out a share of each history. Give a share'
        " below 1, such as 0.1."
    )


def test_random_split_of_everything():
    assert refusal([], split="random", validation=0.5, test=0.5) == (
        "data.validation = 0.5 and data.test = 0.5 leave nothing of a history to train on."
        " Give shares with a sum below 1."
    )


def test_bare_users(tmp_path):
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "x.parquet")
    assert refusal(tmp_path / "x.parquet") == (
        f"{tmp_path / 'x.parquet'} holds users without items. Name interactions or histories to train on."
    )


def test_faults_of_items_are_found_before_the_work(tmp_path):
    file = write(tmp_path / "x.parquet", rows_of(20, 40))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError) as error:
        load_dataset(DataConfig(input=str(file), items=str(tmp_path / "items.parquet")), folder)
    missing = tmp_path / "items.parquet"
    assert str(error.value) == f"{missing} does not exist. Name a Parquet file with one row per item."
    assert not any(folder.iterdir())


# Real data


@pytest.mark.parametrize(
    ("name", "users", "items", "rows"),
    [
        ("ml-100k", 938, 1_447, 55_361),
        ("ml-1m", 6_034, 3_533, 575_272),
        ("ml-latest-small", 603, 6_298, 48_562),
    ],
)
def test_the_papers_filter(name, users, items, rows):
    folder = REAL_DATA / name
    if not folder.exists():
        pytest.skip(f"no data set at {folder}; name the folder above it in MACRID_DATA")
    config = {"min_rating": 4.0, "items": str(folder / "items.parquet"), "validation": 0, "test": 0}
    dataset = load(folder / "interactions.parquet", **config)
    assert (len(dataset.train), len(dataset.vocabulary), len(dataset.train.items_N)) == (users, items, rows)
    assert dataset.vocabulary.items["title"].null_count() == 0
