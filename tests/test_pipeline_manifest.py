from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.manifest import (
    FileDigest,
    Manifest,
    digest,
    digests,
    directory_kind,
    read_manifest,
    versions,
    write_manifest,
)


class NoteManifest(Manifest):
    kind: Literal["note"] = "note"
    format_version: Literal[3] = 3
    author: str


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A folder with two files and its manifest."""
    folder = tmp_path / "note"
    (folder / "pages").mkdir(parents=True)
    (folder / "cover.txt").write_bytes(b"cover")
    (folder / "pages" / "one.txt").write_bytes(b"page one")
    write_manifest(folder, NoteManifest(files=digests(folder), versions={"python": "3.11.0"}, author="Ada"))
    return folder


def edit(folder: Path, **fields: Any) -> None:
    """Overwrite fields of a manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_manifest(folder, NoteManifest)
    return str(error.value)


def test_round_trip(note: Path) -> None:
    assert read_manifest(note, NoteManifest) == NoteManifest(
        kind="note",
        format_version=3,
        files={
            "cover.txt": FileDigest(size=5, sha256=hashlib.sha256(b"cover").hexdigest()),
            "pages/one.txt": FileDigest(size=8, sha256=hashlib.sha256(b"page one").hexdigest()),
        },
        versions={"python": "3.11.0"},
        author="Ada",
    )


def test_the_same_content_is_the_same_text(tmp_path: Path) -> None:
    ones = {name: FileDigest(size=1, sha256="0") for name in ("b", "a")}
    manifest = NoteManifest(files=ones, versions={}, author="Ærø")
    other = NoteManifest(files=dict(reversed(ones.items())), versions={}, author="Ærø")
    texts = []
    for one in (manifest, other):
        write_manifest(tmp_path, one)
        texts.append((tmp_path / "manifest.json").read_bytes())
    assert texts[0] == texts[1]
    assert texts[0].endswith(b"}\n")
    assert NoteManifest.model_validate_json(texts[0]) == manifest


def test_digest_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert digest(path) == FileDigest(size=3_000_000, sha256=hashlib.sha256(b"abc" * 1_000_000).hexdigest())


def test_digests_name_files_in_folders_and_leave_out_the_manifest_itself(note: Path) -> None:
    (note / "pages" / "manifest.json").write_bytes(b"")
    (note / "empty").mkdir()
    assert list(digests(note)) == ["cover.txt", "pages/manifest.json", "pages/one.txt"]


def test_versions() -> None:
    assert versions("numpy", "torch") == {
        "python": platform.python_version(),
        "macrid": version("macrid"),
        "numpy": version("numpy"),
        "torch": version("torch"),
    }


@pytest.mark.parametrize("missing", ["folder", "manifest"])
def test_no_manifest(missing: str, tmp_path: Path) -> None:
    folder = tmp_path / "note"
    if missing == "manifest":
        folder.mkdir()
    assert refusal(folder) == (
        f"{folder} is not a note: it has no manifest.json. Name the folder a note was written to."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"kind": "note"', "Expecting ',' delimiter: line 1 column 16 (char 15)"),
        (b"\xff{}", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_not_json(content: bytes, reason: str, note: Path) -> None:
    path = note / "manifest.json"
    path.write_bytes(content)
    assert refusal(note) == f"{path} is not JSON: {reason}. Write the note again."


def test_another_kind(note: Path) -> None:
    edit(note, kind="bundle", format_version=1)
    assert refusal(note) == (
        f"{note / 'manifest.json'} says kind 'bundle', format version 1; this macrid reads kind 'note', "
        "format version 3. Name a note, or write it again with this version."
    )


def test_another_format_version(note: Path) -> None:
    edit(note, format_version=4, author=None, pages=[])
    assert refusal(note) == (
        f"{note / 'manifest.json'} says kind 'note', format version 4; this macrid reads kind 'note', "
        "format version 3. Name a note, or write it again with this version."
    )


@pytest.mark.parametrize("content", ["[1, 2]", "{}", "null"])
def test_json_of_something_else(content: str, note: Path) -> None:
    (note / "manifest.json").write_text(content)
    assert refusal(note) == (
        f"{note / 'manifest.json'} says kind None, format version None; this macrid reads kind 'note', "
        "format version 3. Name a note, or write it again with this version."
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"author": 7}, "author: Input should be a valid string"),
        ({"editor": "Bob"}, "editor: Extra inputs are not permitted"),
        (
            {"files": {"cover.txt": {"size": "5", "sha256": ""}}},
            "files.cover.txt.size: Input should be a valid integer",
        ),
        ({"files": {"cover.txt": {"size": 5}}}, "files.cover.txt.sha256: Field required"),
    ],
)
def test_a_field_that_does_not_fit(fields: dict[str, Any], problem: str, note: Path) -> None:
    edit(note, **fields)
    assert refusal(note) == f"{note / 'manifest.json'} is not a valid manifest: {problem}. Write the note again."


