"""Scoring with a scorer whose every answer is known, against a plain Python loop over users and items.

This file is also the program that dies: `python test_scoring_job.py loop|fill FOLDER`.
"""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_scorer import (
    N_ITEMS,
    KnownScorer,
    check,
    contents,
    drawn_users,
    expected,
    interactions,
    make_bundle,
    read_data,
    read_users,
    write_bare,
    write_histories,
)
from polars.testing import assert_frame_equal

from export.bundle import Bundle, read_bundle
from pipeline.errors import InputError, JobError
from pipeline.manifest import digests
from scoring.job import score
from scoring.run import Options, Receipt, RunManifest

SMALL_PARTS = 8


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts (`SMALL_PARTS` of 120 users), many blocks, many batches, from little input."""
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 100)
    monkeypatch.setattr("scoring.job.BLOCK_PLACES", 60)
    monkeypatch.setattr("pipeline.histories.BATCH_USERS", 3)


@pytest.mark.parametrize("layout", ["long", "nested"])
@pytest.mark.parametrize("fallback", ["popular", "none"])
@pytest.mark.parametrize(("k", "keep_seen"), [(1, False), (10, True), (10, False), (N_ITEMS, False), (500, True)])
def test_every_recommendation_is_the_one_of_a_plain_loop(
    tmp_path: Path, bundle: Bundle, k: int, keep_seen: bool, fallback: str, layout: str
) -> None:
    users = drawn_users(120)
    options = Options.model_validate({"k": k, "keep_seen": keep_seen, "fallback": fallback, "layout": layout})
    summary = score(
        bundle, KnownScorer(), write_histories(tmp_path / "users.parquet", users), tmp_path / "run", options
    )
    if layout == "long":
        check(tmp_path / "run", bundle, users, options, summary)
        return
    data, accounts = expected(bundle, users, k=k, keep_seen=keep_seen, fallback=fallback)
    nested = read_data(tmp_path / "run")
    assert nested.columns == ["user_id", "item_ids", "scores", "concepts", "concept_shares"]
    assert sorted(nested["user_id"]) == sorted(users)
    assert (summary.rows, summary.recommendations) == (len(users), len(data))
    found = {
        (user, rank, *values)
        for user, *lists in nested.rows()
        for rank, values in enumerate(zip(*lists, strict=True), start=1)
    }
    assert found == data
    assert set(read_users(tmp_path / "run").rows()) == accounts


def test_many_parts_blocks_and_batches_give_the_same_rows(tmp_path: Path, bundle: Bundle, small_parts: None) -> None:
    users, options, scorer = drawn_users(120), Options(k=7), KnownScorer()
    summary = score(bundle, scorer, write_histories(tmp_path / "users.parquet", users), tmp_path / "run", options)
    check(tmp_path / "run", bundle, users, options, summary)
    assert max(scorer.batches) == 3
    assert len(list((tmp_path / "run/data").iterdir())) == SMALL_PARTS
    groups = [pq.read_metadata(path) for path in (tmp_path / "run/data").iterdir()]
    assert max(file.row_group(at).num_rows for file in groups for at in range(file.num_row_groups)) <= 60
    for path in (tmp_path / "run/data").iterdir():
        part = pl.read_parquet(path)
        assert part["user_id"].is_sorted()
        assert_frame_equal(part, part.sort("user_id", "rank"))
    for path in (tmp_path / "run/users").iterdir():
        assert pl.read_parquet(path)["user_id"].is_sorted()


def test_a_wide_catalogue_makes_small_batches(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    users, scorer = drawn_users(30), KnownScorer()
    monkeypatch.setattr("pipeline.histories.BATCH_SCORES", 5 * N_ITEMS + 1)
    score(bundle, scorer, write_histories(tmp_path / "users.parquet", users), tmp_path / "run", Options(k=3))
    assert max(scorer.batches) == 5


def test_all_forms_of_input_give_the_same_recommendations(tmp_path: Path, bundle: Bundle) -> None:
    users = {user: history for user, history in drawn_users(60).items() if history}
    places = {}
    for form in ("interactions", "histories", "bare"):
        history = None
        if form == "interactions":
            location = str(tmp_path / "interactions.parquet")
            interactions(users).write_parquet(location)
        elif form == "histories":
            location = write_histories(tmp_path / "histories.parquet", users)
        else:
            location, history = (
                write_bare(tmp_path / "bare.parquet", list(users)),
                str(tmp_path / "interactions.parquet"),
            )
        places[form] = score(bundle, KnownScorer(), location, tmp_path / form, Options(k=10), history=history)
        check(tmp_path / form, bundle, users, Options(k=10), places[form])
    assert contents(tmp_path / "histories", "data", "users") == contents(tmp_path / "interactions", "data", "users")
    assert contents(tmp_path / "bare", "data", "users") == contents(tmp_path / "interactions", "data", "users")
    n_interactions = sum(map(len, users.values()))
    assert {summary.interactions for summary in places.values()} == {n_interactions}
    assert places["bare"].history_items < n_interactions


def test_history_serves_only_the_users_of_the_input(tmp_path: Path, bundle: Bundle, small_parts: None) -> None:
    had = drawn_users(100)
    asked = [*list(had)[::2], 77_777, 88_888, next(iter(had))]
    location = write_bare(tmp_path / "users.parquet", asked)
    history = write_histories(tmp_path / "history.parquet", had)
    summary = score(bundle, KnownScorer(), location, tmp_path / "run", Options(k=4), history=history)
    check(tmp_path / "run", bundle, {user: had.get(user, []) for user in asked}, Options(k=4), summary)
    assert summary.not_asked_for == len(had) - (len(set(asked)) - 2)
    manifest = RunManifest.model_validate_json((tmp_path / "run/manifest.json").read_bytes())
    assert manifest.history is not None
    assert list(manifest.history.files) == ["history.parquet"]


@pytest.mark.parametrize(
    "user_type",
    [pl.Int8, pl.Int32, pl.Int64, pl.UInt32, pl.UInt64, pl.String, pl.Categorical, pl.Enum(["a", "b", "c"])],
)
@pytest.mark.parametrize("layout", ["long", "nested"])
def test_user_ids_keep_their_type(tmp_path: Path, bundle: Bundle, user_type: Any, layout: str) -> None:
    ids: list[Any] = [3, 1, 2] if pl.Series([], dtype=user_type).dtype.is_integer() else ["c", "a", "b"]
    users = dict(zip(ids, ([1_000], [], [1]), strict=True))
    location = write_histories(tmp_path / "users.parquet", users, user_type)
    score(bundle, KnownScorer(), location, tmp_path / "run", Options.model_validate({"layout": layout}))
    kept = user_type if isinstance(ids[0], int) else pl.String
    for folder in ("data", "users"):
        found = pl.read_parquet(tmp_path / "run" / folder)
        assert found.schema["user_id"] == kept
        assert found["user_id"].unique().sort().to_list() == sorted(ids)


@pytest.mark.parametrize(
    ("kind", "item_type"), [(int, pl.Int16), (int, pl.UInt64), (str, pl.String), (str, pl.Categorical)]
)
def test_item_ids_come_out_in_the_type_of_training(tmp_path: Path, kind: type, item_type: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle", kind)
    users = drawn_users(20, kind=kind)
    location = write_histories(tmp_path / "users.parquet", users, item_type=item_type)
    summary = score(bundle, KnownScorer(), location, tmp_path / "run", Options(k=5))
    check(tmp_path / "run", bundle, users, Options(k=5), summary)
    assert read_data(tmp_path / "run").schema["item_id"] == (pl.Int64 if kind is int else pl.String)


def test_the_files_have_the_promised_columns(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "users.parquet", {"a": [1_000], "b": []}, pl.String)
    score(bundle, KnownScorer(), location, tmp_path / "long", Options())
    score(bundle, KnownScorer(), location, tmp_path / "nested", Options(layout="nested"))
    columns = {
        "item_id": pa.int64(),
        "score": pa.float32(),
        "concept": pa.int16(),
        "concept_share": pa.float32(),
    }
    assert pq.read_schema(tmp_path / "long/data/part-00000.parquet") == pa.schema(
        {"user_id": pa.string(), "rank": pa.int32(), **columns}
    )
    assert pq.read_schema(tmp_path / "nested/data/part-00000.parquet") == pa.schema(
        {"user_id": pa.string(), **{f"{name}s": pa.list_(dtype) for name, dtype in columns.items()}}
    )
    counted = dict.fromkeys(["history_length", "known_items", "recommended"], pa.int32())
    users_schema = pa.schema({"user_id": pa.string(), "status": pa.string(), **counted, "reason": pa.string()})
    assert pq.read_schema(tmp_path / "long/users/part-00000.parquet") == users_schema


@pytest.mark.parametrize("layout", ["long", "nested"])
def test_floats_are_split_into_streams_and_users_can_be_searched(tmp_path: Path, bundle: Bundle, layout: str) -> None:
    location = write_histories(tmp_path / "users.parquet", drawn_users(20))
    score(bundle, KnownScorer(), location, tmp_path / "run", Options.model_validate({"layout": layout}))
    group = pq.read_metadata(tmp_path / "run/data/part-00000.parquet").row_group(0)
    columns = [group.column(at) for at in range(group.num_columns)]
    split = {column.path_in_schema.split(".")[0] for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert split == ({"score", "concept_share"} if layout == "long" else {"scores", "concept_shares"})
    assert {column.compression for column in columns} == {"ZSTD"}
    assert [column.path_in_schema for column in columns if column.is_stats_set] == ["user_id"]
    # The last user has seen the whole catalogue: no row in the long layout.
    assert (columns[0].statistics.min, columns[0].statistics.max) == (-50, 7 if layout == "long" else 9_999)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(
    users=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(1_000 - N_ITEMS - 20, 1_000)), min_size=1, max_size=12
    ),
    k=st.integers(1, N_ITEMS + 5),
    keep_seen=st.booleans(),
    fallback=st.sampled_from(["popular", "none"]),
    rows_per_part=st.sampled_from([5, 20, 1_000]),
)
def test_any_input_comes_out_whole(
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Bundle,
    users: dict[int, list[int]],
    k: int,
    keep_seen: bool,
    fallback: str,
    rows_per_part: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    options = Options.model_validate({"k": k, "keep_seen": keep_seen, "fallback": fallback})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.buckets.ROWS_PER_BUCKET", rows_per_part)
        location = write_histories(folder / "users.parquet", users)
        summary = score(bundle, KnownScorer(), location, folder / "run", options)
    accounts = read_users(folder / "run")
    assert sorted(accounts["user_id"]) == sorted(users)
    data = read_data(folder / "run")
    seen = {(user, item) for user, history in users.items() for item in history}
    assert keep_seen or not seen & set(data.select("user_id", "item_id").iter_rows())
    ranks = data.group_by("user_id").agg(pl.col("rank").sort())
    assert all(ranked == list(range(1, len(ranked) + 1)) for _, ranked in ranks.iter_rows())
    check(folder / "run", bundle, users, options, summary)


def test_the_same_job_gives_the_same_bytes(tmp_path: Path, bundle: Bundle, small_parts: None) -> None:
    location = write_histories(tmp_path / "users.parquet", drawn_users(150))
    for name in ("one", "two"):
        score(bundle, KnownScorer(), location, tmp_path / name, Options(k=9))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    score(bundle, KnownScorer(), location, tmp_path / "two", Options(k=9))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_neither_the_order_of_rows_nor_the_number_of_files_changes_a_byte(
    tmp_path: Path, bundle: Bundle, small_parts: None
) -> None:
    rows = interactions(drawn_users(150))
    (tmp_path / "split" / "day=1").mkdir(parents=True)
    rows.write_parquet(tmp_path / "whole.parquet")
    mixed = rows.sample(fraction=1, shuffle=True, seed=5)
    mixed[:200].write_parquet(tmp_path / "split/b.parquet")
    mixed[200:201].write_parquet(tmp_path / "split/day=1/a.parquet")
    mixed[201:].write_parquet(tmp_path / "split/c.parquet", row_group_size=100)
    score(bundle, KnownScorer(), str(tmp_path / "whole.parquet"), tmp_path / "one", Options(k=9))
    score(bundle, KnownScorer(), str(tmp_path / "split"), tmp_path / "two", Options(k=9))
    assert len(contents(tmp_path / "one", "data")) > 5
    assert contents(tmp_path / "one", "data", "users") == contents(tmp_path / "two", "data", "users")


def test_readers_of_the_folders_find_the_rows_and_nothing_else(
    tmp_path: Path, bundle: Bundle, small_parts: None
) -> None:
    users = drawn_users(120)
    summary = score(
        bundle, KnownScorer(), write_histories(tmp_path / "u.parquet", users), tmp_path / "run", Options(k=9)
    )
    for folder, n_rows in (("data", summary.rows), ("users", summary.users)):
        read = pl.read_parquet(tmp_path / "run" / folder)
        assert len(read) == n_rows
        scanned = pl.from_arrow(ds.dataset(tmp_path / "run" / folder, format="parquet").to_table())
        assert isinstance(scanned, pl.DataFrame)
        assert_frame_equal(scanned, read, check_row_order=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "u.parquet"]
    parts = [f"part-{part:05}" for part in range(SMALL_PARTS)]
    assert sorted(contents(tmp_path / "run")) == sorted(
        [
            "_SUCCESS",
            "manifest.json",
            "summary.json",
            *(f"{kind}/{part}.parquet" for kind in ("data", "users") for part in parts),
            *(f"receipts/{part}.json" for part in parts),
        ]
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["data", "receipts", "users"]


def test_receipts_and_manifest_agree_with_the_files(tmp_path: Path, bundle: Bundle, small_parts: None) -> None:
    location = write_histories(tmp_path / "u.parquet", drawn_users(120))
    summary = score(bundle, KnownScorer(), location, tmp_path / "run", Options(k=9))
    written = digests(tmp_path / "run")
    receipts = [
        Receipt.model_validate_json(path.read_bytes()) for path in sorted((tmp_path / "run/receipts").iterdir())
    ]
    for part, receipt in enumerate(receipts):
        names = [f"{kind}/part-{part:05}.parquet" for kind in ("data", "users")]
        assert receipt.files == {name: written[name] for name in names}
        assert receipt.summary.rows == len(pl.read_parquet(tmp_path / "run" / names[0]))
        assert receipt.summary.users == len(pl.read_parquet(tmp_path / "run" / names[1]))
    assert sum(receipt.summary.rows for receipt in receipts) == summary.rows
    manifest = RunManifest.model_validate_json((tmp_path / "run/manifest.json").read_bytes())
    assert manifest.bundle == bundle.digest
    assert manifest.options == Options(k=9)
    assert manifest.n_parts == len(receipts) == SMALL_PARTS


def test_progress_counts_every_user_and_ends_with_the_whole_job(
    tmp_path: Path, bundle: Bundle, small_parts: None
) -> None:
    calls: list[tuple[int, float]] = []
    users = drawn_users(120)
    location = write_histories(tmp_path / "u.parquet", users)
    options = Options(k=9)
    score(bundle, KnownScorer(), location, tmp_path / "run", options, on_progress=lambda *done: calls.append(done))
    assert calls[0] == (0, 0.0)
    assert calls[-1] == (len(users), 1.0)
    assert calls == sorted(set(calls))
    assert len(calls) > 20


def test_parts_without_users_are_there_and_empty(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 5)
    users, shares = {1: [1_000 - number for number in range(N_ITEMS - 2)]}, []
    location = write_histories(tmp_path / "u.parquet", users)
    for layout in ("nested", "long"):
        options = Options.model_validate({"layout": layout})
        summary = score(
            bundle,
            KnownScorer(),
            location,
            tmp_path / "run",
            options,
            on_progress=lambda _, share: shares.append(share),
        )
    check(tmp_path / "run", bundle, users, Options(), summary)
    assert len(list((tmp_path / "run/data").iterdir())) == 8
    assert shares == [part / SMALL_PARTS for part in range(SMALL_PARTS + 1)] * 2


def test_an_input_may_lie_in_the_run_that_it_replaces(tmp_path: Path, bundle: Bundle) -> None:
    history = write_histories(tmp_path / "history.parquet", drawn_users(30))
    score(bundle, KnownScorer(), history, tmp_path / "run", Options())
    before = contents(tmp_path / "run", "data", "users")
    score(bundle, KnownScorer(), str(tmp_path / "run/users"), tmp_path / "run", Options(), history=history)
    assert contents(tmp_path / "run", "data", "users") == before


@pytest.mark.parametrize("failure", [ZeroDivisionError(), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_whatever_is_raised_leaves_the_old_run_untouched(
    tmp_path: Path, bundle: Bundle, small_parts: None, failure: BaseException, before: bool
) -> None:
    location = write_histories(tmp_path / "u.parquet", drawn_users(120))
    if before:
        score(bundle, KnownScorer(), location, tmp_path / "run", Options(k=2))
    old = contents(tmp_path)
    scorer = KnownScorer(fail_at=20, failure=failure)
    with pytest.raises(type(failure)):
        score(bundle, scorer, location, tmp_path / "run", Options(k=9))
    assert len(scorer.batches) == 20
    assert contents(tmp_path) == old


def refusal(tmp_path: Path, bundle: Bundle, location: str, history: str | None = None, output: str = "run") -> str:
    with pytest.raises(InputError) as e:
        score(bundle, KnownScorer(), location, tmp_path / output, Options(), history=history)
    assert not (tmp_path / "run").exists()
    return str(e.value)


def test_refuses_bare_users_without_history(tmp_path: Path, bundle: Bundle) -> None:
    location = write_bare(tmp_path / "users.parquet", [1])
    assert refusal(tmp_path, bundle, location) == (
        f"{location} holds bare users: beside user_id it has neither item_id nor history. "
        "Name the interactions of these users with --history."
    )


def test_refuses_a_history_of_bare_users(tmp_path: Path, bundle: Bundle) -> None:
    location = write_bare(tmp_path / "users.parquet", [1])
    assert refusal(tmp_path, bundle, location, location) == (
        f"--history {location} holds bare users: beside user_id it has neither item_id nor history. "
        "Name the interactions of the users."
    )


def test_refuses_a_second_source_of_histories(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "users.parquet", {1: [2]})
    assert refusal(tmp_path, bundle, location, location) == (
        f"{location} already holds histories, so --history {location} would contradict it. "
        "Leave --history out, or give an --input with no column but user_id."
    )


def test_refuses_users_of_two_types(tmp_path: Path, bundle: Bundle) -> None:
    location = write_bare(tmp_path / "users.parquet", [1], pl.Int32)
    history = write_histories(tmp_path / "history.parquet", {1: [2]})
    assert refusal(tmp_path, bundle, location, history) == (
        f"User ids are Int32 in {location}, but Int64 in --history {history}. Write both with one type."
    )


def test_refuses_items_of_another_type_than_training(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "history.parquet", {1: ["2"]}, item_type=pl.String)
    message = f"{location}: Item ids are String, but the model was trained with Int64. Cast them."
    assert refusal(tmp_path, bundle, location) == message
    assert refusal(tmp_path, bundle, write_bare(tmp_path / "users.parquet", [1]), location) == message


def test_refuses_to_replace_what_is_not_a_run(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = contents(tmp_path)
    assert refusal(tmp_path, bundle, "nowhere.parquet", output="bundle") == (
        f"{tmp_path / 'bundle'} has content but no receipts/part-00000.json, so it will not be replaced. "
        "Choose a new output folder."
    )
    assert contents(tmp_path) == before


def test_an_error_that_is_not_about_space_stays_what_it_is(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "u.parquet", {1: [1_000]})
    with pytest.raises(PermissionError, match="not yours"):
        score(
            bundle, KnownScorer(fail_at=1, failure=PermissionError("not yours")), location, tmp_path / "run", Options()
        )


def test_scoring_reaches_neither_torch_nor_the_model() -> None:
    forbidden = "{'torch', 'pipeline.model', 'pipeline.train', 'export.graph'}"
    program = f"import sys, scoring.job, scoring.run; print(sorted(set(sys.modules) & {forbidden}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# The program that dies, and what readers find afterwards.

LOOP_PARTS = 4
LOOP_KS = (3, 4, 5)
FIRST_K = 2


def loop_once(folder: Path, k: int, on_progress: Any = None) -> None:
    """One run of `LOOP_PARTS` parts of one block each, from files that `folder` holds already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoring.job.bucket_count", lambda n_rows: LOOP_PARTS)
        location = str(folder / "users.parquet")
        bundle = read_bundle(folder / "bundle")
        score(bundle, KnownScorer(), location, folder / "run", Options(k=k), on_progress=on_progress)


