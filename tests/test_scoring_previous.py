"""Nights after the first: what is carried over is what would have been scored, and what changed is reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from known_scorer import (
    N_ITEMS,
    KnownScorer,
    check,
    contents,
    drawn_users,
    interactions,
    item_id,
    make_bundle,
    write_histories,
)

from export.bundle import Bundle, read_bundle
from pipeline.config import PublishConfig
from pipeline.errors import InputError, JobError
from scoring.job import score
from scoring.run import Options, RunSummary
from scoring.runtimes import open_scorer

USERS = drawn_users(120)
CHANGED = {**USERS, -50: [item_id(1, int), item_id(2, int)]}
PARTS = 8


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 100)
    monkeypatch.setattr("pipeline.histories.BATCH_USERS", 3)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("known") / "bundle")


class Night:
    """Runs of a folder, each of its own users."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.bundle, self.scored = folder, bundle, 0

    def run(
        self, name: str, users: Mapping[Any, Any], *, k: int = 5, since: str | None = None, **more: Any
    ) -> RunSummary:
        scorer = KnownScorer()
        location = write_histories(self.folder / "users.parquet", users)
        where = None if since is None else self.folder / since
        options = Options.model_validate({"k": k, **more.pop("options", {})})
        found = score(self.bundle, scorer, location, self.folder / name, options, since=where, **more)
        self.scored = sum(scorer.batches)
        return found

    def written(self, name: str) -> dict[str, bytes]:
        """All files of a run but its summary, which says what was carried over."""
        files = contents(self.folder / name)
        del files["summary.json"]
        return files


@pytest.fixture
def night(tmp_path: Path, known: Bundle) -> Night:
    return Night(tmp_path, known)


def test_nothing_is_scored_twice(night: Night) -> None:
    first = night.run("first", USERS)
    second = night.run("second", USERS, since="first")
    assert night.scored == 0
    assert night.written("second") == night.written("first")
    assert second.churn is not None
    assert second.churn.model_dump() == {
        "users_compared": len(USERS),
        "new_users": 0,
        "vanished_users": 0,
        "carried_over": len(USERS),
        "overlap": 1.0,
        "new_items": 0,
        "vanished_items": 0,
        "score_drift": 0.0,
        "concept_drift": 0.0,
    }
    assert second.model_copy(update={"churn": None}) == first
    assert RunSummary.model_validate_json((night.folder / "second/summary.json").read_bytes()) == second


@pytest.mark.parametrize("options", [{}, {"layout": "nested"}, {"fallback": "none"}])
@pytest.mark.parametrize(
    "users", [CHANGED, {**USERS, 5_000: [item_id(3, int)]}, {user: USERS[user] for user in list(USERS)[1:]}]
)
def test_only_parts_with_a_change_are_scored_to_the_bytes_of_a_full_run(
    night: Night, users: dict[Any, Any], options: dict[str, Any]
) -> None:
    """A user whose history changed, a new one, one who left."""
    night.run("first", USERS, options=options)
    full = night.run("full", users, options=options)
    of_full = night.scored
    second = night.run("second", users, since="first", options=options)
    assert 0 < night.scored < of_full / 4
    assert second.churn is not None
    assert len(users) * 3 / 4 < second.churn.carried_over < len(users)
    assert night.written("second") == night.written("full")
    assert second.model_copy(update={"churn": None}) == full


def test_some_rows_more_do_not_move_everyone(night: Night) -> None:
    """There is a power of two of parts, 8 for 401 to 800 rows here."""
    night.run("first", USERS)
    summary = night.run("second", {**USERS, 5_000: [item_id(number, int) for number in range(N_ITEMS)]}, since="first")
    assert summary.interactions - sum(map(len, USERS.values())) == N_ITEMS
    assert len(list((night.folder / "second/data").iterdir())) == PARTS
    assert summary.churn is not None
    assert summary.churn.carried_over > len(USERS) / 2


def test_an_exclusion_is_a_change(night: Night) -> None:
    night.run("first", USERS)
    exclude = write_histories(night.folder / "exclude.parquet", {-50: [item_id(1, int)]})
    night.run("full", USERS, exclude=exclude)
    night.run("second", USERS, since="first", exclude=exclude)
    assert 0 < night.scored < 40
    assert night.written("second") == night.written("full")


