"""Run: the directory that one scoring job writes.

    manifest.json             written first: digests of the bundle and the input, options, number of parts
    data/part-00000.parquet   recommendations, sorted by user and rank (see scoring/output.py)
    users/part-00000.parquet  every user once, sorted, and what became of them
    quarantine/part-00000.parquet  rows and files of the input that were set aside, if any (see scoring/quarantine.py)
    receipts/part-00000.json  what the part accounts for, and the digests of its two files
    summary.json              the sum over all parts
    _SUCCESS                  empty, written last

No file holds a time or says how the job went: the same bundle, input and options give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt

from pipeline.interactions import Source
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import FileDigest, digest, versions
from scoring.item_list import ItemList

MARKER = "receipts/part-00000.json"
"""What only a run holds: a folder without it is never replaced by one."""
SUMMARY = "summary.json"
SUCCESS = "_SUCCESS"

_RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torch", "pt2": "torch"}


class Options(BaseModel, extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True):
    """What the caller chose."""

    k: PositiveInt = 100
    """Recommendations per user, at most."""
    keep_seen: bool = False
    """Whether items of the user's own history may be recommended."""
    fallback: Literal["popular", "none"] = "popular"
    """What users without any known item get: the most popular items of training, or nothing."""
    where: str | None = None
    """SQL expression over the columns of the bundle's items; only items for which it is true are recommended."""
    caps: dict[str, PositiveInt] = {}
    """By column of the bundle's items, how many items of one value a user gets, at most."""
    layout: Literal["long", "nested"] = "long"
    """One row per recommendation, or one per user with lists."""
    format: Literal["onnx", "torchscript", "pt2"] = "onnx"
    """Which graph of the bundle was opened."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it ran."""


class InputDigest(BaseModel, extra="forbid", frozen=True, strict=True):
    """What was read."""

    location: str
    """As the caller typed it."""
    files: dict[str, FileDigest]
    """By their path below the location (of a glob: below the folder that holds them all)."""


class RunManifest(BaseModel, extra="forbid", frozen=True, strict=True):
    """Everything that decides the bytes of a run. Its files have their digests in the receipts."""

    kind: Literal["run"] = "run"
    format_version: Literal[1] = 1
    bundle: FileDigest
    """Of the bundle's manifest, and so of all its files."""
    input: InputDigest
    history: InputDigest | None
    exclude: InputDigest | None
    lists: dict[str, ItemList]
    """`allow` and `deny`, where given."""
    options: Options
    n_parts: int
    versions: dict[str, str]


class Summary(BaseModel, extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True):
    """What a part, or a whole run, accounts for."""

    scored: int
    """Users with at least one item that the model knows."""
    cold: int
    """Users without a history."""
    unknown: int
    """Users with a history of which the model knows no item."""
    not_asked_for: int
    """Users of `--history` that the input does not name; they are left out."""
    interactions: int
    """Read, repeated ones and those of users left out included."""
    history_items: int
    """Distinct items of the histories of the users above."""
    known_items: int
    """Those of them that the model knows; the others were dropped."""
    excluded: int
    """Pairs of `--exclude` about a user of the input and an item that the model knows."""
    exclusions_without_effect: int
    """The other pairs of `--exclude`."""
    empty: int
    """Users without a recommendation."""
    recommendations: int
    rows: int
    """Of `data/`."""

    @property
    def users(self) -> int:
        """Users accounted for, each user of the input once."""
        return self.scored + self.cold + self.unknown


class Churn(BaseModel, extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True):
    """The difference between two runs."""

    users_compared: int
    """Users of both runs."""
    new_users: int
    vanished_users: int
    carried_over: int
    """Users who were not scored again, because nothing had changed in their part."""
    overlap: float
    """Mean over the users compared: items in both lists, of the longer list; 1 where both are empty."""
    new_items: int
    """Recommended to anyone now, to nobody before."""
    vanished_items: int
    """The reverse."""
    score_drift: float
    """Mean score of all recommendations now minus before."""
    concept_drift: float
    """Total variation distance, 0 to 1, between the concepts of all recommendations; none is a concept of its own.
    Concepts of another bundle have other numbers, so it means nothing across bundles."""


class RunSummary(Summary):
    """What a whole run accounts for."""

    candidates: int
    """Items that may be recommended."""
    recommended_items: int
    """Those of them that were, to anyone."""
    unknown_allowed: int
    """Ids of `--allow` that are no item of the bundle."""
    unknown_denied: int
    """Ids of `--deny` that are none."""
    quarantined: int
    """Rows, row groups and files of the input that were set aside in `quarantine/`."""
    churn: Churn | None = None
    """Against the run of `--since`, if there was one."""


class Receipt(BaseModel, extra="forbid", frozen=True, strict=True):
    """Proof of a finished part."""

    content: str
    """SHA-256 of the users of the part with their histories and exclusions: what decides its two files."""
    summary: Summary
    files: dict[str, FileDigest]


def describe_input(source: Source) -> InputDigest:
    """Digest every file of a source, those included that were set aside."""
    location, paths = Path(source.location), source.originals or source.files
    folder = location if location.is_dir() else Path(os.path.commonpath([file.parent for file in paths]))
    files = {file.relative_to(folder).as_posix(): digest(file) for file in paths}
    return InputDigest(location=source.location, files=files)


def scoring_versions(form: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide the bytes of a run of this format."""
    return versions("numpy", "polars", "pyarrow", _distribution(_RUNTIMES[form]))


def part_name(part: int) -> str:
    """Name of a part's files, without suffix; parts sort by name."""
    return f"part-{part:05}"


def start_run(folder: Path, manifest: RunManifest) -> None:
    """Write the manifest, and make the folders of the parts."""
    _write(folder / MANIFEST, manifest)
    for name in ("data", "users", "receipts"):
        (folder / name).mkdir()


def write_receipt(folder: Path, part: int, content: str, summary: Summary) -> None:
    """Vouch for the two files of a finished part."""
    names = [f"{kind}/{part_name(part)}.parquet" for kind in ("data", "users")]
    receipt = Receipt(content=content, summary=summary, files={name: digest(folder / name) for name in names})
    _write(folder / "receipts" / f"{part_name(part)}.json", receipt)


def totals(summaries: Iterable[Summary]) -> dict[str, Any]:
    """The sum over parts of each field of `Summary`."""
    parts = [summary.model_dump() for summary in summaries]
    return {field: sum(part[field] for part in parts) for field in Summary.model_fields}


def write_summary(folder: Path, summaries: Iterable[Summary], **facts: Any) -> RunSummary:
    """Write the sum over all parts with the other facts of a `RunSummary`."""
    total = RunSummary(**totals(summaries), **facts)
    _write(folder / SUMMARY, total)
    return total


def finish_run(folder: Path) -> None:
    """Mark the run as complete."""
    (folder / SUCCESS).touch()


@cache
def _distribution(module: str) -> str:
    """What installed a module: ONNX Runtime comes from one of several packages."""
    return sorted(packages_distributions()[module])[0]


def _write(path: Path, content: BaseModel) -> None:
    path.write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")
