"""Publishing under kills: whatever line a process dies at, a reader finds nothing, the old or the new, never a part.

This file is also the program that dies: `python test_pipeline_publish.py FUNCTION PATH ...`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline import publish
from pipeline.errors import InputError
from pipeline.publish import check_directory, publish_directory, publish_file, scratch_directory

LINES = 2_000
NAMES = ["deep", "manifest.json", "part.bin"]


def write_version(path: Path, version: int) -> None:
    """Publish a file (`whole.bin`) or a folder (`whole`) whose every line says its version."""
    text = f"{version}\n" * LINES
    if path.suffix:
        publish_file(path, lambda file: file.write(text.encode()))
        return
    with publish_directory(path) as folder:
        (folder / "part.bin").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "part.bin").write_text(text)
        (folder / "manifest.json").write_text(text)


def read_version(path: Path) -> int | None:
    """The version that a reader sees, None when there is nothing; fails on anything that is not whole."""
    if not path.exists():
        return None
    files = [path]
    if not path.suffix:
        assert sorted(entry.name for entry in path.iterdir()) == NAMES
        files = [path / "manifest.json", path / "part.bin", path / "deep" / "part.bin"]
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert len(lines) == LINES * len(files)
    assert len(set(lines)) == 1
    return int(lines[0])


def hidden(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


def start_from(path: Path, before: int | None) -> None:
    """What is there when the publication begins: nothing, or an older version."""
    assert hidden(path.parent) == []
    if path.suffix:
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
    if before is not None:
        write_version(path, before)


def at_line(number: int, act: Callable[[FrameType], object]) -> Callable[..., Any]:
    """A trace function that acts before the given line executed in publish.py, counted from 1."""
    seen = 0

    def trace_line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        seen += event == "line"
        if event == "line" and seen == number:
            act(frame)
        return trace_line

    return lambda frame, _event, _: trace_line if frame.f_code.co_filename == publish.__file__ else None


def kill_at_every_line(path: Path, before: int | None, *, may_be_missing: bool) -> int:
    """Die at line 1, 2, 3... of a publication over `before`; after each death look, publish again, and look."""
    for number in range(1, 10_000):
        start_from(path, before)
        pid = os.fork()
        if pid == 0:
            sys.settrace(at_line(number, lambda _: os.kill(os.getpid(), signal.SIGKILL)))
            write_version(path, 2)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return number - 1
        seen = read_version(path)
        assert seen in (before, 2) or may_be_missing, f"line {number}: found {seen}"
        if seen is None and before is not None:
            with pytest.raises(ZeroDivisionError), publish_directory(path):
                raise ZeroDivisionError
            assert read_version(path) == before, f"line {number}: the older version does not come back"
        write_version(path, 3)
        assert read_version(path) == 3
    raise AssertionError("it never finished")


def interrupt_at_every_line(path: Path, before: int | None, *, may_be_missing: bool) -> int:
    """Like `kill_at_every_line` with Ctrl-C, which also leaves nothing hidden, unless it hits the sweeping itself."""
    sweeping = False

    def interrupt(frame: FrameType) -> None:
        nonlocal sweeping
        stack = traceback.extract_stack(frame)
        sweeping = any(place.line in ("_recover(path)", "_sweep(folder, path.name)") for place in stack)
        raise KeyboardInterrupt

    for number in range(1, 10_000):
        start_from(path, before)
        sweeping = False
        sys.settrace(at_line(number, interrupt))
        try:
            write_version(path, 2)
        except KeyboardInterrupt:
            sys.settrace(None)
        else:
            sys.settrace(None)
            return number - 1
        seen = read_version(path)
        assert seen in (before, 2) or (may_be_missing and sweeping), f"line {number}: found {seen}"
        assert sweeping or hidden(path.parent) == [], f"line {number}"
        write_version(path, 3)
        assert read_version(path) == 3
    raise AssertionError("it never finished")


def publish_for_ever(path: Path) -> None:
    for version in range(1_000_000):
        write_version(path, version)
        print(version, flush=True)


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """This file as a program."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def can_exchange(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "probe" / name).mkdir(parents=True)
    exchanged = publish._exchange(tmp_path / "probe" / "a", tmp_path / "probe" / "b")
    shutil.rmtree(tmp_path / "probe")
    if not exchanged:
        pytest.skip("this file system cannot exchange two names")


@pytest.mark.parametrize("before", ["nothing", "1"])
@pytest.mark.parametrize("death", ["kill_at_every_line", "interrupt_at_every_line"])
@pytest.mark.parametrize("name", ["whole.bin", "whole"])
def test_dying_at_any_line_leaves_the_old_or_the_new(
    tmp_path: Path, can_exchange: None, name: str, death: str, before: str
) -> None:
    with running(death, tmp_path / name, before, "exchange") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(out) >= 30, "lines at which it died"


