"""Other people's files become Parquet, value for value; what does not fit is refused by file, line and value."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.prepare
from pipeline.cli import main
from pipeline.config import DataConfig
from pipeline.dataset import load_dataset
from pipeline.errors import InputError
from pipeline.prepare import Form, prepare

GENRES = "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical"
GENRES += " Mystery Romance Sci-Fi Thriller War Western"
RATINGS = {
    "user_id": [1, 1, 22],
    "item_id": [10, 3, 10],
    "rating": [4.0, 3.5, 1.0],
    "timestamp": [978300760, 978300761, 978300762],
}
TYPES = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}


def rows(separator: str) -> str:
    return "".join(f"{separator.join(map(str, row))}\n" for row in zip(*RATINGS.values(), strict=True))


def movies_100k(title: str) -> str:
    lines = []
    for item, name, genres in ((10, title, ["Action", "War"]), (3, "Plain", [])):
        flags = ["1" if genre in genres else "0" for genre in GENRES.split()]
        lines.append("|".join([str(item), name, "01-Jan-1995", "", "http://example.org/?a,b", *flags]))
    return "\n".join(lines) + "\n"


def write_ml_100k(folder: Path) -> None:
    (folder / "u.data").write_text(rows("\t").replace("3.5", "3"))
    (folder / "u.item").write_bytes(movies_100k("Misérables, Les (1995)").encode("latin-1"))


def write_ml_1m(folder: Path) -> None:
    (folder / "ratings.dat").write_bytes(rows("::").replace("3.5", "3").encode())
    movies = "10::Misérables, Les (1995)::Action|War\n3::Plain::\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))


def write_ml_latest(folder: Path) -> None:
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows(",").replace("3.5", "3"))
    text = 'movieId,title,genres\r\n10,"Misérables, Les (1995)",Action|War\r\n3,Plain,\r\n'
    (folder / "movies.csv").write_bytes(text.encode())


@pytest.mark.parametrize("write", [write_ml_100k, write_ml_1m, write_ml_latest])
@pytest.mark.parametrize("place", ["folder", "parent", "zip"])
def test_movielens(tmp_path: Path, write: object, place: str) -> None:
    folder = tmp_path / "source" / "ml"
    folder.mkdir(parents=True)
    write(folder)  # type: ignore[operator]
    source = folder if place == "folder" else folder.parent
    if place == "zip":
        source = tmp_path / "ml.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, f"ml/{file.name}")
            archive.writestr("ml/README", "nothing")
    output = tmp_path / "made" / "here"
    assert prepare(source, "movielens", output) == {"items": 2, "interactions": 3}
    expected = pl.DataFrame(RATINGS | {"rating": [4.0, 3.0, 1.0]}, schema=TYPES)
    assert pl.read_parquet(output / "interactions.parquet").equals(expected)
    items = pl.read_parquet(output / "items.parquet")
    assert items.schema == {"item_id": pl.Int64, "title": pl.String, "genres": pl.String}
    assert items.rows() == [(10, "Misérables, Les (1995)", "Action|War"), (3, "Plain", None)]
    assert sorted(file.name for file in output.iterdir()) == ["interactions.parquet", "items.parquet"]


def test_training_reads_what_is_written(tmp_path: Path) -> None:
    write_ml_100k(tmp_path)
    prepare(tmp_path, "movielens", tmp_path)
    names = {"input": str(tmp_path / "interactions.parquet"), "items": str(tmp_path / "items.parquet")}
    config = DataConfig(**names, min_rating=3.0, min_history=1, validation=0, test=0)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    items = load_dataset(config, scratch).vocabulary.items
    assert items.rows() == [(0, 3, 1, "Plain", None), (1, 10, 1, "Misérables, Les (1995)", "Action|War")]


def test_the_zip_is_read_without_its_folders(tmp_path: Path) -> None:
    """A name such as ../../ratings.csv cannot leave the scratch folder."""
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("../../ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n")
    output = tmp_path / "a" / "b"
    assert prepare(tmp_path / "ml.zip", "movielens", output) == {"interactions": 1}
    assert [file.name for file in tmp_path.rglob("*.csv")] == []


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\t007\t4\t8.5e8\nv\t7\t2.5\t1\n"
ITEM = "item_id:token\tmovie_title:token_seq\tyear:float\n007\tDr No\t1962\n7\t\t\n007\tagain\t1\n"


def test_recbole(tmp_path: Path) -> None:
    """Tokens are strings, 007 is not 7; an item's first line counts, as for RecBole."""
    (tmp_path / "x.inter").write_text(INTER)
    (tmp_path / "x.item").write_text(ITEM)
    (tmp_path / "x.user").write_text("not read")
    assert prepare(tmp_path, "recbole", tmp_path / "out") == {"items": 2, "interactions": 2}
    interactions = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert interactions.rows() == [("u", "007", 4.0, 8.5e8), ("v", "7", 2.5, 1.0)]
    assert list(interactions.schema.values()) == [pl.String, pl.String, pl.Float64, pl.Float64]
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.columns == ["item_id", "title", "year"]
    assert items.rows() == [("007", "Dr No", 1962.0), ("7", None, None)]


