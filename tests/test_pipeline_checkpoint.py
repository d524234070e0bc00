from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import reference
import safetensors.torch
import torch

import pipeline.checkpoint
from pipeline.checkpoint import CheckpointManifest, read_checkpoint, write_checkpoint
from pipeline.config import Config, ModelConfig
from pipeline.eager import EagerScorer
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.manifest import digests, read_manifest
from pipeline.metrics import Comparison, Measure
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary

N_ITEMS = 6
CONFIG = Config(model=ModelConfig(n_concepts=2, embedding_size=3, encoder_hidden_sizes=[5, 4]))
NONE = Histories.of([])
NOBODY = HeldOut(NONE, NONE)
TRAINING = Histories.of([(0, 1), (2,), (0, 1, 2, 3, 4), (5,)])
VALIDATION = HeldOut(Histories.of([(1, 2), ()]), Histories.of([(3,), (0, 5)]))
TEST = HeldOut(Histories.of([(4,)]), Histories.of([(0, 1, 2)]))
METRICS = {"ndcg@100": Measure(0.4, 0.01, 0.38, 0.42, 500)}
BASELINES = {"ease": Comparison(500.0, METRICS, Measure(0.01, 0.02, -0.03, 0.05, 500))}
FILES = ["histories.parquet", "items.parquet", "manifest.json", "metrics.jsonl", "weights.safetensors"]


def vocabulary(n_items: int = N_ITEMS) -> Vocabulary:
    ids = pl.Series([f"item-{number}" for number in range(n_items)])
    return Vocabulary.of(ids, np.arange(n_items, 0, -1, dtype=np.int64))


def random_weights(config: Config = CONFIG, n_items: int = N_ITEMS) -> dict[str, torch.Tensor]:
    """In float64, by the names and shapes of the reference."""
    return {name: torch.from_numpy(w) for name, w in reference.random_weights(config.model, n_items).items()}


def write(path: Path, **changes: Any) -> None:
    parts = {
        "config": CONFIG,
        "vocabulary": vocabulary(),
        "weights": random_weights(),
        "training": TRAINING,
        "validation": VALIDATION,
        "test": TEST,
        "counts": {"rows": 20, "users": 7},
        "best_epoch": 12,
        "metrics": METRICS,
        "metrics_lines": '{"epoch": 1}\n{"epoch": 2}\n',
        "data_sha256": "d1",
        "baselines": BASELINES,
    }
    write_checkpoint(path, **{**parts, **changes})


def lists(histories: Histories) -> list[list[int]]:
    return [histories[user].tolist() for user in range(len(histories))]


def edit_manifest(path: Path, change: Any) -> None:
    """Alter the manifest's fields in place, its digests renewed: a checkpoint that someone put together by hand."""
    file = path / "manifest.json"
    fields = json.loads(file.read_bytes())
    change(fields)
    fields["files"] = {name: found.model_dump() for name, found in digests(path).items()}
    file.write_text(json.dumps(fields))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    return str(error.value)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    assert sorted(file.name for file in path.iterdir()) == FILES
    found = read_checkpoint(path)
    assert found.vocabulary.items.equals(vocabulary().items)
    assert lists(found.validation.histories) == [[1, 2], []]
    assert lists(found.validation.targets) == [[3], [0, 5]]
    assert lists(found.test.histories) == [[4]]
    assert lists(found.test.targets) == [[0, 1, 2]]
    assert sorted(lists(found.training)) == sorted(lists(TRAINING))
    assert (path / "metrics.jsonl").read_bytes() == b'{"epoch": 1}\n{"epoch": 2}\n'
    manifest = found.manifest
    assert (manifest.kind, manifest.format_version) == ("checkpoint", 2)
    assert manifest.config == CONFIG
    assert manifest.counts == {"rows": 20, "users": 7}
    assert manifest.best_epoch == 12
    assert manifest.data_sha256 == "d1"
    assert manifest.metrics == METRICS
    assert manifest.baselines == BASELINES
    assert sorted(manifest.versions) == ["macrid", "numpy", "polars", "pyarrow", "python", "safetensors", "torch"]
    assert sorted([*manifest.files, "manifest.json"]) == FILES


