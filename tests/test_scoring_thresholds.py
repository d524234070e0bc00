"""A run that crosses a threshold is not published: yesterday's stays, the refused one can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from known_scorer import KnownScorer, check, contents, item_id, make_bundle, write_histories

from export.bundle import Bundle
from pipeline.config import PublishConfig
from pipeline.errors import InputError, JobError
from scoring.job import score
from scoring.run import Options, RunSummary

USERS: dict[Any, list[Any]] = {user: [item_id(user, int)] if user < 7 else [] for user in range(10)}
"""Seven scored users and three cold ones."""


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def run(bundle: Bundle, output: Path, publish: PublishConfig | None = None, k: int = 3) -> RunSummary:
    location = write_histories(output.parent / "users.parquet", USERS)
    return score(bundle, KnownScorer(), location, output, Options(k=k, fallback="none"), publish=publish)


def refusal(bundle: Bundle, output: Path, publish: PublishConfig) -> str:
    with pytest.raises(JobError) as e:
        run(bundle, output, publish)
    return str(e.value)


def message(output: Path, *lines: str) -> str:
    return (
        f"{output} was not published, and is what it was before. The new run is in {output}.unpublished:\n"
        + "".join(f"  {line}\n" for line in lines)
        + "Find out why, then run again; if the run is right, change [publish] in the config."
    )


def test_numbers_at_the_thresholds_are_published(tmp_path: Path, bundle: Bundle) -> None:
    summary = run(bundle, tmp_path / "run")
    assert (summary.scored, summary.empty, summary.users) == (7, 3, 10)
    assert (summary.recommended_items, summary.candidates) == (21, 40)
    exactly = PublishConfig(min_scored_share=0.7, min_catalogue_coverage=0.525, max_empty_share=0.3)
    assert run(bundle, tmp_path / "run", exactly) == summary
    assert (tmp_path / "run" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    ("thresholds", "line"),
    [
        ({"min_scored_share": 0.71}, "0.7 of users were scored (7 of 10), below min_scored_share = 0.71"),
        (
            {"min_catalogue_coverage": 0.53},
            "0.525 of candidates were recommended (21 of 40), below min_catalogue_coverage = 0.53",
        ),
        ({"max_empty_share": 0.29}, "0.3 of users got nothing (3 of 10), above max_empty_share = 0.29"),
    ],
)
def test_a_crossed_threshold_leaves_yesterdays_run(
    tmp_path: Path, bundle: Bundle, thresholds: dict[str, float], line: str
) -> None:
    run(bundle, tmp_path / "run", k=2)
    before = contents(tmp_path / "run")
    for _ in range(2):  # a second refusal replaces the first
        assert refusal(bundle, tmp_path / "run", PublishConfig(**thresholds)) == message(tmp_path / "run", line)
        assert contents(tmp_path / "run") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.unpublished", "users.parquet"]
    check(tmp_path / "run.unpublished", bundle, USERS, Options(k=3, fallback="none"))
    run(bundle, tmp_path / "run")
    refused, published = contents(tmp_path / "run.unpublished"), contents(tmp_path / "run")
    assert published.pop("_SUCCESS") == b""
    assert refused == published


def test_all_crossed_thresholds_are_named_on_the_first_night_too(tmp_path: Path, bundle: Bundle) -> None:
    thresholds = PublishConfig(min_scored_share=1, min_catalogue_coverage=1, max_empty_share=0)
    assert refusal(bundle, tmp_path / "run", thresholds) == message(
        tmp_path / "run",
        "0.7 of users were scored (7 of 10), below min_scored_share = 1",
        "0.525 of candidates were recommended (21 of 40), below min_catalogue_coverage = 1",
        "0.3 of users got nothing (3 of 10), above max_empty_share = 0",
    )
    assert not (tmp_path / "run").exists()


def test_coverage_is_of_what_may_be_recommended(tmp_path: Path, bundle: Bundle) -> None:
    location = write_histories(tmp_path / "users.parquet", USERS)
    options = Options(k=3, where="item_number < 3")
    summary = score(
        bundle, KnownScorer(), location, tmp_path / "run", options, publish=PublishConfig(min_catalogue_coverage=1)
    )
    assert (summary.recommended_items, summary.candidates) == (3, 3)


def test_a_refused_run_does_not_replace_what_is_none(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "run.unpublished").mkdir()
    (tmp_path / "run.unpublished" / "letter.txt").write_text("mine")
    with pytest.raises(InputError) as e:
        run(bundle, tmp_path / "run")
    assert str(e.value) == (
        f"{tmp_path / 'run.unpublished'} has content but no receipts/part-00000.json, so it will not be replaced. "
        "Choose a new output folder."
    )


def test_a_link_is_followed(tmp_path: Path, bundle: Bundle) -> None:
    """The refused run stays on the file system where it was written."""
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    run(bundle, tmp_path / "link", k=2)
    before = contents(tmp_path / "disk" / "run")
    refusal(bundle, tmp_path / "link", PublishConfig(min_scored_share=1))
    assert contents(tmp_path / "disk" / "run") == before
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["run", "run.unpublished"]
