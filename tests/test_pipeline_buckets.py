import itertools
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buckets import Bucket, bucket_count, distinct_items, read_bucket, shuffle
from pipeline.errors import JobError
from pipeline.interactions import open_source


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def buckets(location: Path, n_buckets: int, *, min_rating: float | None = None) -> list[Bucket]:
    """Shuffle and read everything back."""
    with tempfile.TemporaryDirectory() as folder:
        shuffle(
            open_source(str(location), with_rating=min_rating is not None),
            Path(folder),
            n_buckets,
            min_rating=min_rating,
        )
        return [read_bucket(Path(folder), bucket) for bucket in range(n_buckets)]


def histories(location: Path, *, min_rating: float | None = None) -> dict[object, list[object]]:
    [bucket] = buckets(location, 1, min_rating=min_rating)
    return dict(bucket.histories.iter_rows())


def test_bucket_count_follows_from_the_rows():
    assert [bucket_count(n) for n in (1, 1_500_000, 1_500_001, 100_000_000, 10**12)] == [1, 1, 2, 67, 1024]


def test_a_bucket_by_hand(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=["b", "a", "b", "b", "a"], item_id=[9, 5, -2, 9, 5])
    [bucket] = buckets(file, 1)
    assert bucket.n_interactions == 5
    assert bucket.histories.schema == {"user_id": pl.String, "history": pl.List(pl.Int64)}
    assert bucket.histories.rows() == [("a", [5]), ("b", [-2, 9])]


def test_a_bucket_without_users_has_the_same_columns(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=["a"], item_id=pa.array([1], pa.int16()))
    found = buckets(file, 5)
    assert sorted(len(bucket.histories) for bucket in found) == [0, 0, 0, 0, 1]
    assert {bucket.n_interactions for bucket in found} == {0, 1}
    assert all(b.histories.schema == {"user_id": pl.String, "history": pl.List(pl.Int16)} for b in found)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([0, 1, 2, -1, 2**62], [5, 34, 52, 29, 8]), (["", "a", "b", "Zoë"], [5, 42, 40, 41])],
)
def test_the_bucket_of_a_user_is_pinned(tmp_path, ids, expected):
    """Jobs that shuffled apart (users, histories; other machines) must agree: see what a new polars changes."""
    file = write(tmp_path / "x.parquet", user_id=ids)
    found = buckets(file, 100)
    where = {user: at for at, bucket in enumerate(found) for user in bucket.histories["user_id"]}
    assert [where[user] for user in ids] == expected


@pytest.mark.parametrize("ids", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_equal_ids_share_a_bucket_whatever_integer_type(tmp_path, ids):
    wide = write(tmp_path / "wide.parquet", user_id=list(range(100)))
    narrow = write(tmp_path / "narrow.parquet", user_id=pa.array(range(100), ids))
    for one, other in zip(buckets(wide, 7), buckets(narrow, 7), strict=True):
        assert one.histories["user_id"].to_list() == other.histories["user_id"].to_list()


@pytest.mark.parametrize("encode", [pa.Array.dictionary_encode, lambda a: a.cast(pa.string_view())])
def test_every_encoding_of_strings_is_read_as_strings(tmp_path, encode):
    ids = encode(pa.array(["b", "a", "c", "a"]))
    write(tmp_path / "a.parquet", user_id=ids, item_id=ids)
    write(tmp_path / "b.parquet", item_id=["x"], user_id=["a"], item=[1])
    assert histories(tmp_path) == {"a": ["a", "x"], "b": ["b"], "c": ["c"]}


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-3, 12), st.sampled_from(["a", "b", "c", "ü", ""])), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    n_buckets=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_histories_are_sets_whatever_files_order_and_buckets(rows, cuts, n_buckets, order):
    order.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        for at, (start, end) in enumerate(itertools.pairwise(sorted([0, *cuts, len(rows)]))):
            users, items = [row[0] for row in rows[start:end]], [row[1] for row in rows[start:end]]
            write(Path(folder, f"{at}.parquet"), user_id=pa.array(users, "int32"), item_id=pa.array(items, "string"))
        found = buckets(Path(folder), n_buckets)
    expected = {user: sorted({item for u, item in rows if u == user}, key=str.encode) for user, _ in rows}
    users = [user for bucket in found for user in bucket.histories["user_id"]]
    assert len(users) == len(expected)
    assert {u: h for bucket in found for u, h in bucket.histories.iter_rows()} == expected
    assert all(bucket.histories["user_id"].is_sorted() for bucket in found)
    assert sum(bucket.n_interactions for bucket in found) == len(rows)


