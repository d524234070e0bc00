"""Manifest: what a directory of ours says about itself, and the proof that its files are the ones that were written.

A checkpoint, a bundle and a run each hold one `manifest.json`. It names every other file with its size and SHA-256;
reading checks them all, so a truncated, edited, swapped, missing or added file is refused by name before anything is
used. Whatever else a folder can hold in place of its files (links, pipes, folders, JSON made to confuse) is refused by
name as well; only the folder itself may be a symbolic link, because that is how deployments switch releases.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import reprlib
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.folder import Stamp, check_entries, lies_inside, plain_bytes, reading

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
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(size=os.fstat(file.fileno()).st_size, sha256=sha256)


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
        fields = _fields(plain_bytes(directory / NAME, "folder"))
    except (OSError, InputError, ValueError, RecursionError):
        return None
    return fields.get("kind") if isinstance(fields, dict) else None


def read_manifest(directory: Path, kind: type[M]) -> M:
    """Read a directory's manifest and check every file against it.

    Raises:
        InputError: as `manifest_bytes`, `parse_manifest` and `check_files`.
    """
    manifest = parse_manifest(directory, manifest_bytes(directory, kind), kind)
    check_files(directory, manifest)
    return manifest


def manifest_bytes(directory: Path, kind: type[Manifest]) -> bytes:
    """The content of a directory's manifest, read once: what is verified, parsed and digested are the same bytes.

    Raises:
        InputError: the directory or its manifest is missing, not a plain file, too large, or cannot be read.
    """
    wanted = kind.model_fields["kind"].default
    try:
        with reading(directory):
            return plain_bytes(directory / NAME, wanted)
    except FileNotFoundError:
        raise InputError(
            f"{directory} is not a {wanted}: it has no {NAME}. Name the folder a {wanted} was written to."
        ) from None


def parse_manifest(directory: Path, content: bytes, kind: type[M]) -> M:
    """The manifest that these bytes are.

    Raises:
        InputError: they are not JSON (UTF-8, every key once, finite numbers), or a manifest of another kind or format
            version, or a field is missing, unknown or of another type.
    """
    wanted, known = kind.model_fields["kind"].default, kind.model_fields["format_version"].default
    path = directory / NAME
    try:
        fields = _fields(content)
    except RecursionError:
        raise InputError(
            f"{path} is not a valid manifest: it is nested too deeply. Write the {wanted} again."
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}. Write the {wanted} again.") from None
    found = (fields.get("kind"), fields.get("format_version")) if isinstance(fields, dict) else (None, None)
    # 1 == True == 1.0, but only the first is a format version.
    if found != (wanted, known) or type(found[1]) is not int:
        kind_found, version_found = map(reprlib.repr, found)
        raise InputError(
            f"{path} says kind {kind_found}, format version {version_found}; this macrid reads kind {wanted!r}, "
            f"format version {known}. Name a {wanted}, or write it again with this version."
        )
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the text"
        where = field if field.isprintable() else repr(field)
        raise InputError(
            f"{path} is not a valid manifest: {where:.200}: {first['msg']}. Write the {wanted} again."
        ) from None


def check_files(directory: Path, manifest: Manifest, beside: Collection[str] = ()) -> dict[str, Stamp]:
    """Hold every file of a directory against its manifest.

    Args:
        directory: the folder.
        manifest: of it.
        beside: names of files that it may hold beside those the manifest names.

    Returns:
        The stamp of each file, taken before it was hashed: where it is still the same after loading, what was loaded is
        what was verified (see `folder.check_unchanged`).

    Raises:
        InputError: a file is missing, extra, not a plain file, cannot be read, or is not the one that was written.
    """
    with reading(directory):
        _check_names(directory, manifest)
        check_entries(directory, {NAME, *beside, *manifest.files}, manifest.kind)
        return {name: _check_file(directory / name, was, manifest.kind) for name, was in manifest.files.items()}


def _fields(content: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, finite numbers; and no key twice, of which readers take either.

    Raises:
        ValueError: saying what is wrong.
        RecursionError: too deep.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {reprlib.repr(key)} is there twice")
        fields[key] = value
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {reprlib.repr(text)} is not finite")
    return number


def _check_names(directory: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if not lies_inside(name):
            raise InputError(
                f"{directory / NAME} names {name!r:.200}, which is not a path inside the {manifest.kind}. "
                f"Write the {manifest.kind} again."
            )


def _check_file(path: Path, written: FileDigest, kind: str) -> Stamp:
    remedy = f"Write the {kind} again."
    try:
        stamp = Stamp.of(path)
        found = digest(path) if stamp.size == written.size else None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing from this {kind}. {remedy}") from None
    if found is None:
        raise InputError(f"{path} has {stamp.size} bytes; {written.size} were written. {remedy}")
    if found != written:
        raise InputError(f"{path} has changed since it was written (its SHA-256 differs). {remedy}")
    return stamp
