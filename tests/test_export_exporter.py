"""Bundles: what they hold, the same bytes every time, and nothing where a check failed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL, SMALL_ITEMS, random_histories, small_model, write_small_checkpoint
from torch import nn

import export.exporter
from export.bundle import read_bundle
from export.exporter import export_bundle, gate_histories
from export.formats import (
    onnx_operators,
    pt2_operators,
    random_operators,
    torchscript_operators,
    write_onnx,
    write_torchscript,
)
from export.graph import HistoryEncoder, RecommendationGraph
from export.parity import TOLERANCES, Precision
from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.config import Config, ModelConfig
from pipeline.eager import EagerScorer
from pipeline.errors import InputError, JobError
from pipeline.histories import Histories
from pipeline.model import MacridVAE
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

    def wrong(model: object, precision: Precision) -> RecommendationGraph:
        graph = RecommendationGraph(small_model(SMALL.model, SMALL_ITEMS), precision)
        graph.encoder.input_bias += 0.5
        return graph

    monkeypatch.setattr(export.exporter, "RecommendationGraph", wrong)
    with pytest.raises(JobError) as error:
        export_bundle(checkpoint, tmp_path / "bundle", ["onnx"], open_scorer)
    assert re.fullmatch(
        r"The onnx graph differs from the model at history \d+ \(\d+ items, batch of \d+\): .+\. Nothing was written\.",
        str(error.value),
    )
    assert list(tmp_path.iterdir()) == []


class Noisy(RecommendationGraph):
    """Draws at inference, as RecBole's model does."""

    def __init__(self, model: MacridVAE, precision: Precision = "fp32") -> None:
        super().__init__(model, precision)
        with torch.no_grad():
            self.encoder = NoisyEncoder(model, precision)


class NoisyEncoder(HistoryEncoder):
    def forward(self, history_items: torch.Tensor, history_offsets: torch.Tensor) -> torch.Tensor:
        mean_BCD = super().forward(history_items, history_offsets)
        return mean_BCD + 0 * torch.randn_like(mean_BCD)