def test_the_model_read_back_has_the_weights_that_were_written(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    model = read_checkpoint(tmp_path / "checkpoint").model()
    assert model.config == CONFIG.model
    assert model.state_dict().keys() == random_weights().keys()
    for name, weight in random_weights().items():
        assert torch.equal(model.state_dict()[name], weight.float()), name
        assert model.state_dict()[name].device.type == "cpu"


def test_a_model_read_back_can_be_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    model = read_checkpoint(tmp_path / "checkpoint").model()
    assert len(list(model.parameters())) == len(random_weights())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_only_float32_is_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: weight.to(dtype) for name, weight in random_weights().items()}
    weights["prototypes"] = weights["prototypes"].T.contiguous().T  # any memory layout
    write(tmp_path / "checkpoint", weights=weights)
    stored = safetensors.torch.load_file(tmp_path / "checkpoint" / "weights.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float32}
    assert all(torch.equal(stored[name], weights[name].float()) for name in weights)


def test_no_user_ids_are_stored(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    assert pl.read_parquet_schema(tmp_path / "checkpoint" / "histories.parquet") == {
        "split": pl.String,
        "history": pl.List(pl.Int32),
        "targets": pl.List(pl.Int32),
    }
    assert list(pl.read_parquet_schema(tmp_path / "checkpoint" / "items.parquet")) == [
        "item_number",
        "item_id",
        "n_interactions",
    ]


def test_written_twice_it_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    write(tmp_path / "checkpoint", best_epoch=13)
    assert read_checkpoint(tmp_path / "checkpoint").manifest.best_epoch == 13
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_some_users_of_each_split_are_kept_the_longest_history_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.checkpoint, "KEPT_USERS", {"training": 3, "validation": 1, "test": 2})
    rng = np.random.default_rng(0)
    training = Histories.of([np.sort(rng.choice(N_ITEMS, size, replace=False)) for size in [1, 2, 3, 6, 2, 1] * 20])
    write(tmp_path / "checkpoint", training=training)
    found = read_checkpoint(tmp_path / "checkpoint")
    assert found.training.lengths.tolist()[0] == 6
    assert found.training.lengths.tolist()[-1] == 1
    assert len(found.training) == 3
    assert lists(found.validation.histories) == [[1, 2]]
    assert lists(found.test.histories) == [[4]]


def test_weights_trained_elsewhere(tmp_path: Path) -> None:
    """RecBole's shapes (n_items x 600 x 128, K = 10, D = 64) and normalisation, written by name."""
    n_items = 700
    config = Config(
        model=ModelConfig(n_concepts=10, embedding_size=64, encoder_hidden_sizes=[600], history_norm="history")
    )
    weights = random_weights(config, n_items)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "item_embedding": (700, 64),
        "prototypes": (10, 64),
        "encoder.input.weight": (700, 600),
        "encoder.input.bias": (600,),
        "encoder.output.weight": (128, 600),
        "encoder.output.bias": (128,),
    }
    write(
        tmp_path / "checkpoint",
        config=config,
        vocabulary=vocabulary(n_items),
        weights=weights,
        training=NONE,
        validation=NOBODY,
        test=NOBODY,
        counts={},
        best_epoch=None,
        metrics={},
        metrics_lines="",
    )
    found = read_checkpoint(tmp_path / "checkpoint")
    assert (len(found.training), len(found.validation), len(found.test)) == (0, 0, 0)
    rng = np.random.default_rng(0)
    histories = Histories.of([np.sort(rng.choice(n_items, size, replace=False)) for size in (0, 1, 20, 300)])
    stored = {name: weight.float().double().numpy() for name, weight in weights.items()}
    expected_BI, expected_BIC = reference.recommend(stored, config.model, reference.dense(histories, n_items))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        top = EagerScorer(found.model().to(dtype))(histories, n_items)
        np.testing.assert_allclose(top.scores, np.take_along_axis(expected_BI, top.items, axis=1), rtol=tolerance)
        expected = np.take_along_axis(expected_BIC, top.items[:, :, None], axis=1)
        np.testing.assert_allclose(top.concept_shares, expected, rtol=0, atol=tolerance)


