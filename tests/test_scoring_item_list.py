from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.errors import InputError
from pipeline.manifest import digest
from pipeline.vocabulary import Vocabulary
from scoring.item_list import read_item_list

INTEGERS = Vocabulary.of(pl.Series([30, 10, 20], dtype=pl.Int64), np.ones(3, dtype=np.int64))
STRINGS = Vocabulary.of(pl.Series(["c", "a", "b b"]), np.ones(3, dtype=np.int64))


def write(file: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        pl.DataFrame(content).write_parquet(file)
    return file


@pytest.mark.parametrize(
    ("vocabulary", "name", "content"),
    [
        (INTEGERS, "a.parquet", {"item_id": [20, 30, 20, 77, 78], "note": list("abcde")}),
        (INTEGERS, "a.csv", b"note,item_id\nx,20\ny,30\nz,20\n,77\n,seven\n"),
        (INTEGERS, "a.txt", b"20\n 30 \n\n20\n77\nseven"),
        (INTEGERS, "a.txt", "\ufeff20\r\n30\r\n77\r\n78\r\n".encode()),
        (STRINGS, "a.parquet", {"item_id": ["b b", "c", "c", "x", "y"]}),
        (STRINGS, "a.csv", b'item_id\n"b b"\nc\nx\ny\n'),
        (STRINGS, "a.txt", b"b b\nc\nx\ny\n"),
    ],
)
def test_the_same_ids_in_every_kind_of_file(tmp_path: Path, vocabulary: Vocabulary, name: str, content: Any) -> None:
    file = write(tmp_path / name, content)
    listed_I, items = read_item_list(vocabulary, file, "--allow")
    assert listed_I.tolist() == [True, False, True]
    assert items.model_dump() == {
        "location": str(file),
        "file": digest(file).model_dump(),
        "ids": 4,
        "unknown": 2,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "--deny FILE is not a file. Name a .parquet, .csv or .txt file of item ids."),
        ("a.json", b"[20]", "--deny FILE is neither .parquet, .csv nor .txt. Rename it to say what it is."),
        ("a.csv", b"sku\n20\n", "--deny FILE has no column item_id, only sku. Rename it."),
        ("a.csv", b"item_id,n\n20,1\n,2\n", "--deny FILE: column item_id is null (count: 1). Remove those rows."),
        ("a.parquet", {"item_id": [1, None]}, "--deny FILE: column item_id is null (count: 1). Remove those rows."),
        (
            "a.parquet",
            {"item_id": ["20"]},
            "--deny FILE: Item ids are String, but the model was trained with Int64. Cast them.",
        ),
        (
            "a.txt",
            b"77\nseven\n",
            "--deny FILE names no item of the bundle (ids: 2). Write its ids as training had them, 30 for one.",
        ),
        (
            "a.txt",
            b"",
            "--deny FILE names no item of the bundle (ids: 0). Write its ids as training had them, 30 for one.",
        ),
    ],
)
def test_a_list_that_cannot_be_meant(tmp_path: Path, name: str, content: Any, message: str) -> None:
    file = tmp_path / name
    if content is not None:
        write(file, content)
    with pytest.raises(InputError) as e:
        read_item_list(INTEGERS, file, "--deny")
    assert str(e.value) == message.replace("FILE", str(file))


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"PAR1"), ("a.csv", b""), ("a.txt", b"\xff\xfe\x00")])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(InputError) as e:
        read_item_list(INTEGERS, file, "--allow")
    assert str(e.value).startswith(f"--allow {file} cannot be read (")
    assert str(e.value).endswith("). Write it again.")
