"""Every program of docs/serving.md runs as it stands there, without this project, and ranks as the eager model does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from conftest import SMALL, SMALL_ITEMS

from pipeline.checkpoint import read_checkpoint
from pipeline.eager import EagerScorer
from pipeline.histories import Histories

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
STEERED, ON_CUDA, PT2 = re.findall(r"(?<!`):\n\n```python\n(.*?)```", PAGE, re.DOTALL)
USERS = {"ann": ["item-003", "item-017", "item-not-known"], "bob": ["item-250"]}
NOBODY = {"carl": ["item-not-known"]}
"""A batch of one, an empty history and, with k = 600, more places than items."""

Ranking = dict[str, list[tuple[str, float, int]]]
"""Of each user: item id, score and concept, best first."""


def replaced(program: str, start: str, line: str) -> str:
    """The program with another line in place of the one that starts like this."""
    lines = program.splitlines()
    (at,) = (i for i, old in enumerate(lines) if old.strip().startswith(start))
    lines[at] = line
    return "\n".join(lines) + "\n"


def run(folder: Path, *command: str) -> str:
    """What the command prints, run where nothing of this project can be imported by accident."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["NODE_PATH"] = os.pathsep.join([environment.get("NODE_PATH", ""), str(ROOT / "node_modules")])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(folder: Path, name: str, program: str) -> Ranking:
    assert not re.search(r"^\s*(?:from|import) (?:pipeline|export|scoring)\b", program, re.MULTILINE)
    (folder / name).write_text(program, encoding="utf-8")
    return ranking(run(folder, sys.executable, name))


def ranking(printed: str) -> Ranking:
    found: Ranking = {}
    for line in printed.splitlines():
        user, item, score, concept = line.split("\t")
        found.setdefault(user, []).append((item, float(score), int(concept)))
    return found


def expected(
    checkpoint: Path, users: dict[str, list[str]], k: int, weights: list[list[float]] | None = None
) -> Ranking:
    """What the eager model says; ids of the small checkpoint are item-000, item-001, ..."""
    ids = {f"item-{number:03d}": number for number in range(SMALL_ITEMS)}
    histories = Histories.of([sorted(ids[item] for item in history if item in ids) for history in users.values()])
    scorer = EagerScorer(read_checkpoint(checkpoint).model())
    concept_weights = None if weights is None else np.array(weights, dtype=np.float32)
    top = scorer(histories, k, excluded=histories, concept_weights=concept_weights)
    names = np.array([*ids])
    return {
        user: [
            (str(names[item]), float(score), int(shares.argmax()))
            for item, score, shares in zip(*(part[row] for part in top), strict=True)
            if item >= 0
        ]
        for row, user in enumerate(users)
    }


def assert_equal(found: Ranking, wanted: Ranking) -> None:
    """The same items with the same concepts, scores within 1e-4, best first."""
    assert found.keys() == wanted.keys()
    for user, rows in wanted.items():
        assert {(item, concept) for item, _, concept in found[user]} == {(item, concept) for item, _, concept in rows}
        assert len(found[user]) == len(rows)
        np.testing.assert_allclose([row[1] for row in found[user]], [row[1] for row in rows], atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path, bundle: Path) -> Path:
    """Where the programs run: beside `bundle/`."""
    (tmp_path / "bundle").symlink_to(bundle, target_is_directory=True)
    return tmp_path


@pytest.fixture
def folder_with_ids(folder: Path) -> Path:
    (folder / "item_ids.py").write_text(FILES["item_ids.py"], encoding="utf-8")
    assert run(folder, sys.executable, "item_ids.py") == ""
    return folder


def test_item_ids_are_lines_in_order_of_number(folder_with_ids: Path, bundle: Path) -> None:
    lines = (folder_with_ids / "items.txt").read_text(encoding="utf-8").splitlines()
    assert lines == pl.read_parquet(bundle / "items.parquet").sort("item_number")["item_id"].to_list()


