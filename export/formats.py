"""The file formats of the exported graph: how each is written, and which operators it holds.

No file holds absolute paths, time stamps or names that depend on the process, so that the same weights give the same
bytes. Reading them back is `scoring/runtimes.py`'s business.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from onnxscript import optimizer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import _config as symbolic_shapes

from export.bundle import ONNX_WEIGHTS
from export.graph import INPUTS, OUTPUTS, RecommendationGraph

OPSET = 20
EXTERNAL_BYTES = 1_900_000_000
"""Weights from here on lie in a file beside the ONNX graph: protobuf ends at 2 GiB."""
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
INLINE_BYTES = 1024
"""What is smaller stays in the graph even then."""
SHAPES: dict[str, list[str | None]] = {
    "history_items": ["history_entries"],
    "history_offsets": ["users_plus_1"],
    "excluded": ["users", "excluded_per_user"],
    "concept_weights": ["users", None],
    "items": ["users", "k"],
    "scores": ["users", "k"],
    "concept_shares": ["users", "k", None],
}
"""Names of the sizes that vary."""


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


def varying_sizes() -> tuple[dict[int, Any], ...]:
    """Which sizes of the inputs vary, as torch.export takes it."""
    auto = torch.export.Dim.AUTO
    return ({0: auto}, {0: auto}, {0: auto, 1: auto}, {}, {0: auto}, {})


def write_onnx(graph: RecommendationGraph, path: Path, facts: dict[str, str]) -> None:
    """Write an ONNX file (opset 20), its structure checked; large weights go to `ONNX_WEIGHTS` beside it.

    Args:
        graph: to write.
        path: of the file.
        facts: kept in the file as its metadata.
    """
    with _quiet():
        exported: Any = _exported(graph)
        held = exported.model.graph.initializers
        weights = {name: value for name, value in graph.state_dict().items() if name in held}
        exported.apply_weights(weights)
        model: onnx_ir.Model = exported.model
        optimizer.optimize_ir(
            model,
            onnx_shape_inference=False,
            # Copies of weights, sliced and transposed, would double the file and lose their names.
            should_fold=lambda node: False if any(value and value.name in weights for value in node.inputs) else None,
        )
    _name(model, facts)
    if sum(value.nbytes for value in weights.values()) >= EXTERNAL_BYTES:
        model = onnx_ir.external_data.unload_from_model(
            model, path.parent, ONNX_WEIGHTS, size_threshold_bytes=INLINE_BYTES
        )
    path.write_bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def _exported(graph: RecommendationGraph) -> Any:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake:
        outline = _outline(graph, fake)
        outline.decoder.onnx = True
        inputs = example(graph.n_items, graph.n_concepts)
        # Strict, because the body of a scan may not use k otherwise.
        program = torch.export.export(outline, inputs, dynamic_shapes=varying_sizes(), strict=True)
        return torch.onnx.export(
            program,
            optimize=False,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            verbose=False,
        )


def _outline(graph: RecommendationGraph, fake: FakeTensorMode) -> RecommendationGraph:
    """The graph without its numbers: torch.export would copy tables of gigabytes, twice."""
    outlines: dict[int, Any] = {}
    for tensor in (*graph.parameters(), *graph.buffers()):
        shape = fake.from_tensor(tensor.detach())
        outlines[id(tensor)] = nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape
    return copy.deepcopy(graph, outlines)


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


def write_pt2(graph: RecommendationGraph, path: Path) -> None:
    """Write a torch.export file."""
    # Sizes of 0 and 1 are sizes like others: a batch of one user, no history, nothing excluded.
    sizes = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with _quiet(), sizes, torch.no_grad():
        program = torch.export.export(
            graph, example(graph.n_items, graph.n_concepts), dynamic_shapes=varying_sizes(), strict=False
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # absolute paths of our source files
        torch.export.save(program, path)


def pt2_operators(path: Path) -> dict[str, int]:
    """How often each operator occurs in the file."""
    nodes = torch.export.load(path).graph.nodes
    targets = [node.target for node in nodes if node.op == "call_function"]
    names = [target.name() if isinstance(target, torch._ops.OpOverload) else target.__name__ for target in targets]
    return dict(sorted(Counter(names).items()))


def random_operators(operators: Iterable[str]) -> list[str]:
    """Those of the named operators (of any format) whose output is drawn from a random number generator."""
    return [name for name in operators if name in RANDOM_ONNX_OPERATORS or _torch_draws(name)]


def _torch_draws(name: str) -> bool:
    """Whether torch itself tags any overload of the operator as depending on the random seed."""
    namespace, _, operator = name.partition("::")
    operator = operator.partition(".")[0]
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
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "torch.export")]
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


def _name(model: onnx_ir.Model, facts: dict[str, str]) -> None:
    """Name nodes by where they stand in the model and sizes by what they are; drop notes that hold absolute paths."""
    for node in model.graph.all_nodes():
        scopes = literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        name = (node.name or node.op_type).removeprefix("node_")
        node.name = "/".join([*(scope for scope in scopes[:-1] if scope and not scope.startswith("_")), name])
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.name in SHAPES and value.shape is not None:
            sizes = zip(SHAPES[value.name], value.shape, strict=True)
            value.shape = onnx_ir.Shape([name or size for name, size in sizes])
        value.metadata_props.clear()
    for value in _inner_values(model.graph):
        value.shape = None  # sizes under names that only the exporter knows
        value.metadata_props.clear()
    for initializer in model.graph.initializers.values():
        initializer.metadata_props.clear()
    model.graph.name = "MacridVAE"
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    model.doc_string = "Top-k recommendations of MacridVAE: see docs/serving.md of macrid."


def _inner_values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    outputs = set(graph.outputs)
    for node in graph.all_nodes():
        yield from (value for value in node.outputs if value not in outputs)
