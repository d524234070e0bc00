from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from export.bundle import read_bundle
from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.inspection import print_inspection
from scoring.inspect_run import inspect_run
from scoring.run import RunManifest

KEYS = ["path", *RunManifest.model_fields, "complete", "parts_done", "users", "summary", "files"]


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Path:
    """Scored: two users; one cold, one of unknown items."""
    histories = [["item-001", "item-002"], [], ["no such item"], ["item-007"]]
    pl.DataFrame({"user_id": [1, 2, 3, 4], "history": histories}).write_parquet(tmp_path / "users.parquet")
    arguments = ["--input", str(tmp_path / "users.parquet"), "--bundle", str(bundle), "--k", "5"]
    result = CliRunner().invoke(main, ["score", *arguments, "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        inspect_run(path)
    return str(error.value)


def test_facts(run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_run(run), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == KEYS
    manifest = json.loads((run / "manifest.json").read_bytes())
    assert {key: facts[key] for key in manifest} == manifest
    assert facts["bundle"]["sha256"] == read_bundle(bundle).digest.sha256
    assert (facts["complete"], facts["parts_done"], facts["users"]) == (True, 1, 4)
    summary = facts["summary"]
    assert (summary["scored"], summary["cold"], summary["unknown"], summary["rows"]) == (2, 1, 1, 20)
    assert list(facts["files"]) == ["data/part-00000.parquet", "users/part-00000.parquet"]


def test_tables(run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_run(run), as_json=False)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}: a run, complete, every file as written\n")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in ["users 4", "scored 2", "cold 1", "unknown 1", "rows 20", "k 5", "keep seen False", "parts 1"]:
        assert line in lines
    assert f"SHA-256 of the bundle {read_bundle(bundle).digest.sha256}" in lines


def test_a_run_is_complete_with_all_its_parts_and_the_mark_of_success(run: Path) -> None:
    (run / "_SUCCESS").unlink()
    found = inspect_run(run)
    assert found.facts["complete"] is False
    assert next(iter(found.tables)) == f"{run}: a run, NOT complete (1 of 1 parts), every file as written"
    (run / "_SUCCESS").touch()
    (run / "receipts" / "part-00000.json").unlink()
    facts = inspect_run(run).facts
    assert (facts["complete"], facts["parts_done"], facts["users"], facts["files"]) == (False, 0, 0, {})


def test_files_that_are_not_as_written(run: Path) -> None:
    file = run / "data" / "part-00000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert refusal(run) == f"{file} is not the file that was written: size or SHA-256 differs. Score again."
    file.unlink()
    assert refusal(run) == f"{file} is missing from this run. Score again."


@pytest.mark.parametrize("name", ["manifest.json", "receipts/part-00000.json"])
def test_files_of_another_macrid(name: str, run: Path) -> None:
    fields = json.loads((run / name).read_bytes())
    (run / name).write_text(json.dumps({**fields, "surprise": 1}))
    remedy = "Score again with this version."
    assert refusal(run) == (
        f"{run / name} is not what this macrid writes: surprise: Extra inputs are not permitted. {remedy}"
    )
    (run / name).write_text("{")
    assert refusal(run).startswith(f"{run / name} is not what this macrid writes: Invalid JSON: ")
