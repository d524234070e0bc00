from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.interactions import Source, open_source


def write(path: Path, *, statistics: bool = True, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, write_statistics=statistics)
    return path


def interactions(path: Path, n: int = 3) -> Path:
    return write(path, user_id=pa.array(range(n)), item_id=pa.array(range(n)))


def refusal(location: Path, *, with_rating: bool = False) -> str:
    with pytest.raises(InputError) as error:
        open_source(str(location), with_rating=with_rating)
    return str(error.value)


STRINGS = pa.array(["a", "b", "b"])
LISTS = [["a", "b"], ["b"], []]


def test_interactions(tmp_path):
    file = write(tmp_path / "x.parquet", item_id=STRINGS, note=[1.5] * 3, user_id=[7, 7, 8])
    assert open_source(str(file)) == Source(str(file), (file,), "interactions", pl.Int64(), pl.String(), 3)


def test_histories_count_their_elements(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=[1, 2, 3, 4], history=pa.array([[1, 2], [3], [], None]))
    assert open_source(str(file)) == Source(str(file), (file,), "histories", pl.Int64(), pl.Int64(), 5)


def test_bare_users(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=STRINGS, age=[1, 2, None])
    assert open_source(str(file)) == Source(str(file), (file,), "users", pl.String(), None, 3)


@pytest.mark.parametrize("ids", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integer_ids_keep_their_type(tmp_path, ids):
    values = pa.array([1, 2, 3], ids)
    source = open_source(str(write(tmp_path / "x.parquet", user_id=values, item_id=values)))
    expected = pl.Series([0]).cast(getattr(pl, ids.replace("i", "I").replace("uI", "UI"))).dtype
    assert (source.user_type, source.item_type) == (expected, expected)


@pytest.mark.parametrize(
    "ids", [STRINGS, STRINGS.cast(pa.large_string()), STRINGS.cast(pa.string_view()), STRINGS.dictionary_encode()]
)
def test_every_encoding_of_strings_is_string(tmp_path, ids):
    source = open_source(str(write(tmp_path / "x.parquet", user_id=ids, item_id=ids)))
    assert (source.user_type, source.item_type) == (pl.String(), pl.String())


@pytest.mark.parametrize(
    "history",
    [
        pa.array(LISTS),
        pa.array(LISTS, pa.large_list(pa.large_string())),
        pa.array([["a", "b"], None, ["b", "a"]], pa.list_(pa.string(), 2)),
        pa.ListArray.from_arrays([0, 2, 3, 3], STRINGS.dictionary_encode()),
    ],
)
def test_every_encoding_of_lists(tmp_path, history):
    source = open_source(str(write(tmp_path / "x.parquet", user_id=[1, 2, 3], history=history)))
    assert (source.form, source.item_type) == ("histories", pl.String())


def test_a_directory_at_any_depth_without_hidden_names(tmp_path):
    folder = tmp_path / "_out.parquet"  # hidden names count below the directory only
    expected = (
        interactions(folder / "a.parquet"),
        interactions(folder / "day=1" / "hour=2" / "part-0.snappy.parquet"),
        interactions(folder / "day=2" / "part-0.parquet", n=5),
    )
    for hidden in ("_temporary/0/a.parquet", ".staging/a.parquet", "_b.parquet", "day=1/.b.parquet"):
        interactions(folder / hidden)
    (folder / "_SUCCESS").touch()
    (folder / "notes.txt").write_text("not Parquet")
    source = open_source(str(folder))
    assert (source.files, source.n_rows) == (expected, 11)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("day=*/*.parquet", ["day=1/a.parquet", "day=2/b.parquet"]),
        ("day=*", ["day=1/a.parquet", "day=2/b.parquet"]),
        ("day=[2-9]", ["day=2/b.parquet"]),
        ("**/?.parquet", ["day=1/a.parquet", "day=2/b.parquet", "top.d/c.parquet"]),
        ("**", ["day=1/a.parquet", "day=2/b.parquet", "top.d/c.parquet"]),
        ("_staging/*", ["_staging/s.parquet"]),
    ],
)
def test_a_glob_matches_files_and_directories(tmp_path, monkeypatch, pattern, expected):
    for name in ("day=1/a.parquet", "day=2/b.parquet", "top.d/c.parquet", "_staging/s.parquet"):
        interactions(tmp_path / name)
    assert open_source(f"{tmp_path}/{pattern}").files == tuple(tmp_path / name for name in expected)
    monkeypatch.chdir(tmp_path)
    assert open_source(f"./{pattern}").files == tuple(map(Path, expected))


