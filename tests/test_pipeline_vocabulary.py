from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary


def vocabulary(ids=(10, 20, 30), counts=(5, 7, 5), dtype=pl.Int64) -> Vocabulary:
    return Vocabulary.of(pl.Series("any", ids, dtype=dtype), np.asarray(counts, dtype=np.int64))


def text() -> Vocabulary:
    return vocabulary(["a", "b", "ü"], dtype=pl.String)


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    return str(error.value)


def test_numbers():
    found = vocabulary().numbers(pl.Series([30, 10, 99, None, 30]))
    assert (found.dtype, found.to_list()) == (pl.Int32, [2, 0, None, None, 2])
    assert text().numbers(pl.Series(["ü", "", "a"])).to_list() == [2, None, 0]


def test_numbers_follow_the_order_given():
    assert vocabulary([30, 10, 20]).numbers(pl.Series([10, 20, 30])).to_list() == [1, 2, 0]


def test_any_integer_type_is_looked_up():
    narrow = vocabulary([10, 20, 30], dtype=pl.UInt8)
    assert narrow.numbers(pl.Series([20, -1, 2**40, 276])).to_list() == [1, None, None, None]  # 276 % 256 is 20
    assert vocabulary().numbers(pl.Series([2**64 - 1, 30], dtype=pl.UInt64)).to_list() == [None, 2]


def test_encoded_strings_and_no_ids_at_all_are_looked_up():
    assert text().numbers(pl.Series(["b", "x"], dtype=pl.Categorical)).to_list() == [1, None]
    assert vocabulary().numbers(pl.Series([None], dtype=pl.Null)).to_list() == [None]
    assert vocabulary().numbers(pl.Series([], dtype=pl.Null)).to_list() == []


def test_numbers_of_another_kind_of_id():
    advice = "Cast them."
    assert refusal(vocabulary().numbers, pl.Series(["10"])) == (
        f"Item ids are String, but the model was trained with Int64. {advice}"
    )
    assert (
        refusal(text().numbers, pl.Series([10]))
        == f"Item ids are Int64, but the model was trained with String. {advice}"
    )
    assert refusal(vocabulary().numbers, pl.Series([1.0])) == (
        f"Item ids are Float64, but the model was trained with Int64. {advice}"
    )


def test_ids():
    assert text().ids(np.array([2, 0, 2])).to_list() == ["ü", "a", "ü"]
    assert vocabulary().ids(np.array([], dtype=np.int64)).dtype == pl.Int64
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            vocabulary().ids(np.array([0, outside]))


def test_popular_breaks_ties_by_number():
    assert vocabulary([1, 2, 3, 4], [5, 7, 5, 7]).popular().tolist() == [1, 3, 0, 2]
    assert vocabulary(range(999), [5, 7, 5] * 333).popular().tolist() == [*range(1, 999, 3)] + [
        number for number in range(999) if number % 3 != 1
    ]


@pytest.mark.parametrize("made", [vocabulary(), text(), vocabulary([], []), vocabulary([300, 1, 7], dtype=pl.UInt32)])
def test_round_trip(tmp_path, made):
    file = tmp_path / "items.parquet"
    made.write(file)
    read = Vocabulary.read(file)
    assert read.items.equals(made.items)
    assert read.items.schema == made.items.schema
    assert read.item_type == made.item_type
    assert len(read) == len(made)


def test_the_file_says_what_it_promises(tmp_path):
    text().write(tmp_path / "items.parquet")
    assert pl.read_parquet_schema(tmp_path / "items.parquet") == {
        "item_number": pl.Int32,
        "item_id": pl.String,
        "n_interactions": pl.Int64,
    }


def test_same_content_same_bytes(tmp_path):
    """More items than a row group; in two pieces, Parquet would be cut elsewhere."""
    ids = pl.int_range(300_000, eager=True)
    whole, again = (Vocabulary.of(ids, np.zeros(300_000, dtype=np.int64)) for _ in range(2))
    pieces = Vocabulary(pl.concat([whole.items[:7], whole.items[7:]], rechunk=False))
    assert pieces.items.n_chunks() == 2
    for name, written in (("a", whole), ("b", pieces), ("c", again)):
        written.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def broken(file: Path, **columns: object) -> str:
    vocabulary().items.with_columns(**columns).write_parquet(file)
    return refusal(Vocabulary.read, file)


