from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.inspection import kind_of


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "run"])
def test_a_manifest_says_what_a_folder_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"kind": "{kind}"}}')
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    ("manifest", "found"),
    [
        (None, "it has no manifest.json that says so"),
        ("", "it has no manifest.json that says so"),
        ("[1]", "it has no manifest.json that says so"),
        ('{"name": "photos"}', "it has no manifest.json that says so"),
        ('{"kind": "album"}', "its manifest.json says kind 'album'"),
        ('{"kind": ["run"]}', "its manifest.json says kind ['run']"),
    ],
)
def test_other_folders_are_refused(manifest: str | None, found: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    if manifest is not None:
        folder.mkdir()
        (folder / "manifest.json").write_text(manifest)
    message = (
        f"{folder} is no checkpoint, bundle or run: {found}. "
        "Name a folder that one of `pipeline train`, `pipeline export`, `pipeline score` wrote."
    )
    with pytest.raises(InputError) as error:
        kind_of(folder)
    assert str(error.value) == message
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")
