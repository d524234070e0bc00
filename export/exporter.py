"""Checkpoint -> bundle: write each format, hold it against the model, and only then let the bundle appear."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from export.bundle import FILES, VOCABULARY, WEIGHTS, BundleManifest, Format
from export.formats import (
    OPSET,
    onnx_operators,
    pt2_operators,
    random_operators,
    torchscript_operators,
    write_onnx,
    write_pt2,
    write_torchscript,
)
from export.gate import Gate, check_random
from export.graph import RecommendationGraph
from export.model_card import NAME as CARD
from export.model_card import model_card
from export.parity import Precision
from export.signing import read_private_key
from export.signing import sign as sign_directory
from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.concept_profile import profile_concepts
from pipeline.eager import EagerScorer
from pipeline.histories import Histories
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import digest, digests, versions, write_manifest
from pipeline.publish import publish_directory
from pipeline.scorer import Scorer
from pipeline.split import HeldOut

GATE_USERS = 512
"""Real histories each format is held against, besides the edge cases."""

OpenScorer = Callable[[Path, str, str], Scorer]
"""`scoring.runtimes.open_scorer`: the very runtime that will score, handed in because export may not import scoring."""


def export_bundle(
    checkpoint: Path,
    output: Path,
    formats: Sequence[str],
    open_scorer: OpenScorer,
    precision: Precision = "fp32",
    sign: Path | None = None,
) -> BundleManifest:
    """Write a bundle whose every file was held against the eager model on the CPU.

    Args:
        checkpoint: the checkpoint's folder.
        output: the bundle's folder; an older bundle there is replaced in one step.
        formats: of `FILES`.
        open_scorer: opens a format's file in a folder on a device.
        precision: of the tables; see export/graph.py.
        sign: PEM file of the Ed25519 key to sign with. None: the bundle is not signed.

    Raises:
        InputError: the checkpoint or the key cannot be read, or `output` is not ours to replace.
        JobError: a check did not hold; nothing was written.
    """
    key = None if sign is None else read_private_key(sign)
    opened = read_checkpoint(checkpoint)
    model = opened.model().eval()
    graph = RecommendationGraph(model, precision).eval()
    records: dict[str, Format] = {}
    with _one_thread(), publish_directory(output) as folder:
        gate = Gate(EagerScorer(model), gate_histories(opened), gate_users(opened), precision)
        for form in formats:
            records[form] = _write_checked(form, graph, folder, gate, open_scorer)
        for name in (VOCABULARY, WEIGHTS):
            shutil.copyfile(checkpoint / name, folder / name)
        made_with = versions("torch", "onnx", "onnxscript")
        profile = profile_concepts(model.assignment().detach().numpy(), opened.vocabulary)
        card = model_card(opened.manifest, opened.vocabulary, profile, records, precision, made_with)
        (folder / CARD).write_text(card, encoding="utf-8")
        manifest = BundleManifest(
            files=digests(folder),
            versions=made_with,
            checkpoint=digest(checkpoint / MANIFEST),
            config=opened.manifest.config,
            counts=opened.manifest.counts,
            metrics=opened.manifest.metrics,
            n_items=model.n_items,
            n_concepts=model.config.n_concepts,
            precision=precision,
            formats=records,
        )
        write_manifest(folder, manifest)
        if key is not None:
            sign_directory(folder, key)
    return manifest


def gate_histories(checkpoint: Checkpoint) -> Histories:
    """What the gate compares on: an empty history, a single item, the checkpoint's longest history, and others of it.

    A checkpoint made from weights alone holds no histories; then the most popular 1, 2, 4, ... items stand for them.
    """
    stored = [checkpoint.training, checkpoint.validation.histories, checkpoint.test.histories]
    longest = max((part[int(part.lengths.argmax())] for part in stored if len(part)), key=len, default=())
    popular = checkpoint.vocabulary.popular()
    cases: list[Iterable[int]] = [(), popular[:1], longest]
    cases += [part[user] for part in stored for user in range(min(len(part), GATE_USERS // 2))]
    if len(cases) == 3:
        cases += [popular[: 2**power] for power in range(1, min(len(popular), 1024).bit_length())]
    return Histories.of([sorted(map(int, case)) for case in cases])


def gate_users(checkpoint: Checkpoint) -> HeldOut:
    """The held-out users the gate measures metrics on: test users, or validation users where there are none."""
    return checkpoint.test if len(checkpoint.test) else checkpoint.validation


@contextmanager
def _one_thread() -> Iterator[None]:
    """What the gate measures goes into the manifest, and must not depend on how many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_checked(form: str, graph: RecommendationGraph, folder: Path, gate: Gate, open_scorer: OpenScorer) -> Format:
    path = folder / FILES[form]
    if form == "onnx":
        write_onnx(graph, path, _facts(graph))
        operators = onnx_operators(path)
    elif form == "torchscript":
        write_torchscript(graph, path)
        operators = torchscript_operators(path)
    else:
        write_pt2(graph, path)
        operators = pt2_operators(path)
    check_random(form, random_operators(operators))
    parity = gate.check(form, open_scorer(folder, form, "cpu"))
    return Format(file=path.name, opset=OPSET if form == "onnx" else None, operators=operators, parity=parity)


def _facts(graph: RecommendationGraph) -> dict[str, str]:
    return {
        "model": "MacridVAE (Ma et al., NeurIPS 2019)",
        "made_by": f"macrid {version('macrid')}",
        "items": str(graph.n_items),
        "concepts": str(graph.n_concepts),
        "precision": graph.precision,
    }
