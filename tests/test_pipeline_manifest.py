from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, JobError
from pipeline.folder import check_unchanged
from pipeline.manifest import (
    FileDigest,
    Manifest,
    check_files,
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
        (
            '{"kind": "note"}'.encode("utf-16-le"),
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        (b'{"kind": "note", "kind": "note"}', "the key 'kind' is there twice"),
        (b'{"files": {"a": {"size": 1, "size": 2}}}', "the key 'size' is there twice"),
        (b'{"size": NaN}', "the number 'NaN' is not finite"),
        (b'{"size": -Infinity}', "the number '-Infinity' is not finite"),
        (b'{"size": 1e999}', "the number '1e999' is not finite"),
        (b'{"kind": "note"} {}', "Extra data: line 1 column 18 (char 17)"),
    ],
)
def test_not_json(content: bytes, reason: str, note: Path) -> None:
    path = note / "manifest.json"
    path.write_bytes(content)
    assert refusal(note) == f"{path} is not JSON: {reason}. Write the note again."


def test_a_number_too_long(note: Path) -> None:
    (note / "manifest.json").write_bytes(b'{"size": ' + b"9" * 5000 + b"}")
    assert refusal(note).startswith(f"{note / 'manifest.json'} is not JSON: Exceeds the limit (4300 digits)")


@pytest.mark.parametrize(("opening", "depth"), [(b"[", 100_000), (b'{"a":', 100_000), (b"[", 900)])
def test_nested_too_deeply(opening: bytes, depth: int, note: Path) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    nested = opening * depth + b"1" + closing * depth
    (note / "manifest.json").write_bytes(b'{"kind": "note", "format_version": 3, "author": ' + nested + b"}")
    assert re.fullmatch(
        rf"{note}/manifest\.json is not a valid manifest: "
        r"(it is nested too deeply|the text: Invalid JSON: recursion limit exceeded at line 1 column \d+)"
        r"\. Write the note again\.",
        refusal(note),
    )
    assert directory_kind(note) in (None, "note")


def test_a_manifest_too_large(note: Path) -> None:
    with (note / "manifest.json").open("ab") as file:
        file.truncate(2**24 + 1)
    assert refusal(note) == f"{note / 'manifest.json'} has 16777217 bytes; 16777216 are the most. Write the note again."


def test_a_long_and_unprintable_field(note: Path) -> None:
    edit(note, **{"\x1b[2J" + "x" * 1000: 1})
    assert refusal(note) == (
        f"{note / 'manifest.json'} is not a valid manifest: '\\x1b[2J{'x' * 192}: Extra inputs are not permitted. "
        "Write the note again."
    )


@pytest.mark.parametrize("version", [True, 3.0, "3", None, [3]])
def test_a_format_version_of_another_type(version: Any, note: Path) -> None:
    edit(note, format_version=version)
    assert refusal(note) == (
        f"{note / 'manifest.json'} says kind 'note', format version {version!r}; this macrid reads kind 'note', "
        "format version 3. Name a note, or write it again with this version."
    )


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
    assert refusal(note) == (
        f"{note / 'cover.txt'} is a folder, pipe, socket or device; a note holds plain files only. "
        "Write the note again."
    )


def test_a_file_in_place_of_a_folder(note: Path) -> None:
    shutil.rmtree(note / "pages")
    (note / "pages").write_bytes(b"")
    assert refusal(note) == f"{note / 'pages'} does not belong to this note: manifest.json does not name it. Remove it."


def test_a_folder_that_is_missing(note: Path) -> None:
    shutil.rmtree(note / "pages")
    assert refusal(note) == f"{note / 'pages' / 'one.txt'} is missing from this note. Write the note again."