def test_rows_given_twice_are_none(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted all the same."""
    monkeypatch.setattr("scoring.job.bucket_count", lambda n_rows: PARTS)
    users = {user: items for user, items in USERS.items() if items}
    night.run("first", users)
    twice = {user: [*items, *items] for user, items in users.items()}
    night.run("full", twice)
    second = night.run("second", twice, since="first")
    assert night.scored == 0
    assert night.written("second") == night.written("full")
    assert second.interactions == 2 * len(interactions(users))


@pytest.mark.parametrize("changed", ["options", "bundle", "lists", "parts"])
def test_everything_is_scored_when_the_rules_change(
    night: Night, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = tmp_path / "allow.txt"
    allow.write_text("".join(f"{item_id(number, int)}\n" for number in range(20)))
    more: dict[str, Any] = {"allow": allow}
    night.run("first", USERS, **more)
    if changed == "options":
        more["k"] = 4
    elif changed == "bundle":
        night.bundle = make_bundle(tmp_path / "other", columns={"note": ["x"] * N_ITEMS})
    elif changed == "lists":
        allow.write_text(allow.read_text() + "980\n")
    else:
        monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 30)
    night.run("full", USERS, **more)
    of_full = night.scored
    second = night.run("second", USERS, since="first", **more)
    assert night.scored == of_full > 0
    assert second.churn is not None
    assert (second.churn.carried_over, second.churn.users_compared) == (0, len(USERS))
    assert night.written("second") == night.written("full")


def test_in_place_from_the_first_night_on(night: Night) -> None:
    assert night.run("run", USERS, since="run").churn is None
    night.run("full", CHANGED)
    summary = night.run("run", CHANGED, since="run")
    assert summary.churn is not None
    assert summary.churn.carried_over > 0
    assert night.written("run") == night.written("full")


def rows(run: Path) -> dict[Any, list[tuple[Any, float, Any]]]:
    lists: dict[Any, list[tuple[Any, float, Any]]] = {user: [] for user in pl.read_parquet(run / "users")["user_id"]}
    for user, _, item, score_, concept, _ in pl.read_parquet(run / "data").rows():
        lists[user].append((item, score_, concept))
    return lists


def test_churn_is_what_a_plain_loop_counts(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users come, go and change, fallbacks end; parts and layout are others. Three users are compared at a time."""
    monkeypatch.setattr("scoring.churn.USERS_AT_ONCE", 3)
    draw = drawn_users(140, seed=8)
    users = {user: draw.get(user, USERS[user]) for user in list(USERS)[10:]} | {7_000: [], 7_001: [item_id(9, int)]}
    night.run("first", USERS, options={"where": "item_number > 3"})
    monkeypatch.setattr("pipeline.buckets.ROWS_PER_BUCKET", 60)
    more: dict[str, Any] = {"since": "first", "options": {"where": "item_number < 30"}, "k": 7}
    churn = night.run("second", users, **more).churn
    before, after = rows(night.folder / "first"), rows(night.folder / "second")
    both = [user for user in before if user in after]
    overlaps = [
        len({item for item, *_ in before[user]} & {item for item, *_ in after[user]})
        / max(len(before[user]), len(after[user]))
        if before[user] or after[user]
        else 1
        for user in both
    ]
    items = [{item for listed in run.values() for item, *_ in listed} for run in (before, after)]
    scores = [[score_ for listed in run.values() for _, score_, _ in listed] for run in (before, after)]
    concepts = [[concept for listed in run.values() for *_, concept in listed] for run in (before, after)]
    shares = [[listed.count(concept) / len(listed) for concept in (0, 1, 2, None)] for listed in concepts]
    assert churn is not None
    assert churn.model_dump() == {
        "users_compared": len(both),
        "new_users": len(after) - len(both),
        "vanished_users": len(before) - len(both),
        "carried_over": 0,
        "overlap": pytest.approx(sum(overlaps) / len(overlaps)),
        "new_items": len(items[1] - items[0]),
        "vanished_items": len(items[0] - items[1]),
        "score_drift": pytest.approx(sum(scores[1]) / len(scores[1]) - sum(scores[0]) / len(scores[0]), abs=1e-6),
        "concept_drift": pytest.approx(sum(abs(a - b) for a, b in zip(*shares, strict=True)) / 2),
    }
    assert min(churn.new_users, churn.vanished_users, churn.new_items, churn.vanished_items) > 0
    assert 0 < churn.overlap < 1
    assert churn.concept_drift > 0
    shutil.rmtree(night.folder / "second")
    more["options"]["layout"] = "nested"
    assert night.run("second", users, **more).churn == churn


def test_too_much_churn_is_not_published(night: Night) -> None:
    night.run("run", USERS)
    before = night.written("run")
    some = write_histories(
        night.folder / "exclude.parquet", {user: [item_id(n, int) for n in range(20)] for user in USERS}
    )
    with pytest.raises(JobError) as e:
        night.run("run", USERS, since="run", exclude=some, publish=PublishConfig(max_churn=0.1))
    assert night.written("run") == before
    refused = RunSummary.model_validate_json((night.folder / "run.unpublished/summary.json").read_bytes())
    assert refused.churn is not None
    assert str(e.value) == (
        f"{night.folder / 'run'} was not published, and is what it was before. "
        f"The new run is in {night.folder / 'run'}.unpublished:\n"
        f"  the lists changed by {1 - refused.churn.overlap:.4g}, above max_churn = 0.1\n"
        "Find out why, then run again; if the run is right, change [publish] in the config."
    )
    night.run("run", USERS, exclude=some, publish=PublishConfig(max_churn=0))


def refusal(night: Night, since: str, users: Mapping[Any, Any] = USERS) -> str:
    with pytest.raises(InputError) as e:
        night.run("second", users, since=since)
    assert not (night.folder / "second").exists()
    return str(e.value).replace(f"{night.folder}/", "")


def test_a_run_that_cannot_be_continued(night: Night) -> None:
    night.run("first", USERS)
    assert refusal(night, "nowhere") == (
        "--since nowhere is not a complete run: it has no _SUCCESS. Name last night's run."
    )
    part = night.folder / "first/data/part-00003.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert refusal(night, "first") == (
        "--since: first/data/part-00003.parquet has changed since it was written. Leave --since out."
    )
    manifest = night.folder / "first/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 0}))
    assert refusal(night, "first") == (
        "--since first is not a run of this version of macrid (1 validation error for RunManifest). "
        "Leave --since out this night."
    )


