"""What the README tells people to type is what exists, and the demo runs it verbatim."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline.demo_data
from pipeline.cli import main
from pipeline.demo import COMMANDS, run_demo

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def console_blocks() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [[line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")] for block in blocks]


def test_two_commands_set_everything_up() -> None:
    assert console_blocks()[0] == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "check", "slow", "bench"} <= set(targets)


def test_three_commands_make_a_nightly_job() -> None:
    assert console_blocks()[1] == list(COMMANDS)


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"`pipeline (\w+)", README))
    assert {"train", "export", "score", "evaluate"} <= named
    for command in named:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command


def test_every_file_named_exists() -> None:
    for name in re.findall(r"`((?:configs|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_options_named_exist() -> None:
    options = {option for command in main.commands.values() for param in command.params for option in param.opts}
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= options | {"--help"}


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Trained for two epochs only: what is printed, not how good it is."""
    shorter = pipeline.demo_data.CONFIG.replace("epochs = 30", "epochs = 2")
    monkeypatch.setattr(pipeline.demo_data, "CONFIG", shorter)
    run_demo(tmp_path / "demo")
    printed = capfd.readouterr().out
    at = [printed.index(f"$ {command}") for command in COMMANDS]
    assert at == sorted(at)
    assert "every graph proven equal to the model" in printed
    assert "every user accounted for" in printed
    assert re.search(r"Concepts found, without reading a title: purity [01]\.\d{3}, NMI [01]\.\d{3}", printed)
    for user in ("user-00003, a customer seen", "user-03004, a new customer", "user-03198, a customer without"):
        assert user in printed
    assert sorted(entry.name for entry in (tmp_path / "demo").iterdir()) == [
        *("bundle", "checkpoint", "checkpoint.metrics.jsonl", "interactions.parquet", "items.parquet"),
        *("pipeline.toml", "recommendations", "users.parquet"),
    ]