def loop(folder: Path) -> None:
    for k in cycle(LOOP_KS):
        loop_once(folder, k, lambda _users, _share: print(flush=True))


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, bytes]]]:
    """A folder to loop in, and every run that a reader may find there, byte for byte."""
    folder = tmp_path_factory.mktemp("loop")
    make_bundle(folder / "bundle")
    write_histories(folder / "users.parquet", drawn_users(300))
    runs = {}
    for k in (*LOOP_KS, FIRST_K):
        loop_once(folder, k)
        runs[k] = contents(folder / "run")
        assert runs[k]["_SUCCESS"] == b""
        check(folder / "run", read_bundle(folder / "bundle"), drawn_users(300), Options(k=k))
    return folder, runs


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("n_lines", [1, 5, 8])
def test_killed_anywhere_a_reader_finds_the_old_run_or_the_new_one(
    whole_runs: tuple[Path, dict[int, dict[str, bytes]]], end: signal.Signals, n_lines: int
) -> None:
    folder, runs = whole_runs
    loop_once(folder, FIRST_K)
    with subprocess.Popen([sys.executable, __file__, "loop", folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        progress = [process.stdout.readline() for _ in range(n_lines)]
        time.sleep(n_lines % 4 / 200)
        process.send_signal(end)
        progress += process.stdout.readlines()
    # A KeyboardInterrupt inside shutil.rmtree closes a descriptor twice; that OSError ends Python 3.11, mid-removal.
    in_rmtree = end == signal.SIGINT and process.returncode == 1
    assert process.returncode == -end or in_rmtree
    assert len(progress) >= n_lines
    n_finished, last_line = divmod(len(progress) - 1, LOOP_PARTS + 1)
    made = [FIRST_K, *islice(cycle(LOOP_KS), n_finished + 1)]
    possible = made[-2:] if last_line == LOOP_PARTS else made[-2:-1]
    assert contents(folder / "run") in [runs[k] for k in possible]
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert hidden == [] or end == signal.SIGKILL or in_rmtree
    loop_once(folder, FIRST_K)
    assert contents(folder / "run") == runs[FIRST_K]
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "run", "users.parquet"]


FULL_DISKS = {
    100: "FOLDER/run could not be written (CAUSE). Make room on that disk and run again.",
    1_000: "FOLDER/users.parquet could not be shuffled into FOLDER/HIDDEN/_temporary/shuffled/users (CAUSE). "
    "Check its files and the disk space.",
    4_000: "FOLDER/run could not be written (CAUSE). Make room on that disk and run again.",
}
"""The largest file that may be written, so that the manifest, the shuffle, the data do not fit; and what is said."""


def fill(folder: Path) -> None:
    """Score where no file may grow beyond a limit: from inside, a disk that fills up."""
    for limit in FULL_DISKS:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            loop_once(folder, N_ITEMS)
        except JobError as error:
            print(error)


def test_a_full_disk_is_reported_and_leaves_the_old_run(whole_runs: tuple[Path, dict[int, dict[str, bytes]]]) -> None:
    folder, runs = whole_runs
    loop_once(folder, FIRST_K)
    program = [sys.executable, __file__, "fill", folder]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout.replace(str(folder), "FOLDER")
    printed = re.sub(r"\.run\.tmp-\d+-[0-9a-f]+", "HIDDEN", printed)
    assert re.sub(r"\(.*File too large.*\)", "(CAUSE)", printed).splitlines() == list(FULL_DISKS.values())
    assert contents(folder / "run") == runs[FIRST_K]
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "run", "users.parquet"]


if __name__ == "__main__":
    {"loop": loop, "fill": fill}[sys.argv[1]](Path(sys.argv[2]))