def test_users_of_another_type_cannot_be_compared(tmp_path: Path, known: Bundle) -> None:
    score(known, KnownScorer(), write_histories(tmp_path / "a.parquet", USERS), tmp_path / "first", Options())
    strings = write_histories(tmp_path / "b.parquet", {"x": [1_000]}, pl.String)
    with pytest.raises(InputError) as e:
        score(known, KnownScorer(), strings, tmp_path / "second", Options(), since=tmp_path / "first")
    assert str(e.value) == (
        f"User ids are String in this run, but Int64 in --since {tmp_path / 'first'}. Leave --since out."
    )


def test_a_real_graph_gives_the_bytes_of_a_full_run(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.histories.BATCH_USERS", 512)
    opened, scorer = read_bundle(bundle), open_scorer(bundle, "onnx", "cpu")
    ids = opened.vocabulary.items["item_id"].to_list()
    users = {f"user-{at}": ids[at % 90 : at % 90 + 3 + at % 7] for at in range(200)}
    first = write_histories(tmp_path / "first.parquet", users, pl.String, pl.String)
    users["user-7"] = ids[200:209]
    second = write_histories(tmp_path / "second.parquet", users, pl.String, pl.String)
    score(opened, scorer, first, tmp_path / "first", Options(k=9))
    score(opened, scorer, second, tmp_path / "full", Options(k=9))
    summary = score(opened, scorer, second, tmp_path / "run", Options(k=9), since=tmp_path / "first")
    assert summary.churn is not None
    assert 100 < summary.churn.carried_over < 200
    assert contents(tmp_path / "run", "data", "users", "receipts") == contents(
        tmp_path / "full", "data", "users", "receipts"
    )


def test_carried_over_parts_are_right(night: Night) -> None:
    night.run("first", USERS)
    summary = night.run("second", CHANGED, since="first")
    check(night.folder / "second", night.bundle, CHANGED, Options(k=5), summary)