def test_recbole_s_splits_stay_apart(tmp_path: Path) -> None:
    """What training reads is the training split alone."""
    for split, item in (("train", "a"), ("valid", "b"), ("test", "c")):
        (tmp_path / f"x.{split}.inter").write_text(f"item_id:token\tuser_id:token\n{item}\tu\n")
    assert prepare(tmp_path, "recbole", tmp_path / "out") == {"interactions": 1, "valid": 1, "test": 1}
    for name, item in (("interactions", "a"), ("valid", "b"), ("test", "c")):
        assert pl.read_parquet(tmp_path / "out" / f"{name}.parquet").rows() == [("u", item)]


def test_recbole_fields_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("session:token\tsong:token\tweight:float\nu\ta\t2\n")
    prepare(tmp_path / "x.inter", "recbole", tmp_path, ["session", "song"])
    assert pl.read_parquet(tmp_path / "interactions.parquet").to_dicts() == [{"user_id": "u", "item_id": "a"}]


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        (["1", "-20", "0"], pl.Int64),
        (["1", "07"], pl.String),
        (["1", "+7"], pl.String),
        (["1", "7.0"], pl.String),
        (["1", "a"], pl.String),
        (["1", "-0"], pl.String),
        (["999999999999999999"], pl.Int64),
        (["9999999999999999999"], pl.String),
    ],
)
def test_csv_ids_are_integers_where_nothing_is_lost(tmp_path: Path, ids: list[str], dtype: pl.DataType) -> None:
    (tmp_path / "x.csv").write_text("item_id,user_id\n" + "".join(f"{one},u\n" for one in ids))
    prepare(tmp_path / "x.csv", "csv", tmp_path)
    found = pl.read_parquet(tmp_path / "interactions.parquet")
    assert found.columns == ["user_id", "item_id"]
    assert found["item_id"].dtype == dtype
    assert found["item_id"].cast(pl.String).to_list() == ids


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
            st.integers(-(10**17), 10**17),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
    )
)
def test_csv_keeps_every_value(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, int, float]]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    frame = pl.DataFrame(table, schema={"who": pl.String, "what": pl.Int64, "stars": pl.Float64}, orient="row")
    frame.write_csv(folder / "x.csv", quote_style="non_numeric")
    prepare(folder / "x.csv", "csv", folder, ["who", "what", "stars"])
    found = pl.read_parquet(folder / "interactions.parquet")
    assert found["user_id"].cast(pl.String).to_list() == frame["who"].to_list()
    assert found["item_id"].to_list() == frame["what"].to_list()
    assert found["rating"].to_list() == frame["stars"].to_list()


def refusal(source: Path, form: Form, *columns: str) -> str:
    with pytest.raises(InputError) as error:
        prepare(source, form, source.parent / "out", columns)
    assert not list((source.parent / "out").glob("*.parquet"))
    return str(error.value).replace(str(source.parent), "~")