@pytest.mark.parametrize("death", ["kill_at_every_line", "interrupt_at_every_line"])
def test_without_exchange_dying_at_any_line_leaves_the_old_the_new_or_nothing(tmp_path: Path, death: str) -> None:
    with running(death, tmp_path / "whole", "1", "renames") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(out) >= 30, "lines at which it died"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", ["whole.bin", "whole"])
def test_a_loop_stopped_at_any_moment_leaves_a_whole_version(
    tmp_path: Path, can_exchange: None, name: str, sent: signal.Signals
) -> None:
    path, pause = tmp_path / name, random.Random(0)
    for _ in range(3):
        with running("publish_for_ever", path) as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
            time.sleep(0.03 * pause.random())
            process.send_signal(sent)
            _, err = process.communicate(timeout=60)
        # A KeyboardInterrupt inside shutil.rmtree closes a descriptor twice; that OSError ends Python 3.11.
        assert process.returncode == -sent or (process.returncode == 1 and "KeyboardInterrupt" in err), err
        assert (read_version(path) or 0) >= 2
    write_version(path, 7)
    assert read_version(path) == 7
    assert hidden(tmp_path) == []


def test_readers_never_miss_what_is_being_replaced(tmp_path: Path, can_exchange: None) -> None:
    file, folder = tmp_path / "whole.bin", tmp_path / "whole"
    write_version(file, 0)
    write_version(folder, 0)
    with running("publish_for_ever", file) as one, running("publish_for_ever", folder) as two:
        versions: set[int | None] = set()
        while len(versions) < 20:
            versions.add(read_version(file))
            assert folder.is_dir()
            assert (one.poll(), two.poll()) == (None, None)
    assert None not in versions


def test_two_writers_of_one_folder_leave_one_of_them_whole(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    with publish_directory(path) as slower:
        for name in NAMES[1:]:
            (slower / name).write_text("slower")
        with running("write_version", path, "5") as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert read_version(path) == 5
        assert len(hidden(tmp_path)) == 1, "the living writer's folder is not swept away"
    assert sorted(entry.name for entry in path.iterdir()) == NAMES[1:]
    assert hidden(tmp_path) == []


def test_unfinished_names_are_hidden_and_have_another_suffix(tmp_path: Path) -> None:
    seen: list[str] = []
    publish_file(tmp_path / "a.parquet", lambda _: seen.extend(hidden(tmp_path)))
    with publish_directory(tmp_path / "b.parquet") as folder:
        seen.append(folder.name)
    assert len(seen) == 2
    assert seen[0].startswith(".a.parquet.tmp-")
    assert seen[1].startswith(".b.parquet.tmp-")
    assert not any(name.endswith(".parquet") for name in seen)


def test_file_in_a_temporary_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    temporary = tmp_path / "run" / "_temporary"
    seen: list[int] = []

    def write(file: Any) -> None:
        file.write(b"rows")
        seen.extend([len(hidden(temporary)), len(list((tmp_path / "data").iterdir()))])

    publish_file(tmp_path / "data" / "part-0.parquet", write, temporary=temporary)
    assert seen == [1, 0]
    assert (tmp_path / "data" / "part-0.parquet").read_bytes() == b"rows"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("name", ["whole.bin", "whole"])
@pytest.mark.parametrize("before", [None, 1])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, name: str, error: BaseException, before: int | None
) -> None:
    path = tmp_path / name
    start_from(path, before)

    def write_half(file: Any) -> None:
        file.write(b"half")
        raise error

    def publish_half() -> None:
        if path.suffix:
            publish_file(path, write_half)
        with publish_directory(path) as folder, (folder / "manifest.json").open("wb") as file:
            write_half(file)

    with pytest.raises(type(error)) as caught:
        publish_half()
    assert caught.value is error
    assert read_version(path) == before
    assert hidden(tmp_path) == []


def test_leftovers_of_the_dead_go_and_of_others_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".whole.tmp-{dead.pid}-0123abcd", f".whole.old-{dead.pid}-0123abcd", f".whole.tmp-{os.getpid()}-0123abcd"]
    kept = [f".whole.tmp-{os.getppid()}-0123abcd", f".whole.bin.tmp-{dead.pid}-0123abcd", ".whole.tmp-x", ".whole"]
    write_version(tmp_path / "whole", 1)
    for name in gone + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    write_version(tmp_path / "whole", 2)
    assert hidden(tmp_path) == sorted(kept)
    assert read_version(tmp_path / "whole") == 2


