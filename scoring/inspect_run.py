"""What a run holds, and whether it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.inspection import Inspection, Tables, file_rows
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import FileDigest, digest
from scoring.run import SUCCESS, InputDigest, Receipt, RunManifest, Summary, part_name, totals

M = TypeVar("M", bound=BaseModel)


def inspect_run(path: Path) -> Inspection:
    """Open a run, the files of every finished part verified, and describe it.

    The JSON adds to the manifest's fields: `complete`, `parts_done`, `users`, `summary` (the sum of the finished parts,
    see `scoring.run.Summary`) and `files`.

    Raises:
        InputError: the manifest or a receipt cannot be read, or a file is missing or not the one that was written.
    """
    manifest = _read(path / MANIFEST, RunManifest)
    parts = [path / "receipts" / f"{part_name(part)}.json" for part in range(manifest.n_parts)]
    receipts = [_read(part, Receipt) for part in parts if part.is_file()]
    files = {name: written for receipt in receipts for name, written in receipt.files.items()}
    _check_files(path, files)
    summary = Summary(**totals(receipt.summary for receipt in receipts))
    complete = len(receipts) == manifest.n_parts and (path / SUCCESS).is_file()
    facts = {
        "path": str(path),
        **manifest.model_dump(mode="json"),
        "complete": complete,
        "parts_done": len(receipts),
        "users": summary.users,
        "summary": summary.model_dump(),
        "files": {name: file.model_dump() for name, file in files.items()},
    }
    state = "complete" if complete else f"NOT complete ({len(receipts):,} of {manifest.n_parts:,} parts)"
    tables: Tables = {
        f"{path}: a run, {state}, every file as written": {"users": summary.users, **summary.model_dump()},
        "Made from": _origin(manifest),
        "Files": file_rows(files),
    }
    return Inspection(facts, tables)


def _read(path: Path, kind: type[M]) -> M:
    remedy = "Score again with this version."
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"{path} is not what this macrid writes: {problem}. {remedy}") from None


def _check_files(directory: Path, files: dict[str, FileDigest]) -> None:
    for name, written in files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing from this run. Score again.")
        if path.stat().st_size != written.size or digest(path) != written:
            raise InputError(f"{path} is not the file that was written: size or SHA-256 differs. Score again.")


def _origin(manifest: RunManifest) -> dict[str, object]:
    origin: dict[str, object] = {"SHA-256 of the bundle": manifest.bundle.sha256, "input": _named(manifest.input)}
    if manifest.history is not None:
        origin["history"] = _named(manifest.history)
    return {**origin, **manifest.options.model_dump(), "parts": manifest.n_parts, **manifest.versions}


def _named(source: InputDigest) -> str:
    sizes = [file.size for file in source.files.values()]
    return f"{source.location} (files: {len(sizes):,}, bytes: {sum(sizes):,})"
