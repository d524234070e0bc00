"""Bundles: what they hold, the same bytes every time, and nothing where a check failed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL, SMALL_ITEMS, small_model, write_small_checkpoint
from torch import nn

import export.exporter
from export.bundle import read_bundle
from export.exporter import export_bundle, gate_histories
from export.formats import onnx_operators, random_operators, torchscript_operators, write_onnx
from export.graph import RecommendationGraph
from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.config import Config, ModelConfig
from pipeline.errors import InputError, JobError
from pipeline.histories import Histories
from pipeline.split import HeldOut
from scoring.runtimes import open_scorer

FILES = [
    *("MODEL_CARD.md", "items.parquet", "manifest.json"),
    *("model.onnx", "model.pt2", "model.torchscript.pt", "weights.safetensors"),
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_bundle_holds(bundle: Path, checkpoint: Path) -> None:
    assert sorted(file.name for file in bundle.iterdir()) == FILES
    opened = read_bundle(bundle)
    manifest = opened.manifest
    assert (manifest.n_items, manifest.n_concepts) == (SMALL_ITEMS, 3)
    assert manifest.checkpoint.sha256 == sha256(checkpoint / "manifest.json")
    assert opened.digest.sha256 == sha256(bundle / "manifest.json")
    assert sorted(manifest.formats) == ["onnx", "pt2", "torchscript"]
    assert manifest.formats["onnx"].opset == 20
    for record in manifest.formats.values():
        assert record.parity.largest_score_difference < 1e-4
        assert record.parity.longest_history == 200
        assert record.operators
    assert opened.vocabulary.items.equals(read_checkpoint(checkpoint).vocabulary.items)
    assert (bundle / "weights.safetensors").read_bytes() == (checkpoint / "weights.safetensors").read_bytes()


def test_no_file_holds_a_path_of_this_machine(bundle: Path) -> None:
    here = [str(Path(export.exporter.__file__).parent), str(Path(torch.__file__).parent), str(bundle.parent)]
    for name in FILES:
        content = (bundle / name).read_bytes()
        assert not [path for path in here if path.encode() in content], name


def test_another_process_directory_and_hash_seed_give_the_same_bytes(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from export.exporter import export_bundle; from scoring.runtimes import open_scorer\n"
        "if __name__ == '__main__':\n"
        "    export_bundle(Path(sys.argv[1]), Path('other'), ['pt2', 'torchscript', 'onnx'], open_scorer)\n"
    )
    (tmp_path / "again.py").write_text(code)
    command = [sys.executable, "-W", "ignore", "again.py", str(checkpoint)]
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run(command, cwd=tmp_path, env={"PYTHONHASHSEED": "7", "PYTHONPATH": root}, check=True)
    assert {name: sha256(tmp_path / "other" / name) for name in FILES} == {
        name: sha256(bundle / name) for name in FILES
    }


@pytest.mark.parametrize("history_norm", ["per-concept", "history"])
@pytest.mark.parametrize("hidden", [[9], [9, 8, 7]])
def test_other_shapes_pass_the_gate(tmp_path: Path, history_norm: str, hidden: list[int]) -> None:
    model = ModelConfig.model_validate(
        {"n_concepts": 1, "embedding_size": 4, "encoder_hidden_sizes": hidden, "history_norm": history_norm}
    )
    write_small_checkpoint(tmp_path / "checkpoint", Config(model=model), n_items=60)
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ["onnx"], open_scorer)
    assert manifest.formats["onnx"].parity.k == 60
    assert list(read_bundle(tmp_path / "bundle").manifest.formats) == ["onnx"]


def test_a_failed_check_leaves_the_older_bundle(
    bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with one weight off: refused, and what was there before stays."""

    def wrong(model: object) -> RecommendationGraph:
        graph = RecommendationGraph(small_model(SMALL.model, SMALL_ITEMS))
        graph.encoder_input_bias += 0.5
        return graph

    monkeypatch.setattr(export.exporter, "RecommendationGraph", wrong)
    with pytest.raises(JobError) as error:
        export_bundle(checkpoint, tmp_path / "bundle", ["onnx"], open_scorer)
    assert re.fullmatch(
        r"The onnx graph differs from the model at history 0 \(0 items, batch of 1\): .+\. Nothing was written\.",
        str(error.value),
    )
    assert list(tmp_path.iterdir()) == []


