"""What the README tells people to type is what exists, and the demo runs it verbatim."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from recbole_file import TOKENS, write_pth

import pipeline.demo_data
from pipeline.checkpoint import read_checkpoint
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


def test_three_commands_lead_here_from_recbole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dataset" / "shop"
    folder.mkdir(parents=True)
    rows = [f"u{user}\t{(user * 7 + place * 3) % len(TOKENS)}\n" for user in range(40) for place in range(10)]
    tokens = list(dict.fromkeys(row.split()[1] for row in rows))
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\n" + "".join(rows))
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{t}\tItem {t}\n" for t in tokens))
    (tmp_path / "shop.yaml").write_text("epochs: 1\nembedding_size: 8\ntopk: 10\n")
    (tmp_path / "saved").mkdir()
    write_pth(tmp_path / "saved" / "MacridVAE.pth")
    monkeypatch.chdir(tmp_path)
    blocks = console_blocks()
    assert [command.split()[1] for command in blocks[2]] == ["prepare", "train", "import"]
    for command in blocks[2]:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert read_checkpoint(Path("checkpoint")).vocabulary.items["title"].to_list() == [f"Item {t}" for t in tokens]


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"`pipeline (\w+)", README))
    assert {"train", "export", "score", "evaluate"} <= named
    for command in named:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command


def test_every_file_named_exists() -> None:
    for name in re.findall(r"`((?:configs|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_case_of_the_reliability_guide_has_a_test() -> None:
    guide = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_*.py")]
    tests = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    rows = [line.split("|") for line in guide.splitlines() if re.search(r"`test_", line)]
    assert len(rows) > 20
    assert {name for row in rows for name in re.findall(r"`(test_\w+)`", row[3])} <= tests
    heads = re.findall(r"\| case \|.*\| test \|\n(?:\|.*\n)+", guide)
    assert len(rows) == sum(len(table.splitlines()) - 2 for table in heads), "a case without a test"


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
