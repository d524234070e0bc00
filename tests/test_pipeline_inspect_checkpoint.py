from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, SMALL_ITEMS

from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.errors import InputError
from pipeline.inspect_checkpoint import inspect_checkpoint
from pipeline.inspection import print_inspection
from pipeline.metrics import Comparison, Measure

KEYS = [
    *("path", "kind", "format_version", "files", "versions", "config", "counts", "data_sha256", "best_epoch"),
    *("metrics", "baselines", "n_items", "epochs", "median_largest_assignment", "concepts"),
]
METRICS = {"ndcg@100": Measure(0.41234, 0.01, 0.39, 0.43, 3)}
BASELINES = {"ease": Comparison(200.0, {"ndcg@100": Measure(0.3, 0.01, 0.28, 0.32, 3)}, METRICS["ndcg@100"])}


@pytest.fixture(scope="module")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, with metrics and a digest."""
    opened, path = read_checkpoint(checkpoint), tmp_path_factory.mktemp("measured") / "checkpoint"
    write_checkpoint(
        path,
        config=SMALL,
        vocabulary=opened.vocabulary,
        weights=opened.weights,
        training=opened.training,
        validation=opened.validation,
        test=opened.test,
        counts={"rows_read": 12345},
        best_epoch=1,
        metrics=METRICS,
        metrics_lines='{"epoch": 1}\n{"epoch": 2}\n',
        data_sha256="d" * 64,
        baselines=BASELINES,
    )
    return path


def test_facts(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_checkpoint(measured), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == KEYS
    manifest = json.loads((measured / "manifest.json").read_bytes())
    assert {key: facts[key] for key in manifest} == manifest
    assert (facts["path"], facts["n_items"], facts["epochs"]) == (str(measured), SMALL_ITEMS, 2)
    concepts = facts["concepts"]
    assert [list(concept) for concept in concepts] == [["concept", "items", "interactions", "top_items"]] * 3
    assert list(concepts[0]["top_items"][0]) == ["item_id", "title", "assignment", "n_interactions"]
    opened = read_checkpoint(measured)
    weights = {name: weight.double().numpy() for name, weight in opened.weights.items()}
    item_ID, prototype_CD = (
        table / np.linalg.norm(table, axis=1, keepdims=True)
        for table in (weights["item_embedding"], weights["prototypes"])
    )
    odds_IC = np.exp(item_ID @ prototype_CD.T / SMALL.model.temperature)
    largest_I = (odds_IC / odds_IC.sum(axis=1, keepdims=True)).max(axis=1)
    assert facts["median_largest_assignment"] == pytest.approx(np.median(largest_I), abs=1e-6)
    assert sum(concept["interactions"] for concept in concepts) == pytest.approx(1)


def test_tables(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_checkpoint(measured), as_json=False)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{measured}: a checkpoint of 500 items and 3 concepts, every file as written\n")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in ["weights of epoch 1", "epochs done 2", f"SHA-256 of the data {'d' * 64}", "rows read 12,345"]:
        assert line in lines
    for line in ["metric model low high ease", "ndcg@100 0.4123 0.3900 0.4300 0.3000"]:
        assert line in lines
    assert "model.n_concepts 3" in lines
    assert "training.kl_anneal_steps 5-epochs" in lines
    weights = json.loads((measured / "manifest.json").read_bytes())["files"]["weights.safetensors"]
    assert f"weights.safetensors {weights['size']:,} {weights['sha256']}" in lines


def test_what_is_not_known_is_said(checkpoint: Path) -> None:
    found = inspect_checkpoint(checkpoint)
    assert next(iter(found.tables.values()))["SHA-256 of the data"] == "not known"
    assert (found.facts["data_sha256"], found.facts["metrics"]) == (None, {})


def test_a_changed_file_is_refused(measured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(measured, copy)
    (copy / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 3}\n')
    with pytest.raises(InputError) as error:
        inspect_checkpoint(copy)
    assert str(error.value) == (
        f"{copy / 'metrics.jsonl'} has changed since it was written (its SHA-256 differs). Write the checkpoint again."
    )