def test_weights_that_do_not_fit_are_refused_and_leave_the_older_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    weights = random_weights()
    del weights["prototypes"], weights["encoder.hidden.0.bias"]
    weights["encoder.hidden.1.bias"] = torch.zeros(4)
    weights["item_embedding"] = torch.zeros(7, 3)
    weights["encoder.output.bias"] = torch.zeros(6, 1)
    with pytest.raises(InputError) as error:
        write(path, weights=weights)
    assert str(error.value) == (
        f"The weights of {path} do not fit its config and its 6 items: encoder.hidden.0.bias is missing; "
        "prototypes is missing; encoder.hidden.1.bias is unexpected; "
        "encoder.output.bias has shape [6, 1], expected [6]; item_embedding has shape [7, 3], expected [6, 3]. "
        "Correct [model] in the config, or use the weights that belong to it."
    )
    assert read_checkpoint(path).manifest.best_epoch == 12
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_weights_vocabulary_and_config_of_a_checkpoint_must_fit_together(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    edit_manifest(path, lambda fields: fields["config"]["model"].update(n_concepts=3))
    vocabulary(8).write(path / "items.parquet")
    edit_manifest(path, lambda fields: None)
    assert refusal(path) == (
        f"The weights of {path} do not fit its config and its 8 items: "
        "encoder.input.weight has shape [6, 5], expected [8, 5]; item_embedding has shape [6, 3], expected [8, 3]; "
        "prototypes has shape [2, 3], expected [3, 3]. "
        "Correct [model] in the config, or use the weights that belong to it."
    )


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    (path / name).unlink()
    assert refusal(path) == f"{path / name} is missing from this checkpoint. Write the checkpoint again."


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_changed_byte(name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    assert refusal(path) == (
        f"{path / name} has changed since it was written (its SHA-256 differs). Write the checkpoint again."
    )


def test_not_a_checkpoint(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path} is not a checkpoint: it has no manifest.json. Name the folder a checkpoint was written to."
    )


def test_a_bundle_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    edit_manifest(path, lambda fields: fields.update(kind="bundle"))
    assert refusal(path) == (
        f"{path / 'manifest.json'} says kind 'bundle', format version 2; this macrid reads kind 'checkpoint', "
        "format version 2. Name a checkpoint, or write it again with this version."
    )


def test_a_checkpoint_of_an_older_macrid(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    edit_manifest(path, lambda fields: [fields.pop(name) for name in ("data_sha256", "baselines")])
    edit_manifest(path, lambda fields: fields.update(format_version=1))
    assert refusal(path) == (
        f"{path / 'manifest.json'} says kind 'checkpoint', format version 1; this macrid reads kind 'checkpoint', "
        "format version 2. Name a checkpoint, or write it again with this version."
    )


def test_a_config_of_another_version_is_refused_by_field(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    write(path)
    edit_manifest(path, lambda fields: fields["config"]["model"].update(temperature=0.0001))
    assert refusal(path) == (
        f"{path / 'manifest.json'} is not a valid manifest: config.model.temperature: Input should be greater than or "
        "equal to 0.025. Write the checkpoint again."
    )


def test_folders_that_are_not_ours_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "photos"
    path.mkdir()
    (path / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError) as error:
        write(path)
    assert str(error.value) == (
        f"{path} has content but no manifest.json, so it will not be replaced. Choose a new output folder."
    )
    assert (path / "cat.jpg").read_bytes() == b"cat"


def test_the_manifest_can_be_read_without_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    assert read_manifest(tmp_path / "checkpoint", CheckpointManifest).config == CONFIG


def test_every_file_may_be_read_by_the_same_people(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    assert len({file.stat().st_mode for file in (tmp_path / "checkpoint").iterdir()}) == 1