@pytest.mark.parametrize(
    ("form", "name", "text", "message"),
    [
        (
            "csv",
            "x.csv",
            "user_id,item_id,rating\n1,2,3\n\n1,3,good\n1,4,bad\n",
            "~/x.csv, line 4: rating is 'good', expected a number. Correct the line, or remove it.",
        ),
        (
            "csv",
            "x.csv",
            "user_id,item_id\n1,a\n1,\n",
            "~/x.csv, line 3: item_id is missing, expected an id. Correct the line, or remove it.",
        ),
        (
            "csv",
            "x.csv",
            "user_id,item_id,timestamp\n1,2,2024-05-01\n",
            "~/x.csv, line 2: timestamp is '2024-05-01', expected a whole number. Correct the line, or remove it.",
        ),
        (
            "csv",
            "x.csv",
            "user_id,item_id\n1,2\n1,2,3\n",
            "~/x.csv, line 3: 3 fields, the header has 2. Correct the line, or put values with commas in quotes.",
        ),
        (
            "csv",
            "x.csv",
            "uid,item_id\n1,2\n",
            "~/x.csv has no column user_id, only uid, item_id. Say with --columns what users, items, ratings and "
            "timestamps are called, such as --columns uid,iid,stars.",
        ),
        ("csv", "x.csv", "", "~/x.csv is empty. Its first line names the columns."),
        (
            "csv",
            "x.csv",
            "user_id,item_id\n",
            "~/x.csv holds no rows for interactions.parquet. Check the job that wrote it.",
        ),
        (
            "recbole",
            "x.inter",
            INTER + "w\t8\tnan\t1\n",
            "~/x.inter, line 4: rating is 'nan', expected a number. Correct the line, or remove it.",
        ),
        (
            "recbole",
            "x.inter",
            INTER + "w\t8\t1\n",
            "~/x.inter, line 4: 3 fields between '\\t', expected 4 (user_id, item_id, rating, timestamp). "
            "Correct the line, or remove it.",
        ),
        (
            "recbole",
            "x.inter",
            INTER + "w\t8\t1\t1\t1\n",
            "~/x.inter, line 4: more than 4 fields between '\\t', expected 4 (user_id, item_id, rating, timestamp). "
            "Correct the line, or remove it.",
        ),
        (
            "recbole",
            "x.inter",
            "user_id:token\titem_id\n1\t2\n",
            "~/x.inter, line 1: 'item_id' in the header, expected NAME:TYPE with a type of token, token_seq, float, "
            "float_seq, between '\\t'. Correct the header.",
        ),
        (
            "movielens",
            "x.zip",
            "no zip",
            "~/x.zip cannot be read as a zip archive (File is not a zip file). Download it again.",
        ),
    ],
)
def test_faults(tmp_path: Path, form: Form, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    assert refusal(tmp_path / name, form) == message


def test_faults_of_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    assert refusal(source, "csv") == "~/source does not exist. Name the file or folder to prepare."
    source.mkdir()
    assert refusal(source, "csv") == "~/source is a folder. Name one CSV file."
    assert refusal(source, "recbole") == (
        "~/source holds no .inter file. Name a RecBole data set: its folder, or its .inter file."
    )
    assert refusal(source, "movielens") == (
        "~/source holds no ratings: expected one of u.data, ratings.dat, ratings.csv. "
        "Name the folder or zip of a MovieLens."
    )
    (source / "x.inter").write_text(INTER)
    (source / "x.train.inter").write_text(INTER)
    assert refusal(source, "recbole") == (
        "~/source holds x.inter, x.train.inter: expected NAME.inter, or NAME.train.inter beside other splits of it. "
        "Name the file to read, or move the others away."
    )
    write_ml_100k(source)
    (source / "u.data").write_text("1\t2\t3\t4\n1\tx\t3\t4\n")
    assert refusal(source, "movielens") == (
        "~/source/u.data, line 2: item_id is 'x', expected a whole number. Correct the line, or remove it."
    )


def test_nothing_is_written_when_a_later_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "x.item").write_text(ITEM)
    (tmp_path / "x.train.inter").write_text(INTER)
    (tmp_path / "x.valid.inter").write_text(INTER.splitlines()[0] + "\n")
    with pytest.raises(InputError) as error:
        prepare(tmp_path, "recbole", tmp_path)
    assert str(error.value) == f"{tmp_path} holds no rows for valid.parquet. Check the job that wrote it."
    assert not list(tmp_path.glob("*.parquet"))


def test_faults_of_columns(tmp_path: Path) -> None:
    write_ml_100k(tmp_path)
    assert refusal(tmp_path, "movielens", "a", "b") == (
        "--columns does not go with --from movielens: its columns are known. Leave it out."
    )
    (tmp_path / "x.csv").write_text("user_id,item_id\n1,2\n")
    assert refusal(tmp_path / "x.csv", "csv", "user_id", "user_id") == (
        "--columns user_id,user_id names 2 columns: expected two to four different ones, of users, items, ratings and "
        "timestamps, in this order."
    )


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_bytes(INTER.encode() + b"caf\xe9\t8\t1\t1\n")
    assert refusal(tmp_path / "x.inter", "recbole").startswith("~/x.inter is not UTF-8 text (")
    (tmp_path / "x.csv").write_bytes(b"user_id,item_id\ncaf\xe9,8\n")
    assert refusal(tmp_path / "x.csv", "csv").startswith("~/x.csv cannot be read as CSV (invalid utf-8")


def test_what_was_there_stays_until_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interactions.parquet").write_bytes(b"before")
    (tmp_path / "x.csv").write_text("user_id,item_id\n1,2\n")

    def full(_: pl.LazyFrame, file: io.BytesIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path / "x.csv", "csv", tmp_path)
    assert (tmp_path / "interactions.parquet").read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["interactions.parquet", "x.csv"]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("uid\tiid\tlike\n1\ta\t5\n")
    arguments = ["prepare", str(tmp_path / "x.tsv"), "--from", "csv", "--columns", "uid,iid,like"]
    arguments += ["--output", str(tmp_path), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"interactions.parquet": 1}
    assert pl.read_parquet(tmp_path / "interactions.parquet").rows() == [(1, "a", 5.0)]
    assert pipeline.prepare.COLUMNS == ("user_id", "item_id", "rating", "timestamp")
