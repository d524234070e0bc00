"""The repository keeps its promises: commands, configs, dependencies, and nothing of the machine it was written on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from pipeline.config import Config, ConfigFile, PublishConfig, load_config, load_publish_config

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONFIGS = sorted(set((ROOT / "configs").glob("*.toml")) - {ROOT / "configs" / "space.toml"})


def dry_run(target: str, venv: Path) -> str:
    """The commands that make would run for a target, on a machine without the virtual environment."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "VENV")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", "--dry-run", "--no-print-directory", target, f"VENV={venv}", "PYTHON=python3.99"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("demo", ["pipeline demo --workspace demo"]),
        ("test", ["ruff format --check .", "ruff check .", "mypy", "lint-imports", "pytest -n"]),
        ("check", ["ruff format --check .", "ruff check .", "mypy", "lint-imports", "pytest -n"]),
        ("slow", ["pytest -m slow"]),
        ("gpu", ["pytest -m gpu"]),
        ("bench", []),
    ],
)
def test_make_targets_install_and_run(tmp_path: Path, target: str, commands: list[str]) -> None:
    printed = dry_run(target, tmp_path)
    assert f"python3.99 -m venv {tmp_path}" in printed
    assert (
        "pip --quiet --disable-pip-version-check --no-input install --progress-bar off --editable '.[dev]'" in printed
    )
    positions = [printed.find(f"{tmp_path}/bin/{command}") for command in commands]
    assert -1 not in positions, printed
    assert positions == sorted(positions)


def test_bench_runs_every_script(tmp_path: Path) -> None:
    printed = dry_run("bench", tmp_path)
    assert all(f"benchmarks/{script.name}" in printed for script in (ROOT / "benchmarks").glob("*.py"))


def test_an_installed_environment_is_reused_until_pyproject_changes(tmp_path: Path) -> None:
    stamp = tmp_path / ".installed"
    stamp.touch()
    assert "-m pip" not in dry_run("demo", tmp_path)
    before = (ROOT / "pyproject.toml").stat().st_mtime - 1
    os.utime(stamp, (before, before))
    assert "-m pip" in dry_run("demo", tmp_path)


def test_ci_runs_the_tests_in_a_new_environment() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert "venv=$(mktemp -d)" in lines
    assert lines[-1] == 'make test VENV="$venv"'


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_the_promised_configs_exist() -> None:
    assert {"default.toml", "paper.toml", "recbole.toml"} <= {path.name for path in CONFIGS}


def test_default_config_states_every_field_with_its_default() -> None:
    """TOML has no null: a field whose default is None stands there as the comment `# field = ...`."""
    path = ROOT / "configs" / "default.toml"
    assert load_config(path) == Config()
    assert load_publish_config(path) == PublishConfig()
    assert stated_fields(path.read_text(encoding="utf-8")) == {
        (section, field, value is None)
        for section, fields in ConfigFile().model_dump().items()
        for field, value in fields.items()
    }


def stated_fields(text: str) -> set[tuple[str, str, bool]]:
    """(section, field, whether it is commented out) of a TOML text with one field per line."""
    found, section = set(), ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = heading[1]
        elif field := re.match(r"(# )?(\w+) = ", line):
            found.add((section, field[2], field[1] is not None))
    return found


def test_stated_fields_of_a_text() -> None:
    text = "# words = not in a section\n[data]\na = 1  # b = 2\n# c = 3\n\n[model]\n# d is words\nd = [\n  4,\n]\n"
    assert stated_fields(text) == {
        ("", "words", True),
        ("data", "a", False),
        ("data", "c", True),
        ("model", "d", False),
    }


def onnxruntimes(environment: dict[str, str]) -> list[str]:
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    runtimes = [r for r in requirements if r.name.startswith("onnxruntime")]
    assert len(runtimes) == 2
    return [r.name for r in runtimes if r.marker is None or r.marker.evaluate(environment)]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "cygwin", "freebsd14"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "amd64", "aarch64", "arm64", "ARM64", "ppc64le", "i686"])
def test_exactly_one_onnxruntime(system: str, machine: str) -> None:
    """The two packages write the same files; the GPU one has wheels for Linux and Windows on x86-64 only."""
    has_gpu_wheel = (system, machine) in {("linux", "x86_64"), ("win32", "AMD64")}
    expected = ["onnxruntime-gpu" if has_gpu_wheel else "onnxruntime"]
    for version, implementation in product(("3.11", "3.14"), ("cpython", "pypy")):
        environment = {
            "sys_platform": system,
            "platform_machine": machine,
            "python_version": version,
            "implementation_name": implementation,
        }
        assert onnxruntimes(environment) == expected


def repository_files() -> list[Path]:
    """Files that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


MACHINE_PATH = re.compile(r"(?<![\w.~*}/-])(?:/(?:home|root|Users|tmp|var/tmp|scratch|work)/|[A-Z]:\\\\?Users\\)\w")


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    files = repository_files()
    assert Path(__file__).resolve() in files
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_bytes().decode("utf-8", "replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_machine_paths_are_recognised() -> None:
    folders = ["home", "root", "Users", "tmp", "var/tmp", "scratch", "work"]
    assert all(MACHINE_PATH.search(f'open("/{folder}/x")') for folder in folders)
    assert MACHINE_PATH.search("C:" + r"\Users\somebody")
    assert not any(MACHINE_PATH.search(f"s3://bucket/{folder}/x ./{folder}/x ~/{folder}/x") for folder in folders)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_loads_neither_torch_nor_optuna() -> None:
    done = run_python(
        "import sys\n"
        "from pipeline.cli import main\n"
        "sys.argv = ['pipeline', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'onnxruntime', 'optuna'} & set(sys.modules), 'too much is loaded'\n"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_scoring_loads_neither_torch_nor_the_model() -> None:
    modules = [f"scoring.{file.stem}" for file in sorted((ROOT / "scoring").glob("*.py")) if file.stem != "__init__"]
    assert modules
    done = run_python(
        f"import {', '.join(modules)}, sys\n"
        "assert not {'torch', 'pipeline.model', 'pipeline.train', 'export.graph'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


def test_every_package_is_installed() -> None:
    """Three top-level packages switch off setuptools' discovery: each has to be named."""
    pyproject: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {
        ".".join(file.relative_to(ROOT).parent.parts)
        for name in ("pipeline", "export", "scoring")
        for file in (ROOT / name).rglob("*.py")
    }
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(packages)
    assert sorted(pyproject["tool"]["importlinter"]["root_packages"]) == ["export", "pipeline", "scoring"]
