from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.bundle import read_bundle
from export.inspect_bundle import inspect_bundle
from pipeline.errors import InputError
from pipeline.inspection import print_inspection

KEYS = [
    *("path", "kind", "format_version", "files", "versions", "checkpoint", "config", "counts", "metrics", "n_items"),
    *("n_concepts", "precision", "formats", "sha256", "signed"),
]


def test_facts(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_bundle(bundle), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == KEYS
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert {key: facts[key] for key in manifest} == manifest
    assert facts["sha256"] == read_bundle(bundle).digest.sha256


def test_tables(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection(inspect_bundle(bundle), as_json=False)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{bundle}: a bundle of 500 items and 3 concepts, every file as written\n")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    opened = read_bundle(bundle)
    manifest = opened.manifest
    assert f"SHA-256 of the bundle {opened.digest.sha256}" in lines
    assert f"of its checkpoint {manifest.checkpoint.sha256}" in lines
    assert f"onnx model.onnx {(bundle / 'model.onnx').stat().st_size:,} 20" in lines
    assert f"torchscript model.torchscript.pt {(bundle / 'model.torchscript.pt').stat().st_size:,}" in lines
    for form in manifest.formats.values():
        section = lines[lines.index(f"{form.file}, held against the model before the bundle appeared") :][:12]
        parity = form.parity
        assert f"histories {parity.histories}, the longest of 200 items" in section
        assert f"scores within {parity.largest_score_difference:.1e}, concept shares" in " ".join(section)
        assert f"alone or in a batch scores within {parity.largest_batch_difference:.1e}" in section
        section = lines[lines.index(f"{form.file}: operators, none of which draws random numbers") :][:4]
        assert f"kinds {len(form.operators)}" in section
        assert f"operators {sum(form.operators.values())}" in section
    assert f"MODEL_CARD.md {manifest.files['MODEL_CARD.md'].size:,} {manifest.files['MODEL_CARD.md'].sha256}" in lines


def test_an_edited_card_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    card = copy / "MODEL_CARD.md"
    card.write_text(card.read_text(encoding="utf-8").replace("license: unknown", "license: cc0-1.0"), encoding="utf-8")
    with pytest.raises(InputError) as error:
        inspect_bundle(copy)
    assert str(error.value) == (
        f"{card} has changed since it was written (its SHA-256 differs). Write the bundle again."
    )