def test_a_sampler_in_the_graph_is_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose draws are multiplied by zero."""
    monkeypatch.setattr(export.exporter, "RecommendationGraph", Noisy)
    with pytest.raises(JobError) as error:
        export_bundle(checkpoint, tmp_path / "bundle", ["onnx"], open_scorer)
    assert str(error.value) == "The onnx graph holds random operators: RandomNormalLike. Nothing was written."
    assert list(tmp_path.iterdir()) == []


class Always(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bernoulli(x)


class Drops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return torch.bernoulli(x)
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_random_operators_of_every_format(bundle: Path, tmp_path: Path) -> None:
    assert random_operators(onnx_operators(bundle / "model.onnx")) == []
    assert random_operators(torchscript_operators(bundle / "model.torchscript.pt")) == []
    assert random_operators(pt2_operators(bundle / "model.pt2")) == []
    drops = torch.export.export(Always(), (torch.rand(3),))
    torch.export.save(drops, tmp_path / "drops.pt2")
    assert random_operators(pt2_operators(tmp_path / "drops.pt2")) == ["aten::bernoulli"]
    torch.jit.save(torch.jit.script(Drops()), tmp_path / "drops.pt")
    assert random_operators(torchscript_operators(tmp_path / "drops.pt")) == ["aten::bernoulli"]
    names = ["aten::dropout", "aten::exponential_", "aten::normal_", "aten::rand", "aten::multinomial", "Multinomial"]
    assert random_operators([*names, "aten::topk", "prim::If", "TopK", "aten::no_such_operator"]) == names


def test_the_onnx_file_reads_like_the_model(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import if entry.version == 20] == [""]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {
        "decoder.item_vectors.values",
        "decoder.log_shares",
        "encoder.item_concepts",
        "encoder.mean.weight",
    } <= names
    nodes = {node.name for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    assert {node.split("/")[0] for node in nodes if "/" in node} == {"encoder", "decoder"}
    sizes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert sizes == {
        "history_items": ["history_entries"],
        "history_offsets": ["users_plus_1"],
        "excluded": ["users", "excluded_per_user"],
        "allowed": [500],
        "concept_weights": ["users", 3],
        "k": [],
        "items": ["users", "k"],
        "scores": ["users", "k"],
        "concept_shares": ["users", "k", 3],
    }
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "model": "MacridVAE (Ma et al., NeurIPS 2019)",
        "made_by": f"macrid {version('macrid')}",
        "items": "500",
        "concepts": "3",
        "precision": "fp32",
    }


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.55), ("int8", 0.33)])
def test_smaller_precisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, share: float
) -> None:
    """A model with wide tables: the file shrinks to about this share, and the gate holds."""
    # Scores of random weights lie closer together than those of a trained model.
    monkeypatch.setitem(TOLERANCES, precision, TOLERANCES[precision]._replace(overlap=0.95))
    model = ModelConfig(n_concepts=2, embedding_size=64, encoder_hidden_sizes=[256])
    write_small_checkpoint(tmp_path / "checkpoint", Config(model=model), n_items=700)
    sizes = {}
    for each in ("fp32", precision):
        manifest = export_bundle(tmp_path / "checkpoint", tmp_path / each, ["onnx"], open_scorer, each)
        assert manifest.precision == each
        sizes[each] = (tmp_path / each / "model.onnx").stat().st_size
    assert sizes[precision] == pytest.approx(share * sizes["fp32"], rel=0.1)
    parity = manifest.formats["onnx"].parity
    assert 1e-5 < parity.largest_score_difference < 0.1


@pytest.mark.parametrize("chunk_items", [170, 499, 500])
def test_chunks_give_the_same_answers(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, chunk_items: int
) -> None:
    """Ties too: items 100 to 160 are copies of item 40, spread over chunks, and go by item number."""
    monkeypatch.setattr("export.graph.CHUNK_ITEMS", chunk_items)
    opened = read_checkpoint(checkpoint)
    for table in ("item_embedding", "encoder.input.weight"):
        opened.weights[table][100:161] = opened.weights[table][40].clone()
    model = opened.model().eval()
    graph = RecommendationGraph(model).eval()
    write_onnx(graph, tmp_path / "model.onnx", {})
    write_torchscript(graph, tmp_path / "model.torchscript.pt")
    histories = random_histories([0, 3, 60], SMALL_ITEMS)
    for scorer in (open_scorer(tmp_path, form, "cpu") for form in ("onnx", "torchscript")):
        for k in (1, 30, 200, 501):
            found = scorer(histories, k, excluded=histories)
            expected = EagerScorer(model)(histories, k, excluded=histories)
            np.testing.assert_array_equal(found.items, expected.items)
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
            np.testing.assert_allclose(found.concept_shares, expected.concept_shares, atol=1e-5)


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.formats.EXTERNAL_BYTES", 1000)
    export_bundle(checkpoint, tmp_path / "bundle", ["onnx"], open_scorer)
    opened = read_bundle(tmp_path / "bundle")
    beside = tmp_path / "bundle" / "model.onnx.data"
    assert opened.manifest.files["model.onnx.data"].sha256 == sha256(beside)
    assert beside.stat().st_size > 30_000
    histories = random_histories([0, 3, 60], SMALL_ITEMS)
    found = open_scorer(tmp_path / "bundle", "onnx", "cpu")(histories, 20)
    expected = open_scorer(bundle, "onnx", "cpu")(histories, 20)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError) as error:
        read_bundle(tmp_path / "bundle")
    assert str(error.value) == (
        f"{beside} has changed since it was written (its SHA-256 differs). Write the bundle again."
    )


def test_gate_histories_of_a_checkpoint(checkpoint: Path) -> None:
    histories = gate_histories(read_checkpoint(checkpoint))
    assert histories.lengths[:3].tolist() == [0, 1, 200]
    assert sorted(histories.lengths[3:].tolist()) == sorted([200, 60, 17, 8, 5, 1, 3, 9, 33, 3, 9, 33])


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
        write_onnx(module, tmp_path / name, {})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "c") != sha256(tmp_path / "b")


def test_weights_are_not_shared_with_the_model() -> None:
    model = small_model(SMALL.model, 50)
    graph = RecommendationGraph(model)
    before = graph.encoder.input_bias.clone()
    with torch.no_grad():
        model.encoder.input.bias += 1
    assert torch.equal(graph.encoder.input_bias, before)
    assert np.isfinite(before.numpy()).all()


def test_the_graph_does_not_grow_with_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop over chunks is one Scan, however many chunks there are."""
    graphs = []
    for chunk_items in (50, 250):
        monkeypatch.setattr("export.graph.CHUNK_ITEMS", chunk_items)
        write_onnx(RecommendationGraph(small_model(SMALL.model, SMALL_ITEMS)).eval(), tmp_path / "model.onnx", {})
        graphs.append(onnx_operators(tmp_path / "model.onnx"))
    assert graphs[0] == graphs[1]
    assert graphs[0]["Scan"] == 1
