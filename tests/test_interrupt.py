"""Ctrl-C and SIGKILL while the commands run: what readers find is absent, or whole, or what was there before."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from export.bundle import read_bundle
from pipeline.checkpoint import read_checkpoint
from pipeline.demo_data import write_demo

pytestmark = pytest.mark.slow

COMMANDS = {
    "checkpoint": ["train"],
    "bundle": ["export", "--format", "all"],
    "recommendations": ["score", "--input", "users.parquet"],
}
KILLS = 6


def start(workspace: Path, output: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.cli", *COMMANDS[output]]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=workspace, start_new_session=True, stdout=null, stderr=null)


def check(workspace: Path, output: str) -> None:
    """Readable and whole."""
    if output == "checkpoint":
        read_checkpoint(workspace / output)
    elif output == "bundle":
        read_bundle(workspace / output)
    else:
        assert (workspace / output / "_SUCCESS").exists()
        assert len(pl.read_parquet(workspace / output / "users")) == 3200
        assert len(pl.read_parquet(workspace / output / "data")) == 320_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A workspace after the three commands, and how long each took."""
    workspace = tmp_path_factory.mktemp("finished")
    write_demo(workspace)
    config = workspace / "pipeline.toml"
    config.write_text(config.read_text().replace("epochs = 30", "epochs = 3"))
    seconds = {}
    for output in COMMANDS:
        started = time.monotonic()
        assert start(workspace, output).wait() == 0
        seconds[output] = time.monotonic() - started
        check(workspace, output)
    return workspace, seconds


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("before", ["absent", "older"])
@pytest.mark.parametrize("output", COMMANDS)
def test_killed_commands(
    finished: tuple[Path, dict[str, float]], tmp_path: Path, output: str, before: str, sent: signal.Signals
) -> None:
    template, seconds = finished
    workspace = tmp_path / "workspace"
    shutil.copytree(template, workspace)
    if before == "absent":
        shutil.rmtree(workspace / output)
    draw = random.Random(f"{output} {before} {sent}")
    interrupted = 0
    for turn in range(KILLS):
        process = start(workspace, output)
        # Denser towards the end: that is where files appear.
        time.sleep(seconds[output] * ((turn + draw.random()) / KILLS) ** 0.5)
        if process.poll() is None:
            os.killpg(process.pid, sent)
            interrupted += process.wait() != 0
        if before == "older" or (workspace / output).exists():
            check(workspace, output)
        if before == "absent" and (workspace / output).exists():
            shutil.rmtree(workspace / output)
    assert interrupted >= KILLS // 3  # fewer than planned where the machine has become faster since `finished`
    assert start(workspace, output).wait() == 0
    check(workspace, output)
    assert [entry.name for entry in workspace.iterdir() if entry.name.startswith(".")] == []
