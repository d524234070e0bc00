from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import InputError
from pipeline.held_out import read_held_out
from pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(pl.Series(["a", "b", "c", "d", "e"]), np.ones(5, dtype=np.int64))


def write(path: Path, rows: dict[str, list[object]]) -> str:
    pl.DataFrame(rows).write_parquet(path)
    return str(path)


def test_pairs_users_and_counts_what_is_left_out(tmp_path: Path) -> None:
    history = write(
        tmp_path / "history.parquet",
        {"user_id": [1, 1, 1, 2, 3, 4, 5], "item_id": ["b", "a", "?", "c", "?", "e", "d"]},
    )
    truth = write(
        tmp_path / "truth.parquet",
        {"user_id": [1, 1, 1, 1, 2, 3, 4, 9], "item_id": ["d", "c", "a", "??", "c", "e", "?", "a"]},
    )
    held_out, counts = read_held_out(history, truth, VOCABULARY)
    assert [held_out.histories[user].tolist() for user in range(len(held_out))] == [[0, 1], []]
    assert [held_out.targets[user].tolist() for user in range(len(held_out))] == [[2, 3], [4]]
    assert counts == {
        "users": 2,
        "users_without_history": 1,
        "users_without_target": 2,
        "targets_outside_catalogue": 2,
        "targets_in_history": 2,
    }


def test_histories_form_does_as_well(tmp_path: Path) -> None:
    history = write(tmp_path / "history.parquet", {"user_id": ["u", "v"], "history": [["a"], []]})
    truth = write(tmp_path / "truth.parquet", {"user_id": ["v", "u"], "history": [["b", "c"], ["c"]]})
    held_out, counts = read_held_out(history, truth, VOCABULARY)
    pairs = {(tuple(held_out.histories[user].tolist()), tuple(held_out.targets[user].tolist())) for user in range(2)}
    assert pairs == {((0,), (2,)), ((), (1, 2))}
    assert counts["users"] == 2


def test_nobody_left(tmp_path: Path) -> None:
    history = write(tmp_path / "history.parquet", {"user_id": [1], "item_id": ["a"]})
    truth = write(tmp_path / "truth.parquet", {"user_id": [2], "item_id": ["b"]})
    with pytest.raises(InputError) as error:
        read_held_out(history, truth, VOCABULARY)
    assert str(error.value) == (
        f"No user of {truth} can be evaluated: {{'users_without_history': 1, 'users_without_target': 0, "
        "'targets_outside_catalogue': 0, 'targets_in_history': 0}. "
        "Name files with the same users and the model's items."
    )


def test_user_ids_of_two_types(tmp_path: Path) -> None:
    history = write(tmp_path / "history.parquet", {"user_id": [1], "item_id": ["a"]})
    truth = write(tmp_path / "truth.parquet", {"user_id": ["1"], "item_id": ["b"]})
    with pytest.raises(InputError) as error:
        read_held_out(history, truth, VOCABULARY)
    assert str(error.value) == f"User ids are Int64 in {history}, but String in {truth}. Write both with one type."
