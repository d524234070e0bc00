from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.interactions import open_source
from pipeline.manifest import digest
from scoring.run import (
    InputDigest,
    Options,
    Receipt,
    RunManifest,
    RunSummary,
    Summary,
    describe_input,
    finish_run,
    part_name,
    scoring_versions,
    start_run,
    write_receipt,
    write_summary,
)


def manifest(folder: Path) -> RunManifest:
    file = folder / "users.parquet"
    pl.DataFrame({"user_id": [1], "item_id": [2]}).write_parquet(file)
    return RunManifest(
        bundle=digest(file),
        input=describe_input(open_source(str(file))),
        history=None,
        exclude=None,
        lists={},
        options=Options(k=5),
        n_parts=2,
        versions={"python": "3"},
    )


def summary(start: int) -> Summary:
    return Summary(**{field: start + at for at, field in enumerate(Summary.model_fields)})


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_is_its_manifest_then_its_parts_then_the_mark_of_success(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    start_run(run, manifest(tmp_path))
    assert files(run) == ["manifest.json"]
    for part in range(2):
        for kind in ("data", "users"):
            (run / kind / f"{part_name(part)}.parquet").write_text(f"{kind} {part}")
        write_receipt(run, part, f"content {part}", summary(part))
    facts: dict[str, Any] = {
        "candidates": 7,
        "recommended_items": 6,
        "unknown_allowed": 8,
        "unknown_denied": 9,
        "quarantined": 10,
        "churn": None,
    }
    total = write_summary(run, [summary(0), summary(1)], **facts)
    assert not (run / "_SUCCESS").exists()
    finish_run(run)
    assert files(run) == [
        "_SUCCESS",
        "data/part-00000.parquet",
        "data/part-00001.parquet",
        "manifest.json",
        "receipts/part-00000.json",
        "receipts/part-00001.json",
        "summary.json",
        "users/part-00000.parquet",
        "users/part-00001.parquet",
    ]
    assert (run / "_SUCCESS").read_bytes() == b""
    assert list(total.model_dump().values()) == [*range(1, 24, 2), *facts.values()]
    assert total.users == 1 + 3 + 5
    assert RunSummary.model_validate_json((run / "summary.json").read_bytes()) == total
    assert RunManifest.model_validate_json((run / "manifest.json").read_bytes()) == manifest(tmp_path)
    receipt = Receipt.model_validate_json((run / "receipts/part-00001.json").read_bytes())
    assert (receipt.content, receipt.summary) == ("content 1", summary(1))
    assert receipt.files == {
        f"{kind}/part-00001.parquet": digest(run / f"{kind}/part-00001.parquet") for kind in ("data", "users")
    }


def test_the_manifest_is_plain_json_that_says_what_was_read_and_chosen(tmp_path: Path) -> None:
    start_run(tmp_path, manifest(tmp_path))
    text = (tmp_path / "manifest.json").read_text()
    file = tmp_path / "users.parquet"
    content = json.loads(text)
    assert text.endswith("}\n")
    assert content["kind"] == "run"
    assert content["format_version"] == 1
    assert content["input"] == {
        "location": str(file),
        "files": {"users.parquet": {"size": file.stat().st_size, "sha256": digest(file).sha256}},
    }
    assert content["history"] is None
    assert content["options"] == {
        "k": 5,
        "keep_seen": False,
        "fallback": "popular",
        "where": None,
        "caps": {},
        "layout": "long",
        "format": "onnx",
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("location", "names"),
    [
        ("in", ["day=1/a.parquet", "day=2/a.parquet"]),
        ("in/day=*/a.parquet", ["day=1/a.parquet", "day=2/a.parquet"]),
        ("in/day=2/*.parquet", ["a.parquet"]),
        ("in/day=1", ["a.parquet"]),
        ("in/day=1/a.parquet", ["a.parquet"]),
    ],
)
def test_input_files_are_named_below_the_location(tmp_path: Path, location: str, names: list[str]) -> None:
    for day in (1, 2):
        file = tmp_path / "in" / f"day={day}" / "a.parquet"
        file.parent.mkdir(parents=True)
        pl.DataFrame({"user_id": [day], "item_id": [day]}).write_parquet(file)
    described = describe_input(open_source(str(tmp_path / location)))
    assert isinstance(described, InputDigest)
    assert described.location == str(tmp_path / location)
    assert list(described.files) == names
    source = open_source(str(tmp_path / location))
    assert list(described.files.values()) == [digest(file) for file in source.files]


def test_versions_name_the_runtime_of_the_format() -> None:
    assert set(scoring_versions("torchscript")) == {"python", "macrid", "numpy", "polars", "pyarrow", "torch"}
    (runtime,) = set(scoring_versions("onnx")) - {"python", "macrid", "numpy", "polars", "pyarrow"}
    assert runtime in ("onnxruntime", "onnxruntime-gpu")


@pytest.mark.parametrize("field", [{"k": 0}, {"fallback": "random"}, {"layout": "wide"}, {"device": "auto"}, {"n": 1}])
def test_options_refuse_what_has_no_meaning(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=rf"1 validation error for Options\n{next(iter(field))}\n"):
        Options.model_validate(field)


def test_parts_sort_by_name() -> None:
    names = [part_name(part) for part in range(1_024)]
    assert names == sorted(names)
    assert names[:2] == ["part-00000", "part-00001"]