def test_everything_is_on_disk_before_it_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, list[bool]] = {}
    path = tmp_path / "whole"

    def record(descriptor: int) -> None:
        synced.setdefault(os.fstat(descriptor).st_ino, []).append(path.exists())

    monkeypatch.setattr(os, "fsync", record)
    write_version(path, 1)
    assert synced.pop(tmp_path.stat().st_ino) == [True]
    assert synced == {entry.stat().st_ino: [False] for entry in [path, *path.rglob("*")]}

    path, synced = tmp_path / "whole.bin", {}
    write_version(path, 1)
    assert synced == {path.stat().st_ino: [False], tmp_path.stat().st_ino: [True]}


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    write_version(tmp_path / "whole", 1)
    write_version(tmp_path / "whole.bin", 1)
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual.bin").touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "whole.bin").stat().st_mode == (tmp_path / "usual.bin").stat().st_mode


def test_directory_through_a_link_an_empty_folder_and_missing_parents(tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    for version in (1, 2):
        write_version(tmp_path / "link", version)
        assert read_version(tmp_path / "disk" / "empty") == version
        assert (tmp_path / "link").is_symlink()
    write_version(tmp_path / "missing" / "parents" / "whole", 1)
    assert read_version(tmp_path / "missing" / "parents" / "whole") == 1
    assert hidden(tmp_path) + hidden(tmp_path / "disk") == []


def test_an_exchange_that_fails_for_another_reason_is_an_error(tmp_path: Path, can_exchange: None) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError) as e:
        publish._exchange(tmp_path / "one", tmp_path / "other")
    assert (e.value.filename, e.value.filename2) == (str(tmp_path / "one"), str(tmp_path / "other"))


def test_what_we_did_not_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as early:
            check_directory(path, "manifest.json")
        with pytest.raises(InputError) as e, publish_directory(path):
            raise AssertionError("the block must not run")
        assert str(early.value) == str(e.value)
        return str(e.value)

    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    letter = home / "letter.txt"
    letter.write_text("dear")
    monkeypatch.chdir(home / "work")

    assert refused(letter) == f"{letter} cannot be a folder: {letter} is a file. Choose another output folder."
    below = letter / "a" / "b"
    assert refused(below) == f"{below} cannot be a folder: {letter} is a file. Choose another output folder."
    inside = " holds the current folder, so it cannot be replaced. Choose a folder below it."
    assert refused(home) == f"{home}{inside}"
    assert refused(Path()) == f".{inside}"
    monkeypatch.chdir(tmp_path)
    expected = f"{home} has content but no manifest.json, so it will not be replaced. Choose a new output folder."
    assert refused(home) == expected
    monkeypatch.setattr(Path, "is_mount", lambda self: self == home)
    assert refused(home) == f"{home} is a mount point, so it cannot be replaced in one step. Choose a folder below it."
    assert letter.read_text() == "dear"
    assert hidden(tmp_path) == []


def test_the_root_is_a_mount_point_and_holds_everything() -> None:
    with pytest.raises(InputError) as e:
        check_directory(Path("/"))
    assert str(e.value) == "/ holds the current folder, so it cannot be replaced. Choose a folder below it."


def main(function: str, path: str, *rest: str) -> None:
    if function in ("publish_for_ever", "write_version"):
        globals()[function](Path(path), *map(int, rest))
        return
    before, swap = rest
    os.fsync = lambda _: None  # what a killed process wrote outlives it; only a power cut needs the disk
    if swap == "renames":
        publish._exchange = lambda _one, _other: False
    lines = globals()[function](
        Path(path), None if before == "nothing" else int(before), may_be_missing=swap == "renames"
    )
    print(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])


def test_scratch_vanishes_and_leftovers_of_dead_processes_with_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "target"
    with scratch_directory(target) as folder:
        assert folder.parent == target.parent
        assert folder.name.startswith(".target.scratch-")
        (folder / "file").write_text("x")
        with publish_directory(target) as fresh:
            (fresh / "manifest.json").write_text("{}")
            assert (folder / "file").exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = target.parent / f".target.scratch-{dead.pid}-0123abcd"
    leftover.mkdir()
    alive = target.parent / f".target.scratch-{os.getppid()}-0123abcd"
    alive.mkdir()
    with pytest.raises(KeyboardInterrupt), scratch_directory(target):
        raise KeyboardInterrupt
    assert sorted(entry.name for entry in target.parent.iterdir()) == [alive.name, "target"]