def test_a_broken_vocabulary_is_not_read(tmp_path):
    file = tmp_path / "items.parquet"
    order = f"{file}: column item_number is not 0 to 2 in order. Export the bundle again."
    number = pl.Series([0, 2, 1], dtype=pl.Int32)
    assert broken(file, item_number=number) == order
    assert broken(file, item_number=number + 1) == order
    assert broken(file, item_number=pl.Series([0, 1, None], dtype=pl.Int32)) == order
    assert (
        broken(file, item_id=pl.Series([1, None, 2]))
        == f"{file}: column item_id is null (count: 1). Remove those rows."
    )
    assert broken(file, item_id=pl.Series([4, 4, 4])) == (
        f"{file} repeats item_id in 2 rows, 4 for one. Keep one row per item."
    )
    assert broken(file, n_interactions=pl.Series([1, None, 2])) == (
        f"{file}: column n_interactions has nulls. Export the bundle again."
    )
    assert broken(file, item_id=pl.Series([1.0, 2.0, 3.0])) == (
        f"{file}: columns item_number, item_id, n_interactions are Int32, Float64, Int64, expected Int32, integers or"
        " String, Int64. Export the bundle again."
    )
    vocabulary().items.drop("n_interactions").write_parquet(file)
    assert refusal(Vocabulary.read, file) == f"{file} has no column n_interactions, only item_number, item_id. Add it."


def test_a_file_that_is_no_vocabulary(tmp_path):
    file = tmp_path / "items.parquet"
    assert refusal(Vocabulary.read, file) == f"{file} does not exist. Name a Parquet file with one row per item."
    for content in (b"", b"item_number,item_id\n0,1\n"):
        file.write_bytes(content)
        message = refusal(Vocabulary.read, file)
        assert message.startswith(f"{file} cannot be read as Parquet (")
        assert message.endswith("). Write it again.")


def test_with_items_adds_columns_by_id(tmp_path):
    file = tmp_path / "about.parquet"
    about = pl.DataFrame({"title": ["X", "B", "A"], "item_id": ["x", "ü", "a"], "n_interactions": [9, 9, 9]})
    about.write_parquet(file)
    before = text()
    after = before.with_items(file)
    assert after.items.rows() == [(0, "a", 5, "A"), (1, "b", 7, None), (2, "ü", 5, "B")]
    assert after.items.columns == ["item_number", "item_id", "n_interactions", "title"]
    assert before.items.columns == ["item_number", "item_id", "n_interactions"]


def test_with_items_reads_other_integers_and_encodings(tmp_path):
    file = tmp_path / "about.parquet"
    pl.DataFrame({"item_id": pl.Series([300, 20], dtype=pl.Int16), "title": ["X", "B"]}).write_parquet(file)
    assert vocabulary(dtype=pl.UInt8).with_items(file).items["title"].to_list() == [None, "B", None]
    pl.DataFrame({"item_id": pl.Series(["b"], dtype=pl.Categorical), "genres": [["g", "h"]]}).write_parquet(file)
    assert text().with_items(file).items["genres"].to_list() == [None, ["g", "h"], None]


def test_extra_columns_travel_along(tmp_path):
    pl.DataFrame({"item_id": ["b"], "title": ["B"]}).write_parquet(tmp_path / "about.parquet")
    text().with_items(tmp_path / "about.parquet").write(tmp_path / "items.parquet")
    assert Vocabulary.read(tmp_path / "items.parquet").items["title"].to_list() == [None, "B", None]


def test_with_items_refuses(tmp_path):
    file = tmp_path / "about.parquet"

    def with_items(**columns: object) -> str:
        pl.DataFrame(columns).write_parquet(file)
        return refusal(text().with_items, file)

    assert refusal(text().with_items, file) == f"{file} does not exist. Name a Parquet file with one row per item."
    assert with_items(id=["a"], title=["A"]) == f"{file} has no column item_id, only id, title. Add it."
    assert with_items(item_id=[1]) == (f"{file}: column item_id is Int64, but the interactions have String. Cast it.")
    assert with_items(item_id=["a", None, None]) == f"{file}: column item_id is null (count: 2). Remove those rows."
    assert with_items(item_id=["b", "a", "b", "a", "c"]) == (
        f"{file} repeats item_id in 2 rows, 'a' for one. Keep one row per item."
    )