def test_a_name_with_glob_characters_is_a_name_first(tmp_path):
    file = interactions(tmp_path / "data[1].parquet")
    interactions(tmp_path / "data1.parquet", n=9)
    assert open_source(str(file)) == Source(str(file), (file,), "interactions", pl.Int64(), pl.Int64(), 3)


def test_files_without_rows_are_left_out_whatever_their_types(tmp_path):
    file = interactions(tmp_path / "b.parquet")
    write(tmp_path / "a.parquet", user_id=pa.array([], pa.null()))
    assert open_source(str(tmp_path)).files == (file,)


def test_nothing_there(tmp_path):
    advice = "Name a Parquet file, a directory of them, or a glob."
    missing = tmp_path / "x.parquet"
    assert refusal(missing) == f"{missing} does not exist. Name a local Parquet file, a directory of them, or a glob."
    (tmp_path / "data.csv").touch()
    assert refusal(tmp_path) == f"{tmp_path} holds no Parquet files. {advice}"
    assert refusal(tmp_path / "*.parquet") == f"{tmp_path}/*.parquet holds no Parquet files. {advice}"


def test_not_parquet(tmp_path):
    file = interactions(tmp_path / "x.parquet")
    whole = file.read_bytes()
    for content, reason in (
        (b"", "Parquet file size is 0 bytes"),
        (b"user", "Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)"),
        (
            whole[:-20],
            "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
        ),
    ):
        file.write_bytes(content)
        assert refusal(file) == f"{file} cannot be read as Parquet ({reason}). Write it again, or leave it out."


def test_a_damaged_footer(tmp_path):
    file = interactions(tmp_path / "x.parquet")
    content = bytearray(file.read_bytes())
    content[-60:-20] = b"\xff" * 40
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file} cannot be read as Parquet (Couldn't deserialize thrift: ")


def test_no_rows(tmp_path):
    interactions(tmp_path / "x.parquet", n=0)
    assert refusal(tmp_path) == f"{tmp_path} holds no rows. Check the job that wrote it."


def test_columns(tmp_path):
    file = write(tmp_path / "x.parquet", uid=[1], item_id=[1])
    assert refusal(file) == f"{file} has no column user_id, only uid, item_id. Rename the column of users."
    write(file, user_id=[1], item_id=[1], history=[[1]])
    assert refusal(file) == (
        f"{file} has both item_id and history. Keep one: a row is an interaction or a whole history."
    )


def test_a_hive_column_is_no_column(tmp_path):
    file = write(tmp_path / "user_id=5" / "x.parquet", item_id=[1])
    assert refusal(tmp_path) == f"{file} has no column user_id, only item_id. Rename the column of users."


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (
            {"user_id": [1.0], "item_id": [1]},
            "user_id is Float64, expected integers or strings. Cast it and write it again.",
        ),
        (
            {"user_id": [1], "item_id": [True]},
            "item_id is Boolean, expected integers or strings. Cast it and write it again.",
        ),
        ({"user_id": [b"a"]}, "user_id is Binary, expected integers or strings. Cast it and write it again."),
        (
            {"user_id": pa.array([None], pa.null())},
            "user_id is Null, expected integers or strings. Cast it and write it again.",
        ),
        (
            {"user_id": [1], "item_id": [[1]]},
            "item_id is List(Int64), expected integers or strings. Call lists history.",
        ),
        ({"user_id": [1], "history": [1]}, "history is Int64, expected a list of item ids. Call single ids item_id."),
        (
            {"user_id": [1], "history": [[1.5]]},
            "history, inside its lists, is Float64, expected integers or strings. Cast it and write it again.",
        ),
    ],
)
def test_types(tmp_path, columns, fault):
    file = write(tmp_path / "x.parquet", **columns)
    assert refusal(file) == f"{file}: column {fault}"


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("columns", "column", "count"),
    [
        ({"user_id": [1, None, None], "item_id": [1, 2, 3]}, "user_id", "2"),
        ({"user_id": [1, 2, 3], "item_id": ["a", None, "b"]}, "item_id", "1"),
        ({"user_id": [None] * 1234 + ["a"]}, "user_id", "1,234"),
        ({"user_id": [1, 2, 3], "history": [[1, None], [], [None]]}, "history", "2"),
        ({"user_id": [1, 2], "history": pa.array([[1, None], None], pa.list_(pa.int64(), 2))}, "history", "1"),
    ],
)
def test_nulls(tmp_path, statistics, columns, column, count):
    interactions(tmp_path / "a.parquet")
    file = write(tmp_path / "b" / "x.parquet", statistics=statistics, **columns)
    assert refusal(file) == f"{file}: column {column} is null (count: {count}). Fill those in, or remove their rows."


