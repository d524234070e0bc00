"""History file: histories of any total size, written once and memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.histories import Histories


class HistoryFile:
    """Histories appended to a new file, then memory-mapped."""

    def __init__(self, path: Path) -> None:
        path.touch(exist_ok=False)
        self._path = path
        self._lengths: list[NDArray[np.int64]] = []

    def append(self, histories: Histories) -> None:
        """Add users after those already there."""
        with self._path.open("ab") as file:
            histories.items_N.tofile(file)
        self._lengths.append(histories.lengths)

    def map(self) -> Histories:
        """Everyone appended so far. The items are read-only and the file must outlive them."""
        offsets = np.cumsum(np.concatenate([[0], *self._lengths]), dtype=np.int64)
        if not offsets[-1]:
            return Histories(np.empty(0, dtype=np.int32), offsets)  # an empty file cannot be mapped
        return Histories(np.memmap(self._path, dtype=np.int32, mode="r"), offsets)