@pytest.mark.parametrize("deep", [1, 1500])
def test_a_folder_too_many(deep: int, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep: it is not entered."""
    monkeypatch.chdir(note)
    for _ in range(deep):
        Path("d").mkdir()
        os.chdir("d")
    monkeypatch.chdir(note)
    assert refusal(note) == f"{note / 'd'} does not belong to this note: manifest.json does not name it. Remove it."
    subprocess.run(["rm", "-r", "d"], cwd=note, check=True)  # the fixture's own cleaning recurses


@pytest.mark.parametrize("name", ["cover.txt", "manifest.json"])
def test_a_pipe_in_place_of_a_file(name: str, note: Path) -> None:
    """Reading it would wait for ever."""
    (note / name).unlink()
    os.mkfifo(note / name)
    assert refusal(note) == (
        f"{note / name} is a folder, pipe, socket or device; a note holds plain files only. Write the note again."
    )


def test_a_pipe_too_many(note: Path) -> None:
    os.mkfifo(note / "pipe")
    assert refusal(note) == f"{note / 'pipe'} does not belong to this note: manifest.json does not name it. Remove it."


def test_a_folder_in_place_of_the_manifest(note: Path) -> None:
    (note / "manifest.json").unlink()
    (note / "manifest.json").mkdir()
    assert refusal(note) == (
        f"{note / 'manifest.json'} is a folder, pipe, socket or device; a note holds plain files only. "
        "Write the note again."
    )


@pytest.mark.parametrize("name", ["", "pages", "cover.txt", "manifest.json"])
def test_what_may_not_be_read(name: str) -> None:
    """Root may read everything, so it becomes somebody else for a moment."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "note"
        (folder / "pages").mkdir(parents=True)
        (folder / "cover.txt").write_bytes(b"cover")
        (folder / "pages" / "one.txt").write_bytes(b"page one")
        write_manifest(folder, NoteManifest(files=digests(folder), versions={}, author="Ada"))
        Path(parent).chmod(0o755)
        (folder / name).chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            said = refusal(folder)
        finally:
            os.seteuid(user)
            (folder / name).chmod(0o755)
        unreadable = folder / (name or "manifest.json")
        assert said == f"{unreadable} cannot be read: Permission denied. Check its permissions and the disk."


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


OUTSIDE = [
    *("../secret.txt", "pages/../../secret.txt", "..", ".", "", "/", "./cover.txt", "pages//one.txt", "pages/"),
    *("..\\secret.txt", "C:secret.txt", "C:\\secret.txt", "\\\\server\\secret.txt", "cover.txt:stream"),
    *("secret\0.txt", "\x1b[2Jcover.txt", "cover\n.txt"),
]


@pytest.mark.parametrize("name", [*OUTSIDE, None], ids=repr)
def test_a_path_outside(name: str | None, note: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    name = str(secret) if name is None else name
    files = json.loads((note / "manifest.json").read_bytes())["files"]
    edit(note, files={**files, name: digest(secret).model_dump()})
    assert refusal(note) == (
        f"{note / 'manifest.json'} names {name!r:.200}, which is not a path inside the note. Write the note again."
    )


def test_a_path_too_long(note: Path) -> None:
    files = json.loads((note / "manifest.json").read_bytes())["files"]
    edit(note, files={**files, "x" * 300: files["cover.txt"]})
    assert refusal(note) == (
        f"{note / ('x' * 300)} cannot be read: File name too long. Check its permissions and the disk."
    )


def test_a_file_named_as_a_folder_as_well(note: Path) -> None:
    files = json.loads((note / "manifest.json").read_bytes())["files"]
    edit(note, files={**files, "pages": {"size": (note / "pages").stat().st_size, "sha256": ""}})
    assert refusal(note) == f"{note / 'pages'} cannot be read: Is a directory. Check its permissions and the disk."


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "note").symlink_to(tmp_path / "note")
    path = tmp_path / "note" / "manifest.json"
    assert refusal(tmp_path / "note") == (
        f"{path} cannot be read: Too many levels of symbolic links. Check its permissions and the disk."
    )


def test_what_somebody_writes_to_or_replaces_after_the_check(note: Path, tmp_path: Path) -> None:
    """The same content again, or the same file moved away and back, is noticed too."""
    shutil.copytree(note, tmp_path / "copy")
    page = note / "pages" / "one.txt"

    def rewrite() -> None:
        page.write_bytes(b"page two")

    def restore_the_time() -> None:
        times = (page.stat().st_atime_ns, page.stat().st_mtime_ns)
        page.write_bytes(b"page two")
        os.utime(page, ns=times)

    def exchange() -> None:
        note.rename(tmp_path / "former")
        (tmp_path / "copy").rename(note)

    def remove() -> None:
        page.unlink()

    for change in (rewrite, restore_the_time, exchange, remove):
        stamps = check_files(note, read_manifest(note, NoteManifest))
        check_unchanged(note, stamps)
        time.sleep(0.02)  # longer than a tick of the file system's clock
        change()
        with pytest.raises(JobError) as error:
            check_unchanged(note, stamps)
        assert re.fullmatch(
            rf"{note}/(cover|pages/one)\.txt was replaced or written to while it was being opened\. Run again\.",
            str(error.value),
        )
        if change is not remove:
            page.write_bytes(b"page one")


def test_the_kind_of_a_directory(note: Path, tmp_path: Path) -> None:
    assert directory_kind(note) == "note"
    assert directory_kind(tmp_path) is None
    assert directory_kind(tmp_path / "absent") is None
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        (note / "manifest.json").write_bytes(content)
        assert directory_kind(note) is None
    (note / "manifest.json").unlink()
    os.mkfifo(note / "manifest.json")
    assert directory_kind(note) is None
