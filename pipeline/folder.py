"""Folder: what may lie in a directory of ours, and reading it without being led elsewhere.

Plain files under the names that were written, nothing else. Paths that leave the folder, links, pipes and devices are
refused by name before anything is read: a pipe would be waited on for ever, a link leads to what nobody checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import InputError, JobError

MAX_BYTES = 2**24
"""Of a file that is read whole, such as a manifest; ours have a few thousand."""


class Stamp(NamedTuple):
    """What the file system changes when somebody writes to a file or puts another in its place."""

    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Of a file as it is now."""
        found = path.lstat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say for people why the system would not let us read; a file that is missing is the caller's to explain.

    Raises:
        InputError: in place of any other OSError.
    """
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        where = error.filename or path
        raise InputError(f"{where} cannot be read: {error.strerror}. Check its permissions and the disk.") from None


def plain_bytes(path: Path, kind: str) -> bytes:
    """The content of a small file of a directory of ours.

    Raises:
        InputError: it is not a plain file, or too large.
        OSError: it is missing, or cannot be read.
    """
    size = plain(path, kind).st_size
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes; {MAX_BYTES} are the most. Write the {kind} again.")
    return path.read_bytes()


def plain(path: Path, kind: str) -> os.stat_result:
    """Look at a file, not at what it leads to.

    Raises:
        InputError: it is a link, or anything but a file.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        link = stat.S_ISLNK(found.st_mode)
        what = "a symbolic link" if link else "a folder, pipe, socket or device"
        raise InputError(f"{path} is {what}; a {kind} holds plain files only. Write the {kind} again.")
    return found


def lies_inside(name: str) -> bool:
    """Whether a path goes down only, on every system: not absolute, no `..`, no backslash, no drive, no NUL."""
    return name.isprintable() and not set(name) & set("\\:") and not set(name.split("/")) & {"", ".", ".."}


def check_entries(folder: Path, names: Collection[str], kind: str) -> None:
    """Refuse what does not belong in a folder: neither named nor a folder that holds something named.

    Raises:
        InputError: an entry is extra, or not a plain file where one is named. What is missing is not noticed.
    """
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for inner in sorted(folders):
        for path in sorted((folder / inner).iterdir()) if (folder / inner).is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if name in folders and path.is_dir() and not path.is_symlink():
                continue
            if name in names or path.is_symlink():
                plain(path, kind)
            else:
                raise InputError(f"{path} does not belong to this {kind}: manifest.json does not name it. Remove it.")


def check_unchanged(directory: Path, stamps: Mapping[str, Stamp]) -> None:
    """Make sure that nobody wrote to the files, or replaced the folder, since they were checked.

    Raises:
        JobError: somebody did.
    """
    for name, stamp in stamps.items():
        try:
            unchanged = Stamp.of(directory / name) == stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise JobError(f"{directory / name} was replaced or written to while it was being opened. Run again.")
