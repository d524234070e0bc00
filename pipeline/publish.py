"""Publishing: a reader of a path finds what was there before, or the new thing whole, and nothing between.

Everything is written under a hidden name, `.NAME.tmp-PID-RANDOM`, brought to disk, and then takes its name in one step.
A process that is killed leaves its hidden name behind; the next publication of the same path sweeps it away. A path has
one writer at a time. Two on different machines never mix their bytes, but one may sweep away what the other is writing,
which then fails.

A folder that replaces an older one is exchanged with it (Linux, `RENAME_EXCHANGE`), so the path is never missing. Where
the file system cannot (NFS, macOS), the older one is first moved aside to `.NAME.old-PID-RANDOM`; a kill between these
two renames leaves the path missing, never partial, and the next publication moves the older one back before it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def publish_file(path: Path, write: Callable[[BinaryIO], object], *, temporary: Path | None = None) -> None:
    """Write a file that is either absent (or what it was) or whole, whatever happens meanwhile.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        write: called with the open file; what it raises passes through and leaves `path` untouched.
        temporary: folder for the unfinished file, on the file system of `path`, made when missing. None: beside `path`.
    """
    folder = temporary or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, path.name)
    try:
        unfinished = folder / _hidden_name(path.name)
        with unfinished.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _fsync(path.parent)
    finally:
        _sweep(folder, path.name)


@contextmanager
def publish_directory(path: Path, marker: str = "manifest.json") -> Iterator[Path]:
    """Give a fresh folder to fill; on leaving the block it becomes `path`, on an exception it vanishes.

    Args:
        path: the folder to make or replace; a symbolic link is followed, missing parents are made.
        marker: name of a file that every folder of this kind holds; see `check_directory`.

    Raises:
        InputError: as `check_directory`, before anything is written.
    """
    check_directory(path, marker)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    try:
        fresh = path.with_name(_hidden_name(path.name))
        fresh.mkdir()
        yield fresh
        for entry in [*fresh.rglob("*"), fresh]:
            _fsync(entry)
        _take_place(fresh, path)
        _fsync(path.parent)
    finally:
        _recover(path)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path` for work on the way to it; it vanishes, as do those of dead processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _abandoned(path.parent, path.name, "scratch"):
        shutil.rmtree(leftover)
    folder = path.with_name(_hidden_name(path.name, "scratch"))
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def check_directory(path: Path, marker: str = "manifest.json") -> None:
    """Refuse a path that `publish_directory` must not replace; call it early to spare the caller a long job.

    Raises:
        InputError: `path` (or a folder above it) is a file, holds the current folder, is a mount point, or has content
            but no `marker`, so that it is not ours to delete.
    """
    real = path.resolve()
    existing = next(place for place in (real, *real.parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{path} cannot be a folder: {existing} is a file. Choose another output folder.")
    if existing != real:
        return
    if Path.cwd().is_relative_to(real):
        raise InputError(f"{path} holds the current folder, so it cannot be replaced. Choose a folder below it.")
    if real.is_mount():
        raise InputError(f"{path} is a mount point, so it cannot be replaced in one step. Choose a folder below it.")
    if any(real.iterdir()) and not (real / marker).is_file():
        raise InputError(f"{path} has content but no {marker}, so it will not be replaced. Choose a new output folder.")


def _take_place(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`; an older `path` ends under a hidden name, for `_recover` to remove."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchange(fresh, path):
        path.rename(path.with_name(_hidden_name(path.name, "old")))
        fresh.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two absolute paths in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _recover(path: Path) -> None:
    """Undo what a dead or failed publication of this folder left: an older one moved aside returns, the rest goes."""
    if not path.exists():
        for aside in _abandoned(path.parent, path.name, "old"):
            aside.rename(path)
            break
    _sweep(path.parent, path.name)


def _sweep(folder: Path, name: str) -> None:
    """Remove what dead processes, or earlier publications of this one, left under hidden names."""
    for leftover in _abandoned(folder, name, "tmp|old"):
        # Another process may sweep at the same moment.
        with suppress(FileNotFoundError):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _hidden_name(name: str, kind: str = "tmp") -> str:
    return f".{name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def _abandoned(folder: Path, name: str, kinds: str) -> list[Path]:
    """Hidden names for this target whose process is gone or is this one, which publishes a target once at a time."""
    hidden = re.compile(rf"\.{re.escape(name)}\.(?:{kinds})-(\d+)-[0-9a-f]{{8}}")
    found = [(entry, hidden.fullmatch(entry.name)) for entry in folder.iterdir()]
    return [entry for entry, match in found if match and not _is_another_process(int(match[1]))]


def _is_another_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
