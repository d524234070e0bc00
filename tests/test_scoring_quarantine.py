"""What cannot be read is set aside and counted, or refused by name; everything else is scored as if it were alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from known_scorer import (
    KnownScorer,
    check,
    contents,
    drawn_users,
    interactions,
    make_bundle,
    write_bare,
    write_histories,
)

from export.bundle import Bundle
from pipeline.errors import InputError
from scoring.job import score
from scoring.run import Options, RunManifest, RunSummary

USERS = drawn_users(60)
ROWS = interactions(USERS)


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def run(bundle: Bundle, location: Path | str, output: Path, max_errors: int, **sources: str) -> RunSummary:
    return score(bundle, KnownScorer(), str(location), output, Options(k=5), max_errors=max_errors, **sources)


def refusal(bundle: Bundle, location: Path | str, output: Path, max_errors: int, **sources: str) -> str:
    before = contents(output)
    with pytest.raises(InputError) as e:
        run(bundle, location, output, max_errors, **sources)
    assert contents(output) == before
    return str(e.value)


def quarantine(run: Path) -> list[tuple[Any, ...]]:
    table = pl.read_parquet(run / "quarantine")
    assert table.schema == {
        "file": pl.String,
        "row_group": pl.Int32,
        "row": pl.Int64,
        "reason": pl.String,
        "content": pl.String,
    }
    return table.rows()


def only(*users: int) -> pl.DataFrame:
    return ROWS.filter(pl.col("user_id").is_in(users))


def good_half(folder: Path) -> dict[Any, Any]:
    """A folder with a good file; the users in it."""
    folder.mkdir()
    users = dict(list(USERS.items())[:40])
    interactions(users).write_parquet(folder / "a-good.parquet")
    return {user: history for user, history in users.items() if history}


def damage_a_page(file: Path, group: int) -> None:
    """Overwrite the pages of a row group; the footer stays as it is."""
    metadata = pq.read_metadata(file).row_group(group)
    start = min(
        metadata.column(at).dictionary_page_offset or metadata.column(at).data_page_offset
        for at in range(metadata.num_columns)
    )
    data = bytearray(file.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(data)


def empty_file(file: Path) -> None:
    file.write_bytes(b"")


def truncated_file(file: Path) -> None:
    ROWS.write_parquet(file)
    file.write_bytes(file.read_bytes()[:-100])


def other_columns(file: Path) -> None:
    pl.DataFrame({"customer": [1], "item_id": [2]}).write_parquet(file)


def dates_as_ids(file: Path) -> None:
    ROWS.with_columns(pl.col("user_id").cast(pl.Date)).write_parquet(file)


def other_form(file: Path) -> None:
    write_histories(file, {1: [1_000]})


FILES = [
    (empty_file, "cannot be read as Parquet (Parquet file size is 0 bytes). Write it again, or leave it out."),
    (truncated_file, "cannot be read as Parquet (Parquet magic bytes not found in footer."),
    (other_columns, "has no column user_id, only customer, item_id. Rename the column of users."),
    (dates_as_ids, "column user_id is Date, expected integers or strings. Cast it and write it again."),
    (other_form, "holds histories, but most rows are interactions"),
]


@pytest.mark.parametrize(("spoil", "reason"), FILES)
def test_a_file_is_set_aside(tmp_path: Path, bundle: Bundle, spoil: Callable[[Path], None], reason: str) -> None:
    users = good_half(tmp_path / "in")
    bad = tmp_path / "in" / "b-bad.parquet"
    spoil(bad)
    assert "b-bad.parquet" in refusal(bundle, tmp_path / "in", tmp_path / "run", 0)
    summary = run(bundle, tmp_path / "in", tmp_path / "run", 1)
    check(tmp_path / "run", bundle, users, Options(k=5), summary)
    assert summary.quarantined == 1
    ((file, row_group, row, found, content),) = quarantine(tmp_path / "run")
    assert (file, row_group, row, content) == (str(bad), None, None, None)
    assert found.startswith(reason)
    manifest = RunManifest.model_validate_json((tmp_path / "run/manifest.json").read_bytes())
    assert list(manifest.input.files) == ["a-good.parquet", "b-bad.parquet"]


def test_rows_are_set_aside_with_their_content(tmp_path: Path, bundle: Bundle) -> None:
    bad = [(None, 1_000), (3, None), (None, None)]
    rows = ROWS.with_row_index().with_columns(pl.col("index").cast(pl.Int64))
    nulls = pl.DataFrame(bad, schema=ROWS.schema, orient="row").with_columns(index=pl.Series([7.5, 150.5, 150.6]))
    mixed = pl.concat([rows.select("user_id", "item_id", pl.col("index").cast(pl.Float64)), nulls]).sort("index")
    mixed.drop("index").write_parquet(tmp_path / "in.parquet", row_group_size=100, statistics=False)
    assert refusal(bundle, tmp_path / "in.parquet", tmp_path / "run", 0) == (
        f"{tmp_path / 'in.parquet'}: column user_id is null (count: 2). Fill those in, or remove their rows."
    )
    summary = run(bundle, tmp_path / "in.parquet", tmp_path / "run", 3)
    check(tmp_path / "run", bundle, {user: items for user, items in USERS.items() if items}, Options(k=5), summary)
    assert summary.quarantined == 3
    found = quarantine(tmp_path / "run")
    assert found == [
        (str(tmp_path / "in.parquet"), row // 100, row, reason, json.dumps({"user_id": user, "item_id": item}))
        for row, reason, (user, item) in zip(
            (8, 152, 153), ("user_id is null", "item_id is null", "user_id is null"), bad, strict=True
        )
    ]
    assert mixed["user_id"][8] is mixed["item_id"][152] is None


def test_a_row_group_that_cannot_be_decoded_is_set_aside(tmp_path: Path, bundle: Bundle) -> None:
    ROWS.sort("user_id", maintain_order=True).write_parquet(tmp_path / "in.parquet", row_group_size=100)
    damage_a_page(tmp_path / "in.parquet", 1)
    summary = run(bundle, tmp_path / "in.parquet", tmp_path / "run", 1)
    left = pl.concat([ROWS.sort("user_id", maintain_order=True)[:100], ROWS.sort("user_id", maintain_order=True)[200:]])
    users = dict(left.group_by("user_id").agg("item_id").iter_rows())
    check(tmp_path / "run", bundle, users, Options(k=5), summary)
    ((file, row_group, row, reason, content),) = quarantine(tmp_path / "run")
    assert (file, row_group, row, content) == (str(tmp_path / "in.parquet"), 1, None, None)
    assert reason.startswith("cannot be read (")


def test_ids_of_another_type_are_cast_or_set_aside(tmp_path: Path, bundle: Bundle) -> None:
    users = good_half(tmp_path / "in")
    strings = pl.DataFrame({"user_id": ["70001", "x-9", "70002", "70003"], "item_id": [999, 999, 998, 2**40]})
    strings.write_parquet(tmp_path / "in" / "b.parquet")
    more = pl.DataFrame({"user_id": [70_004], "item_id": ["997"]}, schema_overrides={"user_id": pl.Int32})
    more.write_parquet(tmp_path / "in" / "c.parquet")
    assert refusal(bundle, tmp_path / "in", tmp_path / "run", 0) == (
        f"user ids are String in {tmp_path / 'in/b.parquet'}, but Int64 in {tmp_path / 'in/a-good.parquet'}. "
        "Write all files with one type."
    )
    summary = run(bundle, tmp_path / "in", tmp_path / "run", 1)
    cast = {70_001: [999], 70_002: [998], 70_003: [2**40], 70_004: [997]}
    check(tmp_path / "run", bundle, users | cast, Options(k=5), summary)
    assert quarantine(tmp_path / "run") == [
        (str(tmp_path / "in/b.parquet"), 0, 1, "user_id is no Int64", '{"user_id": "x-9", "item_id": 999}')
    ]


def test_a_history_with_a_fault_is_set_aside_whole(tmp_path: Path, bundle: Bundle) -> None:
    lists = [(1, [1_000, 999]), (2, [1_000, None]), (None, [998]), (4, []), (5, None), (6, [997] * 3)]
    schema = {"user_id": pl.Int64, "history": pl.List(pl.Int64)}
    pl.DataFrame(lists, schema=schema, orient="row").write_parquet(tmp_path / "in.parquet")
    summary = run(bundle, tmp_path / "in.parquet", tmp_path / "run", 2)
    check(tmp_path / "run", bundle, {1: [1_000, 999], 4: [], 5: [], 6: [997]}, Options(k=5), summary)
    assert [(row, reason, content) for _, _, row, reason, content in quarantine(tmp_path / "run")] == [
        (1, "history holds a null", '{"user_id": 2, "history": [1000, null]}'),
        (2, "user_id is null", '{"user_id": null, "history": [998]}'),
    ]


def test_histories_of_another_type(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "in").mkdir()
    write_histories(tmp_path / "in/a.parquet", USERS)
    write_histories(tmp_path / "in/b.parquet", {71_000: ["1000", "x"], 71_001: ["1000", "999"]}, item_type=pl.String)
    summary = run(bundle, tmp_path / "in", tmp_path / "run", 1)
    check(tmp_path / "run", bundle, USERS | {71_001: [1_000, 999]}, Options(k=5), summary)
    assert [row[2:] for row in quarantine(tmp_path / "run")] == [
        (0, "history holds an item that is no Int64", '{"user_id": 71000, "history": ["1000", "x"]}')
    ]


def test_one_limit_for_all_sources(tmp_path: Path, bundle: Bundle) -> None:
    users = {user: history for user, history in USERS.items() if user > 0}
    pl.DataFrame({"user_id": [*users, None]}).write_parquet(tmp_path / "users.parquet")
    history = write_histories(tmp_path / "history.parquet", {**users, 80_000: [1_000, None]})
    exclude = pl.DataFrame({"user_id": [8, None, 9], "item_id": [1_000, 1_000, None]})
    exclude.write_parquet(tmp_path / "exclude.parquet")
    sources = {"history": history, "exclude": str(tmp_path / "exclude.parquet")}
    assert refusal(bundle, tmp_path / "users.parquet", tmp_path / "run", 3, **sources) == (
        "The input has more than 3 rows or files that cannot be used (--max-errors). Correct them, or allow more. "
        "The first are:\n"
        f"  {tmp_path / 'users.parquet'}, row group 0, row {len(users)}: user_id is null\n"
        f"  {tmp_path / 'exclude.parquet'}, row group 0, row 1: user_id is null\n"
        f"  {tmp_path / 'exclude.parquet'}, row group 0, row 2: item_id is null"
    )
    summary = run(bundle, tmp_path / "users.parquet", tmp_path / "run", 4, **sources)
    check(tmp_path / "run", bundle, users, Options(k=5), summary, exclude={8: [1_000]})
    assert summary.quarantined == 4


def test_a_good_input_is_scored_to_the_same_bytes(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "in.parquet", USERS)
    run(bundle, location, tmp_path / "one", 0)
    summary = run(bundle, location, tmp_path / "two", 10)
    assert summary.quarantined == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_faults_give_the_same_bytes_every_time(tmp_path: Path, bundle: Bundle) -> None:
    good_half(tmp_path / "in")
    for at, (spoil, _) in enumerate(FILES):
        spoil(tmp_path / "in" / f"b{at}.parquet")
    for name in ("one", "two"):
        assert run(bundle, tmp_path / "in", tmp_path / name, 100).quarantined == len(FILES)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nothing_left_is_an_error(tmp_path: Path, bundle: Bundle) -> None:
    empty_file(tmp_path / "in.parquet")
    assert refusal(bundle, tmp_path / "in.parquet", tmp_path / "run", 5) == (
        f"{tmp_path / 'in.parquet'} holds no rows. Check the job that wrote it."
    )
    write_bare(tmp_path / "in.parquet", [None])
    assert refusal(bundle, tmp_path / "in.parquet", tmp_path / "run", 5) == (
        f"{tmp_path / 'in.parquet'} holds no rows. Check the job that wrote it."
    )


def test_a_million_faults_end_at_the_limit(tmp_path: Path, bundle: Bundle) -> None:
    pl.DataFrame({"user_id": [None] * 1_000_000}, schema={"user_id": pl.Int64}).write_parquet(tmp_path / "in.parquet")
    message = refusal(bundle, tmp_path / "in.parquet", tmp_path / "run", 1)
    assert message.startswith("The input has more than 1 rows or files that cannot be used (--max-errors). ")
    assert message.count("user_id is null") == 2
