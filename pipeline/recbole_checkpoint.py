"""A checkpoint of RecBole's (`.pth`), read without running anything that is in it.

Such a file is a zip archive of a pickle and of raw numbers. The pickle names classes of RecBole's, which `torch.load`
would import and call; `weights_only=True` cannot read it at all, for RecBole writes pickle protocol 4. So the pickle is
read here with an unpickler that knows four kinds of names: tensors, ordered dicts, types of numbers, and names that
RecBole's config holds, for which a stand-in that does nothing is put. Any other name is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from pipeline.errors import InputError

_NUMBERS = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
_INERT = {
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "device"),
    ("yaml.loader", "FullLoader"),
}
"""Besides RecBole's own names; none of their values is needed."""


@dataclass(frozen=True)
class RecboleCheckpoint:
    """What a file holds of use here."""

    settings: dict[str, object]
    """By RecBole's names, its defaults among them; empty where the file holds weights only."""
    weights: dict[str, torch.Tensor]
    """RecBole's state dict, as stored."""


class _Inert:
    """Takes the place of an object of a foreign class, and keeps its state.

    Having `__setstate__`, neither the object nor the class can be given attributes by a pickle.
    """

    state: object = None

    def __new__(cls, *_: object) -> Self:
        """An object without the arguments it would have been made with."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Stored(NamedTuple):
    """Numbers in a member of the archive."""

    key: str
    dtype: torch.dtype


class _View(_Inert):
    """A tensor: where it lies in what is stored."""

    def __new__(cls, stored: _Stored, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Self:
        """Of the arguments of torch's `_rebuild_tensor_v2`, those that say where."""
        view = super().__new__(cls)
        view.stored, view.offset, view.size, view.stride = stored, offset, size, stride
        return view

    stored: _Stored
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _ForbiddenError(Exception):
    """The pickle names something that no checkpoint of RecBole's does."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle; nothing is imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _View
        if module == "torch" and name in _NUMBERS:
            return _NUMBERS[name]
        if (module, name) in _INERT or module.split(".")[0] == "recbole":
            return _Inert
        raise _ForbiddenError(f"{module}.{name}")

    def persistent_load(self, reference: Any) -> _Stored:
        """What the pickle calls a storage: ('storage', type, key, device, length)."""
        _, dtype, key, _, _ = reference
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a storage of {dtype!r}")
        return _Stored(str(key), dtype)


def read_recbole_checkpoint(path: Path) -> RecboleCheckpoint:
    """Read a file that RecBole 1.2 wrote.

    Raises:
        InputError: the file is missing, is not such a checkpoint, or its pickle asks for anything foreign.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Name a .pth file of RecBole's, from its folder saved/.")
    try:
        with zipfile.ZipFile(path) as archive:
            folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{folder}data.pkl") as pickled:
                held = _Unpickler(pickled).load()
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise pickle.UnpicklingError("its numbers are not little-endian")
            state = held["state_dict"]
            weights = {str(name): _tensor(archive, folder, view) for name, view in state.items()}
    except _ForbiddenError as name:
        raise InputError(
            f"{path} asks for {name}, which no checkpoint of RecBole's does. Nothing in it was run. "
            "Do not open it with torch.load; get the file anew from where it was trained."
        ) from None
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise InputError(
            f"{path} cannot be read as a checkpoint of RecBole 1.2 ({reason}). Name a .pth file from its folder saved/."
        ) from None
    return RecboleCheckpoint(_settings(held.get("config")), weights)


_UNREADABLE = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, StopIteration, EOFError, KeyError, TypeError, ValueError),
    *(AttributeError, IndexError, RuntimeError, OverflowError, MemoryError, NotImplementedError),
)
"""What damaged files raise."""


def _tensor(archive: zipfile.ZipFile, folder: str, view: object) -> torch.Tensor:
    if not isinstance(view, _View):
        raise pickle.UnpicklingError(f"{type(view).__name__} in the state dict, expected tensors")
    numbers = torch.frombuffer(bytearray(archive.read(f"{folder}data/{view.stored.key}")), dtype=view.stored.dtype)
    return numbers.as_strided(view.size, view.stride, view.offset)  # refuses what lies outside


def _settings(config: object) -> dict[str, object]:
    """The final settings of RecBole's config object."""
    state = config.state if isinstance(config, _Inert) else None
    settings = state.get("final_config_dict") if isinstance(state, dict) else None
    return {str(name): value for name, value in settings.items()} if isinstance(settings, dict) else {}