@pytest.mark.parametrize("lists", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
def test_histories_with_and_without_items(tmp_path, lists):
    history = pa.array([[3, 1, 3], [], None, [2], []], lists)
    file = write(tmp_path / "x.parquet", user_id=[1, 2, 3, 1, 1], history=history)
    [bucket] = buckets(file, 1)
    assert dict(bucket.histories.iter_rows()) == {1: [1, 2, 3], 2: [], 3: []}
    assert bucket.n_interactions == 4


def test_histories_of_fixed_length(tmp_path):
    history = pa.array([["b", "a"], None], pa.list_(pa.string(), 2))
    assert histories(write(tmp_path / "x.parquet", user_id=[1, 2], history=history)) == {1: ["a", "b"], 2: []}


def test_files_in_several_encodings(tmp_path):
    ids, history = pa.array(["b", "a"]), pa.array([["x", "y"], ["y", "z"]])
    for name, encoded in (
        ("a", {"user_id": ids, "history": history, "day": [1, 2]}),
        ("b", {"history": history.cast(pa.list_(pa.string(), 2)), "user_id": ids.dictionary_encode()}),
        ("c", {"day": ids, "user_id": ids.cast(pa.string_view()), "history": history.cast(pa.large_list(pa.string()))}),
    ):
        write(tmp_path / f"{name}.parquet", **encoded)
    [bucket] = buckets(tmp_path, 1)
    assert dict(bucket.histories.iter_rows()) == {"a": ["y", "z"], "b": ["x", "y"]}
    assert bucket.n_interactions == 12


def test_ratings_in_several_types(tmp_path):
    for name, rating in (("a", pa.array([3, 4])), ("b", pa.array([3.4, 3.5], "float32"))):
        write(tmp_path / f"{name}.parquet", user_id=[name, name], item_id=[1, 2], rating=rating)
    assert histories(tmp_path, min_rating=3.5) == {"a": [2], "b": [2]}


def test_long_histories_leave_the_polars_settings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.buckets.CHUNK_ROWS", 10)
    monkeypatch.delenv("POLARS_IDEAL_MORSEL_SIZE", raising=False)
    file = write(tmp_path / "x.parquet", user_id=[*range(50)], history=[[*range(user)] for user in range(50)])
    assert histories(file) == {user: [*range(user)] for user in range(50)}
    assert "POLARS_IDEAL_MORSEL_SIZE" not in os.environ


def test_bare_users(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=["b", "a", "b"], country=[1, 2, 3])
    [bucket] = buckets(file, 1)
    assert dict(bucket.histories.iter_rows()) == {"a": [], "b": []}
    assert bucket.n_interactions == 0


def test_columns_of_the_path_override_nothing(tmp_path):
    write(tmp_path / "item_id=7" / "rating=1" / "user_id=9" / "x.parquet", user_id=[1], item_id=[2], rating=[5])
    assert histories(tmp_path, min_rating=3.0) == {1: [2]}
    folder = tmp_path / "item_id=8" / "[buckets]"
    shuffle(open_source(str(tmp_path)), folder, 1)
    assert dict(read_bucket(folder, 0).histories.iter_rows()) == {1: [2]}
    assert distinct_items(folder).to_list() == [2]


@pytest.mark.parametrize("numbers", [pa.float32(), pa.float64(), pa.decimal128(5, 2)])
def test_min_rating_keeps_its_equals(tmp_path, numbers):
    """float32 4.1 is below float64 4.1, yet it was written as 4.1."""
    rating = pa.array([Decimal("4.1"), Decimal("4.0"), Decimal("4.2"), Decimal("1.0")]).cast(numbers)
    file = write(tmp_path / "x.parquet", user_id=[1, 1, 1, 2], item_id=[1, 2, 3, 4], rating=rating)
    [bucket] = buckets(file, 1, min_rating=4.1)
    assert dict(bucket.histories.iter_rows()) == {1: [1, 3]}  # user 2 is gone
    assert bucket.n_interactions == 2


def test_min_rating_between_whole_ratings(tmp_path):
    rating = pa.array([3, 4], "int8")
    file = write(tmp_path / "x.parquet", user_id=[1, 1], item_id=[1, 2], rating=rating)
    assert histories(file, min_rating=3.5) == {1: [2]}


def test_distinct_items(tmp_path):
    write(tmp_path / "a.parquet", user_id=[1, 2, 3], history=pa.array([["b", "Z"], [], ["b", "a"]]))
    write(tmp_path / "b.parquet", user_id=[4], history=pa.array([["é"]]))
    shuffle(open_source(str(tmp_path)), tmp_path / "buckets", 3)
    assert distinct_items(tmp_path / "buckets").to_list() == ["Z", "a", "b", "é"]


def test_distinct_items_of_nothing(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=[1], item_id=[1], rating=[1])
    shuffle(open_source(str(file), with_rating=True), tmp_path / "buckets", 3, min_rating=2)
    items = distinct_items(tmp_path / "buckets")
    assert (items.dtype, len(items)) == (pl.Int64, 0)


def test_a_folder_in_use_is_not_added_to(tmp_path):
    source = open_source(str(write(tmp_path / "x.parquet", user_id=[1])))
    shuffle(source, tmp_path / "buckets", 1)
    with pytest.raises(FileExistsError, match="is not empty"):
        shuffle(source, tmp_path / "buckets", 1)


def test_damaged_pages(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=[1, 2, 3])
    content = bytearray(file.read_bytes())
    content[4:24] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(JobError) as error:
        shuffle(open_source(str(file)), tmp_path / "buckets", 1)
    start = f"{file} could not be shuffled into {tmp_path / 'buckets'} (parquet: "
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("). Check its files and the disk space.")


PEAK = """
import resource, sys, tempfile
from pathlib import Path
from pipeline.buckets import bucket_count, read_bucket, shuffle
from pipeline.interactions import open_source

source = open_source(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    n_buckets = bucket_count(source.n_rows)
    shuffle(source, Path(folder), n_buckets)
    print(sum(len(read_bucket(Path(folder), at).histories) for at in range(n_buckets)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["interactions", "histories"])
def test_memory_does_not_grow_with_the_input(tmp_path, form):
    row = pl.int_range(5_000_000, eager=True)
    rows = pl.DataFrame({"user_id": row.hash(seed=1) % 250_000, "item_id": row.hash(seed=2) % 20_000})
    if form == "histories":
        rows = rows.group_by("user_id").agg(history="item_id")
    peaks = []
    for n_files in (2, 12):
        for at in range(n_files):
            rows.with_columns(pl.col("user_id") + at * 250_000).write_parquet(tmp_path / f"{at}.parquet")
        command = [sys.executable, "-c", PEAK, str(tmp_path)]
        n_users, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert n_users == n_files * 250_000
        peaks.append(peak)
    assert peaks[1] < 1.6 * peaks[0], peaks
