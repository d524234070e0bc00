"""Runtimes: an exported file opened on a device, answering as a `Scorer`.

A device that was asked for is the device that runs: what the runtime reports is checked, and anything else is an error.

Shape letters: B users, E excluded items per user, C concepts, I items of the catalogue, k places.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import FILES
from pipeline.errors import InputError, PipelineError
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK

Inputs = dict[str, NDArray[Any]]
"""What the graph takes, by name and in its order (see export/graph.py)."""
Run = Callable[[Inputs], list[NDArray[Any]]]
"""Inputs to the arrays of `TopK`, in its order."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_scorer(directory: Path, form: str, device: str) -> Scorer:
    """Open a bundle's graph.

    Args:
        directory: the bundle.
        form: of `FILES`.
        device: cpu or cuda.

    Raises:
        InputError: the bundle does not hold that format, the runtime refuses it, or the device cannot be used.
    """
    path = directory / FILES[form]
    if not path.is_file():
        raise InputError(f"{directory} holds no {form} graph ({path.name}). Run: pipeline export --format {form}")
    openers = {"onnx": open_onnx, "torchscript": open_torchscript, "pt2": open_pt2}
    try:
        return openers[form](path, device)
    except PipelineError:
        raise
    except Exception as error:  # ONNX Runtime's own have no other class in common
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path} cannot be opened on {device}: {reason}. "
            "Export the checkpoint again with the versions installed here, or choose another --format or --device."
        ) from error


def scoring_device(form: str, wanted: str) -> str:
    """The device to score on: auto takes CUDA where the format's runtime can use it."""
    if wanted != "auto":
        return wanted
    if form == "onnx":
        import onnxruntime

        listed = PROVIDERS["cuda"] in onnxruntime.get_available_providers()
        return "cuda" if listed and _cuda_driver() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class GraphScorer:
    """An opened graph; see `pipeline.scorer.Scorer`."""

    def __init__(self, n_items: int, n_concepts: int, run: Run) -> None:
        self.n_items, self.n_concepts = n_items, n_concepts
        self._run = run

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
        concept_weights: NDArray[np.float32] | None = None,
    ) -> TopK:
        """Top-K of each history; arguments and result as in `pipeline.scorer.Scorer`."""
        if allowed is None:
            allowed = np.ones(self.n_items, dtype=np.bool_)
        if concept_weights is None:
            concept_weights = np.ones((len(histories), self.n_concepts), dtype=np.float32)
        inputs = {
            "history_items": histories.items_N.astype(np.int64),
            "history_offsets": histories.offsets,
            "excluded": padded(excluded, len(histories), self.n_items),
            "allowed": allowed,
            "concept_weights": concept_weights,
            "k": np.asarray(k, dtype=np.int64),
        }
        return TopK(*self._run(inputs))


def open_onnx(path: Path, device: str) -> GraphScorer:
    """Open an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors; that CUDA is missing is said below, once
    if device == "cuda":
        onnxruntime.preload_dlls()
    # TF32 rounds products to 10 bits; exact scores need float32.
    settings = {"use_tf32": "0"} if device == "cuda" else {}
    session = onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[device], settings)])
    active = session.get_providers()[0]
    if active != PROVIDERS[device]:
        raise InputError(
            f"--device {device} was asked for, but ONNX Runtime can only offer {active}. "
            "Run on a machine with a GPU and its CUDA libraries, or choose --device cpu."
        )
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    n_items, n_concepts = shapes["allowed"][0], shapes["concept_weights"][1]
    return GraphScorer(n_items, n_concepts, lambda inputs: session.run(TopK._fields, inputs))


def open_torchscript(path: Path, device: str) -> GraphScorer:
    """Open a TorchScript file in torch."""
    import torch

    _check_cuda(device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.jit; see docs/decisions.md
        module: Any = torch.jit.load(path, map_location=device)
    return GraphScorer(module.n_items, module.n_concepts, _torch_run(module, device))


def open_pt2(path: Path, device: str) -> GraphScorer:
    """Open a torch.export file in torch."""
    import torch

    _check_cuda(device)
    program = torch.export.load(path)
    if device == "cuda":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, "cuda")
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    n_items, n_concepts = int(shapes["allowed"][0]), int(shapes["concept_weights"][1])
    return GraphScorer(n_items, n_concepts, _torch_run(program.module(), device))


def _check_cuda(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda was asked for, but torch finds no CUDA device. "
            "Run on a machine with a GPU and a CUDA build of torch, or choose --device cpu."
        )


def _torch_run(module: Any, device: str) -> Run:
    import torch

    def run(inputs: Inputs) -> list[NDArray[Any]]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(array).to(device) for array in inputs.values()))
        return [output.cpu().numpy() for output in outputs]

    return run


def padded(excluded: Histories | None, n_users: int, n_items: int) -> NDArray[np.int64]:
    """Rows of item numbers, [B, E], filled up with n_items."""
    if excluded is None:
        return np.full((n_users, 0), n_items, dtype=np.int64)
    lengths_B = excluded.lengths
    within_BE = np.arange(lengths_B.max(initial=0))[None] < lengths_B[:, None]
    excluded_BE = np.full(within_BE.shape, n_items, dtype=np.int64)
    excluded_BE[within_BE] = excluded.items_N
    return excluded_BE


def _cuda_driver() -> bool:
    """Whether a CUDA driver with a device is there; ONNX Runtime lists its CUDA provider on machines without one."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