def test_a_file_is_missing(note: Path) -> None:
    (note / "pages" / "one.txt").unlink()
    assert refusal(note) == f"{note / 'pages' / 'one.txt'} is missing from this note. Write the note again."


def test_a_folder_in_place_of_a_file(note: Path) -> None:
    (note / "cover.txt").unlink()
    (note / "cover.txt").mkdir()
    assert refusal(note) == f"{note / 'cover.txt'} is missing from this note. Write the note again."


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "pages/two.txt", "pages/manifest.json"])
def test_a_file_too_many(name: str, note: Path) -> None:
    (note / name).write_bytes(b"")
    assert refusal(note) == f"{note / name} does not belong to this note: manifest.json does not name it. Remove it."


@pytest.mark.parametrize("name", ["cover.txt", "pages", "manifest.json", "more"])
def test_a_symbolic_link(name: str, note: Path, tmp_path: Path) -> None:
    """Even to what would otherwise be the right content."""
    link, elsewhere = note / name, tmp_path / "elsewhere"
    if link.exists():
        link.rename(elsewhere)
    link.symlink_to(elsewhere)
    assert refusal(note) == f"{link} is a symbolic link; a note holds plain files only. Write the note again."


def test_the_folder_itself_may_be_a_link(note: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(note)
    assert read_manifest(tmp_path / "latest", NoteManifest) == read_manifest(note, NoteManifest)


@pytest.mark.parametrize("content", [b"", b"cove", b"covers"])
def test_another_size(content: bytes, note: Path) -> None:
    (note / "cover.txt").write_bytes(content)
    assert refusal(note) == f"{note / 'cover.txt'} has {len(content)} bytes; 5 were written. Write the note again."


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 7), st.integers(1, 255))
def test_any_changed_byte(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    folder = tmp_path_factory.mktemp("note")
    content = bytearray(b"page one")
    (folder / "one.txt").write_bytes(content)
    write_manifest(folder, NoteManifest(files=digests(folder), versions={}, author="Ada"))
    content[at] ^= flip
    (folder / "one.txt").write_bytes(content)
    assert refusal(folder) == (
        f"{folder / 'one.txt'} has changed since it was written (its SHA-256 differs). Write the note again."
    )


@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_outside(absolute: bool, note: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    name = str(secret) if absolute else "../secret.txt"
    files = json.loads((note / "manifest.json").read_bytes())["files"]
    edit(note, files={**files, name: digest(secret).model_dump()})
    assert refusal(note) == (
        f"{note / 'manifest.json'} names {name}, which lies outside the note. Write the note again."
    )


def test_the_kind_of_a_directory(note: Path, tmp_path: Path) -> None:
    assert directory_kind(note) == "note"
    assert directory_kind(tmp_path) is None
    assert directory_kind(tmp_path / "absent") is None
    for content in (b"", b"[]", b"{}", b"\xff"):
        (note / "manifest.json").write_bytes(content)
        assert directory_kind(note) is None
