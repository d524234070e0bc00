"""The file formats of the exported graph: how each is written, and which operators it holds.

Both files are free of absolute paths, time stamps and names that depend on the process, so that the same weights give
the same bytes. Reading them back is `scoring/runtimes.py`'s business.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch

from export.graph import INPUTS, OUTPUTS, RecommendationGraph

OPSET = 20
RANDOM_ONNX_OPERATORS = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
"""Operators of the ONNX standard whose output is drawn (https://onnx.ai/onnx/operators/)."""


def example(n_items: int, n_concepts: int) -> tuple[torch.Tensor, ...]:
    """Inputs that no size of which is 0 or 1: tracers would take those for constants."""
    return (
        torch.tensor([0, n_items - 1, n_items, 0, n_items], dtype=torch.int64),
        torch.tensor([0, 2, 5, 5], dtype=torch.int64),
        torch.full((3, 2), n_items, dtype=torch.int64),
        torch.ones(n_items, dtype=torch.bool),
        torch.ones(3, n_concepts),
        torch.tensor(2, dtype=torch.int64),
    )


def write_onnx(graph: RecommendationGraph, path: Path) -> None:
    """Write an ONNX file (opset 20), its structure checked."""
    auto = torch.export.Dim.AUTO
    sizes: tuple[dict[int, Any], ...] = ({0: auto}, {0: auto}, {0: auto, 1: auto}, {}, {0: auto}, {})
    with _quiet():
        inputs = example(graph.n_items, graph.n_concepts)
        exported: Any = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            dynamic_shapes=sizes,
            external_data=False,
            optimize=False,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            verbose=False,
        )
    model = exported.model_proto
    _scrub(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def onnx_operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in the file, bodies of functions and branches included."""
    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph, *model.functions]
    return dict(sorted(Counter(node.op_type for body in bodies for node in _nodes(body)).items()))


def write_torchscript(graph: RecommendationGraph, path: Path) -> None:
    """Write a TorchScript file.

    TorchScript numbers its classes by what the process has compiled before, so this happens in an interpreter of its
    own.
    """
    spawn = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as interpreter:
        interpreter.submit(_script, graph, path).result()


def torchscript_operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in the file."""
    with _quiet():
        module = torch.jit.load(path, map_location="cpu")
    return dict(sorted(Counter(node.kind() for node in _script_nodes(module.inlined_graph)).items()))


def random_operators(operators: Iterable[str]) -> list[str]:
    """Those of the named operators (of either format) whose output is drawn from a random number generator."""
    return [name for name in operators if name in RANDOM_ONNX_OPERATORS or _torch_draws(name)]


def _torch_draws(name: str) -> bool:
    """Whether torch itself tags any overload of the operator as depending on the random seed."""
    namespace, _, operator = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), operator, None) if namespace == "aten" else None
    if packet is None:
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, name).tags for name in packet.overloads())


def _script(graph: RecommendationGraph, path: Path) -> None:
    raw, clean = io.BytesIO(), io.BytesIO()
    with _quiet():
        script = torch.jit.freeze(torch.jit.script(graph.eval()), preserved_attrs=["n_items", "n_concepts"])
        torch.jit.save(script, raw)
    reader = torch._C.PyTorchFileReader(io.BytesIO(raw.getvalue()))
    writer = torch._C.PyTorchFileWriter(clean)
    written_by_the_writer = {"version", "byteorder", ".data/serialization_id"}
    for name in reader.get_all_records():
        # Debug records hold the absolute paths of our source files.
        if name not in written_by_the_writer and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    path.write_bytes(clean.getvalue())


def _script_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _script_nodes(inner)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what is no news to the user: torch.jit is deprecated, and the exporter does without optional packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _nodes(body: Any) -> Iterator[Any]:
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _scrub(message: Any) -> None:
    """Drop stack traces and other notes of the exporter: they hold absolute paths."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type:
            for child in value if field.is_repeated else [value]:
                _scrub(child)