class Noisy(RecommendationGraph):
    """Draws at inference, as RecBole's model does."""

    def likelihoods(self, mean_BCD: torch.Tensor, concept_weights: torch.Tensor) -> torch.Tensor:
        return super().likelihoods(mean_BCD + 0 * torch.randn_like(mean_BCD), concept_weights)


def test_a_sampler_in_the_graph_is_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose draws are multiplied by zero."""
    monkeypatch.setattr(export.exporter, "RecommendationGraph", Noisy)
    with pytest.raises(JobError) as error:
        export_bundle(checkpoint, tmp_path / "bundle", ["onnx"], open_scorer)
    assert str(error.value) == "The onnx graph holds random operators: RandomNormalLike. Nothing was written."
    assert list(tmp_path.iterdir()) == []


class Drops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return torch.bernoulli(x)
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_random_operators_of_both_formats(bundle: Path, tmp_path: Path) -> None:
    assert random_operators(onnx_operators(bundle / "model.onnx")) == []
    assert random_operators(torchscript_operators(bundle / "model.torchscript.pt")) == []
    torch.jit.save(torch.jit.script(Drops()), tmp_path / "drops.pt")
    assert random_operators(torchscript_operators(tmp_path / "drops.pt")) == ["aten::bernoulli"]
    names = ["aten::dropout", "aten::exponential_", "aten::normal_", "aten::rand", "aten::multinomial", "Multinomial"]
    assert random_operators([*names, "aten::topk", "prim::If", "TopK", "aten::no_such_operator"]) == names


def test_the_onnx_file_is_valid_and_bare(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import if entry.version == 20] == [""]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"item_vectors", "item_concepts", "encoder_input_weight"} <= names


def test_gate_histories_of_a_checkpoint(checkpoint: Path) -> None:
    histories = gate_histories(read_checkpoint(checkpoint))
    assert histories.lengths[:3].tolist() == [0, 1, 200]
    assert sorted(histories.lengths[3:].tolist()) == sorted([200, 60, 17, 8, 5, 1, 3, 9, 30, 3, 9, 30])


def test_gate_histories_of_weights_alone(tmp_path: Path, checkpoint: Path) -> None:
    opened = read_checkpoint(checkpoint)
    nothing = Histories.of([])
    nobody = HeldOut(nothing, nothing)
    write_checkpoint(
        tmp_path / "bare",
        config=opened.manifest.config,
        vocabulary=opened.vocabulary,
        weights=opened.weights,
        training=nothing,
        validation=nobody,
        test=nobody,
        counts={},
        best_epoch=None,
        metrics={},
        metrics_lines="",
    )
    bare = read_checkpoint(tmp_path / "bare")
    assert gate_histories(bare).lengths.tolist() == [0, 1, 0, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_vocabulary_of_another_size_is_refused(bundle: Path, tmp_path: Path) -> None:
    import shutil

    from export.bundle import BundleManifest
    from pipeline.manifest import digests, read_manifest, write_manifest

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy, BundleManifest)
    from pipeline.vocabulary import Vocabulary

    Vocabulary(Vocabulary.read(copy / "items.parquet").items.head(499)).write(copy / "items.parquet")
    write_manifest(copy, manifest.model_copy(update={"files": digests(copy)}))
    with pytest.raises(InputError) as error:
        read_bundle(copy)
    assert str(error.value) == (
        f"{copy / 'items.parquet'} has 499 items, but this bundle's graph has 500. Export the checkpoint again."
    )


def test_onnx_bytes_do_not_depend_on_what_was_exported_before(tmp_path: Path) -> None:
    graph = RecommendationGraph(small_model(SMALL.model, 50)).eval()
    other = RecommendationGraph(small_model(SMALL.model, 70)).eval()
    for name, module in (("a", graph), ("b", other), ("c", graph)):
        write_onnx(module, tmp_path / name)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "c") != sha256(tmp_path / "b")


def test_weights_are_not_shared_with_the_model() -> None:
    model = small_model(SMALL.model, 50)
    graph = RecommendationGraph(model)
    before = graph.encoder_input_bias.clone()
    with torch.no_grad():
        model.encoder.input.bias += 1
    assert torch.equal(graph.encoder_input_bias, before)
    assert np.isfinite(before.numpy()).all()
