"""Manifest: what a directory of ours says about itself, and the proof that its files are the ones that were written.

A checkpoint, a bundle and a run each hold one `manifest.json`. It names every other file with its size and SHA-256;
reading checks them all, so a truncated, edited, swapped, missing or added file is refused by name before anything is
used.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError

NAME = "manifest.json"


class FileDigest(BaseModel, extra="forbid", frozen=True, strict=True):
    """One file of the directory."""

    size: int
    """Bytes."""
    sha256: str


class Manifest(BaseModel, extra="forbid", frozen=True, strict=True):
    """Fields of every manifest; each kind of directory adds its own."""

    kind: str
    """checkpoint, bundle or run."""
    format_version: int
    files: dict[str, FileDigest]
    """Every other file of the directory, by its path inside it."""
    versions: dict[str, str]
    """Of Python and of the packages that made the files."""


M = TypeVar("M", bound=Manifest)


def digest(path: Path) -> FileDigest:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileDigest(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def digests(directory: Path) -> dict[str, FileDigest]:
    """Of all files below a directory but its manifest, in order of their names."""
    paths = sorted(path for path in directory.rglob("*") if not path.is_dir())
    names = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: digest(path) for name, path in names.items() if name != NAME}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, this project and the named packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("macrid", *packages)}}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the same bytes for the same content."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    (directory / NAME).write_text(text, encoding="utf-8")


def directory_kind(directory: Path) -> object:
    """What a directory's manifest calls itself, unchecked; None without a readable manifest."""
    try:
        return json.loads((directory / NAME).read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        return None


def read_manifest(directory: Path, kind: type[M]) -> M:
    """Read a directory's manifest and check every file against it.

    Raises:
        InputError: the directory or its manifest is missing, of another kind or format version, or a file is missing,
            extra, a symbolic link, or not the one that was written.
    """
    wanted, known = kind.model_fields["kind"].default, kind.model_fields["format_version"].default
    path = directory / NAME
    if not path.is_file():
        raise InputError(f"{directory} is not a {wanted}: it has no {NAME}. Name the folder a {wanted} was written to.")
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}. Write the {wanted} again.") from None
    found = (fields.get("kind"), fields.get("format_version")) if isinstance(fields, dict) else (None, None)
    if found != (wanted, known):
        raise InputError(
            f"{path} says kind {found[0]!r}, format version {found[1]!r}; this macrid reads kind {wanted!r}, "
            f"format version {known}. Name a {wanted}, or write it again with this version."
        )
    try:
        manifest = kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is not a valid manifest: {field}: {first['msg']}. Write the {wanted} again."
        ) from None
    _check_files(directory, manifest.files, wanted)
    return manifest


def _check_files(directory: Path, files: dict[str, FileDigest], kind: str) -> None:
    remedy = f"Write the {kind} again."
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link; a {kind} holds plain files only. {remedy}")
        if not path.is_dir() and name not in files and name != NAME:
            raise InputError(f"{path} does not belong to this {kind}: {NAME} does not name it. Remove it.")
    for name, written in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise InputError(f"{directory / NAME} names {name}, which lies outside the {kind}. {remedy}")
        if not path.is_file():
            raise InputError(f"{path} is missing from this {kind}. {remedy}")
        if path.stat().st_size != written.size:
            raise InputError(f"{path} has {path.stat().st_size} bytes; {written.size} were written. {remedy}")
        if digest(path) != written:
            raise InputError(f"{path} has changed since it was written (its SHA-256 differs). {remedy}")