def test_onnx_runtime_takes_20_lines() -> None:
    assert sum(line != "" for line in FILES["recommend.py"].splitlines()) <= 20


def test_onnx_runtime(folder: Path, checkpoint: Path) -> None:
    program = FILES["recommend.py"]
    assert_equal(run_python(folder, "recommend.py", program), expected(checkpoint, USERS, 5))
    nobody = replaced(replaced(program, "users =", f"users = {NOBODY}"), '"k":', '    "k": np.array(600, np.int64),')
    assert_equal(run_python(folder, "nobody.py", nobody), expected(checkpoint, NOBODY, 600))


def test_steering(folder: Path, checkpoint: Path) -> None:
    steered = run_python(folder, "steer.py", replaced(FILES["recommend.py"], '"concept_weights":', STEERED))
    assert_equal(steered, expected(checkpoint, USERS, 5, [[1, 1, 1], [0, 0, 1]]))
    plain = expected(checkpoint, USERS, 5)
    assert [row[0] for row in steered["ann"]] == [row[0] for row in plain["ann"]]
    assert [row[0] for row in steered["bob"]] != [row[0] for row in plain["bob"]]
    assert {concept for _, _, concept in steered["bob"]} == {2}


def test_cuda_is_used_or_refused(folder: Path, checkpoint: Path) -> None:
    program = replaced(FILES["recommend.py"], "session =", ON_CUDA)
    if torch.cuda.is_available():
        assert_equal(run_python(folder, "cuda.py", program), expected(checkpoint, USERS, 5))
        return
    with pytest.raises(AssertionError) as refused:
        run_python(folder, "cuda.py", program)
    assert "CUDA was asked for, CPUExecutionProvider came\n" in str(refused.value)


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
def test_torch(folder: Path, checkpoint: Path, form: str) -> None:
    program = FILES["recommend_torch.py"]
    if form == "pt2":
        program = replaced(program, "model =", PT2)
    assert_equal(run_python(folder, "recommend_torch.py", program), expected(checkpoint, USERS, 5))
    nobody = replaced(replaced(program, "users =", f"users = {NOBODY}"), "k =", "k = torch.tensor(600)")
    assert_equal(run_python(folder, "nobody.py", nobody), expected(checkpoint, NOBODY, 600))


