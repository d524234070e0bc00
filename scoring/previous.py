"""Previous run: what tonight's may take over from the night before.

A part is carried over whole, when nothing that decides its bytes has changed: the bundle, the options, the lists, the
versions, the division into parts, and the users of the part with their histories and exclusions. Less than a part
cannot be: a user's scores depend in their last bits on the batch that he is scored in, and batches are made of a part.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import digest
from scoring.run import SUCCESS, Receipt, RunManifest, part_name


class PreviousRun:
    """A complete run.

    Args:
        folder: the run's.

    Raises:
        InputError: it is no run, no complete one, or one of another version of this project.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / SUCCESS).is_file():
            raise InputError(f"--since {folder} is not a complete run: it has no {SUCCESS}. Name last night's run.")
        self.folder = folder
        try:
            self.manifest = RunManifest.model_validate_json((folder / MANIFEST).read_bytes())
            names = [f"{part_name(part)}.json" for part in range(self.manifest.n_parts)]
            self.receipts = [Receipt.model_validate_json((folder / "receipts" / name).read_bytes()) for name in names]
        except (ValidationError, FileNotFoundError) as error:
            raise InputError(
                f"--since {folder} is not a run of this version of macrid ({str(error).splitlines()[0]}). "
                "Leave --since out this night."
            ) from None

    def has(self, number: int, content: str, tonight: RunManifest) -> bool:
        """Whether a part of tonight's run, of this content, is one of this run."""
        return _rules(self.manifest) == _rules(tonight) and self.receipts[number].content == content

    def copy_part(self, number: int, folder: Path) -> None:
        """Take over the two files of a part.

        Raises:
            InputError: a file is not the one that was written.
        """
        for name, written in self.receipts[number].files.items():
            if not (self.folder / name).is_file() or digest(self.folder / name) != written:
                raise InputError(f"--since: {self.folder / name} has changed since it was written. Leave --since out.")
            shutil.copyfile(self.folder / name, folder / name)


def _rules(manifest: RunManifest) -> tuple[object, ...]:
    """What decides the bytes of every part beside its users."""
    lists = {option: items.file for option, items in manifest.lists.items()}
    return manifest.bundle, manifest.options, lists, manifest.n_parts, manifest.versions