@pytest.mark.parametrize("statistics", [True, False])
def test_no_nulls(tmp_path, statistics):
    file = write(tmp_path / "x.parquet", statistics=statistics, user_id=[1, 2, 3], history=[[1], [], None])
    assert open_source(str(file)).n_rows == 3


def test_statistics_spare_reading_the_column(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=[1, 2, 3], item_id=[1, 2, 3])
    content = bytearray(file.read_bytes())
    content[4:24] = b"\xff" * 20
    file.write_bytes(content)
    assert open_source(str(file)).n_rows == 3


def test_damaged_pages(tmp_path):
    file = write(tmp_path / "x.parquet", statistics=False, user_id=[1, 2, 3], item_id=[1, 2, 3])
    content = bytearray(file.read_bytes())
    content[4:24] = b"\xff" * 20
    file.write_bytes(content)
    message = refusal(file)
    assert message.startswith(f"{file} cannot be read as Parquet (parquet: ")
    assert message.endswith("). Write it again, or leave it out.")


def test_rating(tmp_path):
    file = write(tmp_path / "x.parquet", user_id=[1, 2], item_id=[1, 2], rating=[1, 5])
    assert open_source(str(file), with_rating=True) == open_source(str(file))


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"item_id": [1, 2, 3]}, " has no column rating beside item_id. Add it, or leave min_rating out."),
        (
            {"history": [[1], [2], [3]], "rating": [1, 2, 3]},
            " has no column rating beside item_id. Add it, or leave min_rating out.",
        ),
        (
            {"item_id": [1, 2, 3], "rating": ["good", "bad", "bad"]},
            ": column rating is String, expected numbers. Cast it and write it again.",
        ),
        (
            {"item_id": [1, 2, 3], "rating": [True, False, True]},
            ": column rating is Boolean, expected numbers. Cast it and write it again.",
        ),
        (
            {"item_id": [1, 2, 3], "rating": [1.0, None, float("nan")]},
            ": column rating is null or NaN (count: 2). Fill those in, or remove their rows.",
        ),
        (
            {"item_id": [1, 2, 3], "rating": [1, None, 2]},
            ": column rating is null or NaN (count: 1). Fill those in, or remove their rows.",
        ),
    ],
)
def test_rating_refused(tmp_path, columns, fault):
    file = write(tmp_path / "x.parquet", user_id=[1, 2, 3], **columns)
    assert refusal(file, with_rating=True) == f"{file}{fault}"
    assert open_source(str(file)).n_rows == 3


def test_files_that_differ(tmp_path):
    first = write(tmp_path / "a.parquet", user_id=[1], item_id=[1])
    second = write(tmp_path / "b.parquet", user_id=pa.array([1], pa.int32()), item_id=[1])
    advice = "Write all files with one type."
    assert refusal(tmp_path) == f"user ids are Int32 in {second}, but Int64 in {first}. {advice}"
    write(second, user_id=[1], item_id=["a"])
    assert refusal(tmp_path) == f"item ids are String in {second}, but Int64 in {first}. {advice}"
    write(second, user_id=[1], history=[[1]])
    assert (
        refusal(tmp_path)
        == f"{second} holds histories, but {first} holds interactions. Keep them in separate directories."
    )
    write(second, user_id=[1])
    assert (
        refusal(tmp_path) == f"{second} holds users, but {first} holds interactions. Keep them in separate directories."
    )


def test_files_may_differ_in_encoding_and_other_columns(tmp_path):
    write(tmp_path / "a.parquet", user_id=STRINGS, item_id=STRINGS, day=[1, 2, 3])
    write(
        tmp_path / "b.parquet",
        item_id=STRINGS.cast(pa.large_string()),
        user_id=STRINGS.dictionary_encode(),
        day=STRINGS,
    )
    assert open_source(str(tmp_path)).n_rows == 6