def test_cpp(folder_with_ids: Path, checkpoint: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler (c++)")
    (folder_with_ids / "main.cpp").write_text(FILES["main.cpp"], encoding="utf-8")
    libtorch = Path(torch.__file__).parent
    include, libraries = libtorch / "include", libtorch / "lib"
    headers = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    linked = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
    run(folder_with_ids, compiler, "-std=c++20", "main.cpp", *headers, *linked, "-o", "recommend")
    assert_equal(ranking(run(folder_with_ids, "./recommend")), expected(checkpoint, USERS, 5))
    assert_equal(ranking(run(folder_with_ids, "./recommend", "600")), expected(checkpoint, USERS, 600))


@pytest.mark.slow
def test_cmake(folder_with_ids: Path, checkpoint: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("CMake and a C++ compiler are not both here")
    if torch.version.cuda is not None and shutil.which("nvcc") is None:
        pytest.skip("this torch was built for CUDA, and its CMake files ask for a CUDA toolkit")
    for name in ("main.cpp", "CMakeLists.txt"):
        (folder_with_ids / name).write_text(FILES[name], encoding="utf-8")
    (commands,) = re.findall(r"```text\n(cmake .*?)```", PAGE, re.DOTALL)
    printed = run(folder_with_ids, "sh", "-ec", commands)
    assert_equal(ranking("".join(re.findall(r".*\t.*\n", printed))), expected(checkpoint, USERS, 5))


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_node(folder_with_ids: Path, checkpoint: Path, package: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    resolve = f"try {{ require.resolve('{package}') }} catch {{ console.log('missing') }}"
    if run(folder_with_ids, node, "-e", resolve):
        pytest.skip(f"Node finds no {package}: npm install {package}, and name its node_modules in NODE_PATH")
    program = replaced(FILES["recommend.cjs"], "const ort =", f'const ort = require("{package}");')
    users = replaced(program, "const users =", f"const users = {NOBODY};")
    programs = {"recommend.cjs": program, "nobody.cjs": replaced(users, "const k =", "const k = 600;")}
    for name, text in programs.items():
        (folder_with_ids / name).write_text(text, encoding="utf-8")
    assert_equal(ranking(run(folder_with_ids, node, "recommend.cjs")), expected(checkpoint, USERS, 5))
    assert_equal(ranking(run(folder_with_ids, node, "nobody.cjs")), expected(checkpoint, NOBODY, 600))


def section(title: str) -> str:
    """A section of the page, up to the next one of its level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


def test_inputs_and_outputs_are_those_of_the_file(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx").graph
    sizes = {SMALL_ITEMS: "n_items", SMALL.model.n_concepts: "n_concepts"}
    types = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.BOOL: "bool"}
    actual = [
        (
            value.name,
            types[value.type.tensor_type.elem_type],
            ", ".join(size.dim_param or sizes[size.dim_value] for size in value.type.tensor_type.shape.dim),
        )
        for value in [*graph.input, *graph.output]
    ]
    stated = re.findall(r"^\| `(\w+)` \| (\w+) \[(.*?)\] \|", section("What the graph takes and gives"), re.MULTILINE)
    assert stated == actual


def test_names_in_the_file(bundle: Path) -> None:
    text, model = section("The ONNX file in Netron"), onnx.load(bundle / "model.onnx")
    assert (model.graph.name, model.opset_import[0].version) == ("MacridVAE", 20)
    metadata, constants = (re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE) for table in text.split("constants:"))
    assert sorted(metadata) == sorted(entry.key for entry in model.metadata_props)
    nodes = {node.name for node in model.graph.node}
    assert {name.partition("/")[0] for name in nodes if "/" in name} == {"encoder", "decoder"}
    assert set(re.findall(r"`(\w+/[\w./]*\w)`", text)) <= nodes
    large = {tensor.name for tensor in model.graph.initializer if SMALL_ITEMS in tensor.dims and tensor.dims[-1] > 1}
    assert sorted(constants) == sorted(large)


def answer(bundle: Path, **changed: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime answers for two users without exclusions."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {
        "history_items": np.array([3, 17, 250]),
        "history_offsets": np.array([0, 2, 3]),
        "excluded": np.empty((2, 0), dtype=np.int64),
        "allowed": np.ones(SMALL_ITEMS, dtype=bool),
        "concept_weights": np.ones((2, 3), dtype=np.float32),
        "k": np.array(SMALL_ITEMS),
    }
    return session.run(None, inputs | changed)


def test_what_the_page_says_of_inputs(bundle: Path) -> None:
    plain = answer(bundle)
    assert (np.sort(plain[0]) == np.arange(SMALL_ITEMS)).all()  # [users, 0] excludes nothing
    unknown = {
        "history_items": np.array(
            [17, SMALL_ITEMS, 3, 17, 250]
        ),  # in any order; repeats count once; n_items is ignored
        "history_offsets": np.array([0, 4, 5]),
    }
    np.testing.assert_allclose(answer(bundle, **unknown)[1], plain[1], atol=1e-5)
    ratios = answer(bundle, concept_weights=np.full((2, 3), 2, dtype=np.float32))
    np.testing.assert_allclose(ratios[1], plain[1], atol=1e-5)
    nothing = answer(bundle, concept_weights=np.zeros((2, 3), dtype=np.float32))
    assert (nothing[0] == -1).all()
    assert np.isneginf(nothing[1]).all()
    assert (nothing[2] == 0).all()
    sold_out = answer(bundle, allowed=np.arange(SMALL_ITEMS) != plain[0][0, 0])
    assert sold_out[0][0, -1] == -1
    np.testing.assert_allclose(sold_out[1][0, :-1], plain[1][0, 1:], atol=1e-5)  # whatever is excluded
