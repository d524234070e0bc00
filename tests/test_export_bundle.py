"""Opening a bundle: what does not fit together is refused by name; of thousands of mutants none is accepted wrongly."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from conftest import SMALL_ITEMS, random_histories, small_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from export.bundle import Bundle, read_bundle, weight_shapes
from export.signing import SIGNATURE, sign
from pipeline.config import ModelConfig
from pipeline.errors import InputError, JobError
from pipeline.manifest import digests
from pipeline.vocabulary import Vocabulary
from scoring.runtimes import open_scorer

AGAIN = "Export the checkpoint again."


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(path: Path, change: Callable[[dict[str, Any]], object] = lambda fields: None) -> None:
    """Alter the manifest's fields, its digests renewed: what somebody who knows the format would do."""
    file = path / "manifest.json"
    fields = json.loads(file.read_bytes())
    fields["files"] = {name: found.model_dump() for name, found in digests(path).items()}
    change(fields)
    file.write_text(json.dumps(fields))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_bundle(path)
    return str(error.value)


def test_the_folder_may_be_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    assert read_bundle(tmp_path / "current").digest == read_bundle(bundle).digest


def test_weights_of_another_number_of_items(copy: Path) -> None:
    weights = load_file(copy / "weights.safetensors")
    save_file({**weights, "item_embedding": weights["item_embedding"][:-1]}, copy / "weights.safetensors")
    edit(copy)
    assert refusal(copy) == (
        f"{copy / 'weights.safetensors'}: 'item_embedding' is F32 [499, 8], but by the config and the number of items "
        f"it is F32 [500, 8]. {AGAIN}"
    )


def test_weights_of_other_names_and_types(copy: Path) -> None:
    path = copy / "weights.safetensors"
    weights = load_file(path)
    prototypes = weights.pop("prototypes")
    save_file({**weights, "prototype": prototypes}, path)
    edit(copy)
    assert refusal(copy) == (
        f"{path}: 'prototype' is F32 [3, 8], but by the config and the number of items it is absent. {AGAIN}"
    )
    save_file(weights, path)
    edit(copy)
    assert refusal(copy) == (
        f"{path}: 'prototypes' is absent, but by the config and the number of items it is F32 [3, 8]. {AGAIN}"
    )
    save_file({**weights, "prototypes": prototypes.astype(np.float16)}, path)
    edit(copy)
    assert refusal(copy) == (
        f"{path}: 'prototypes' is F16 [3, 8], but by the config and the number of items it is F32 [3, 8]. {AGAIN}"
    )


def test_weights_that_are_no_safetensors(copy: Path) -> None:
    (copy / "weights.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    edit(copy)
    assert refusal(copy) == (
        f"{copy / 'weights.safetensors'} is not a safetensors file: Error while deserializing header: header too "
        f"small. {AGAIN}"
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x80\x04K\x01."])
def test_a_vocabulary_that_is_no_parquet(content: bytes, copy: Path) -> None:
    (copy / "items.parquet").write_bytes(content)
    edit(copy)
    assert re.fullmatch(
        rf"{copy}/items\.parquet cannot be read as Parquet \(.+\)\. Write it again\.", refusal(copy), re.DOTALL
    )


def test_another_config(copy: Path) -> None:
    edit(copy, lambda fields: fields["config"]["model"].update(embedding_size=9))
    assert refusal(copy) == (
        f"{copy / 'weights.safetensors'}: 'encoder.output.bias' is F32 [16], but by the config and the number of items "
        f"it is F32 [18]. {AGAIN}"
    )


def test_another_number_of_concepts_than_the_config(copy: Path) -> None:
    edit(copy, lambda fields: fields.update(n_concepts=4))
    assert refusal(copy) == f"{copy / 'manifest.json'} says 4 concepts, but its config 3. {AGAIN}"


def test_another_number_of_items(copy: Path) -> None:
    edit(copy, lambda fields: fields.update(n_items=10**300))
    assert refusal(copy) == (f"{copy / 'items.parquet'} has 500 items, but this bundle's graph has {10**300}. {AGAIN}")


def test_files_the_manifest_must_name(copy: Path) -> None:
    for name in ("items.parquet", "weights.safetensors"):
        edit(copy, lambda fields, name=name: fields["files"].pop(name))  # type: ignore[misc]
        assert refusal(copy) == f"{copy / 'manifest.json'} does not name {name}. {AGAIN}"


GRAPHS = "'onnx' ('model.onnx'), 'pt2' ('model.pt2'), 'torchscript' ('model.torchscript.pt')"


@pytest.mark.parametrize(
    ("change", "declared", "named"),
    [
        (lambda f: f["formats"].pop("torchscript"), "'onnx' ('model.onnx'), 'pt2' ('model.pt2')", GRAPHS),
        (lambda f: f["files"].pop("model.onnx"), GRAPHS, "'pt2' ('model.pt2'), 'torchscript' ('model.torchscript.pt')"),
        (
            lambda f: f["formats"]["onnx"].update(file="model.torchscript.pt"),
            "'onnx' ('model.torchscript.pt'), 'pt2' ('model.pt2'), 'torchscript' ('model.torchscript.pt')",
            GRAPHS,
        ),
        (
            lambda f: f["formats"].update(pickle=f["formats"].pop("torchscript")),
            "'onnx' ('model.onnx'), 'pickle' ('model.torchscript.pt'), 'pt2' ('model.pt2')",
            GRAPHS,
        ),
        (lambda f: f["formats"].clear(), "none", GRAPHS),
    ],
)
def test_graphs_the_gate_never_saw(change: Callable[[Any], object], declared: str, named: str, copy: Path) -> None:
    edit(copy, change)
    assert refusal(copy) == (
        f"{copy / 'manifest.json'} declares the graphs {declared}, but names the files of {named}. {AGAIN}"
    )


def test_a_graph_of_other_sizes(copy: Path) -> None:
    """Vocabulary, weights and manifest cut to 499 items, the graph left as it was."""
    Vocabulary(Vocabulary.read(copy / "items.parquet").items.head(499)).write(copy / "items.parquet")
    weights = load_file(copy / "weights.safetensors")
    cut = {name: weights[name][:499] for name in ("item_embedding", "encoder.input.weight")}
    save_file({**weights, **cut}, copy / "weights.safetensors")
    edit(copy, lambda fields: fields.update(n_items=499))
    opened = read_bundle(copy)
    for form in ("onnx", "torchscript"):
        with pytest.raises(InputError) as error:
            opened.check_opened(open_scorer(copy, form, "cpu"))
        assert str(error.value) == (
            f"The graph of {copy} has 500 items and 3 concepts, but its manifest.json says 499 and 3. {AGAIN}"
        )


@pytest.mark.parametrize(("form", "file"), [("onnx", "model.onnx"), ("torchscript", "model.torchscript.pt")])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04K\x01."])
def test_a_graph_its_runtime_refuses(form: str, file: str, content: bytes, copy: Path) -> None:
    (copy / file).write_bytes(content)
    edit(copy)
    read_bundle(copy)
    with pytest.raises(InputError) as error:
        open_scorer(copy, form, "cpu")
    assert re.fullmatch(
        rf"{copy}/{re.escape(file)} cannot be opened on cpu: .+\. Export the checkpoint again with the versions "
        r"installed here, or choose another --format or --device\.",
        str(error.value),
    )


def test_an_onnx_file_that_is_no_graph_of_ours(copy: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Exp", ["x"], ["y"])], "other", [x], [y])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10),
        copy / "model.onnx",
    )
    with pytest.raises(InputError) as error:
        open_scorer(copy, "onnx", "cpu")
    assert str(error.value) == (
        f"{copy / 'model.onnx'} cannot be opened on cpu: 'allowed'. Export the checkpoint again with the versions "
        "installed here, or choose another --format or --device."
    )


def test_external_data_outside_the_bundle(copy: Path) -> None:
    """ONNX files can name others for their tensors; the runtime refuses those that lie elsewhere."""
    model = onnx.load(copy / "model.onnx")
    onnx.save_model(model, copy / "model.onnx", save_as_external_data=True, location="outside.bin", size_threshold=1024)
    (copy / "outside.bin").rename(copy.parent / "outside.bin")
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.bin"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    edit(copy)
    with pytest.raises(InputError, match="External data path escapes model directory"):
        open_scorer(copy, "onnx", "cpu")


def test_a_bundle_replaced_while_it_is_opened(copy: Path, tmp_path: Path) -> None:
    """Another export of the same weights, but not what was verified."""
    shutil.copytree(copy, tmp_path / "next")
    opened = read_bundle(copy)
    opened.check_opened(open_scorer(copy, "onnx", "cpu"))
    copy.rename(tmp_path / "former")
    (tmp_path / "next").rename(copy)
    with pytest.raises(JobError) as error:
        opened.check_opened(open_scorer(copy, "onnx", "cpu"))
    assert str(error.value) == (
        f"{copy / 'MODEL_CARD.md'} was replaced or written to while it was being opened. Run again."
    )


@pytest.mark.parametrize("hidden", [[5], [5, 6], [5, 6, 7]])
@pytest.mark.parametrize("history_norm", ["per-concept", "history"])
def test_weight_shapes_are_those_of_the_model(hidden: list[int], history_norm: Any) -> None:
    config = ModelConfig(n_concepts=2, embedding_size=3, encoder_hidden_sizes=hidden, history_norm=history_norm)
    state = small_model(config, 11).state_dict()
    assert weight_shapes(config, 11) == {name: list(weight.shape) for name, weight in state.items()}


def test_scoring_with_onnx_opens_no_pickle(bundle: Path, tmp_path: Path) -> None:
    """Whatever unpickles an object asks for its class, and the interpreter announces that."""
    pl.DataFrame({"user_id": [1, 1], "item_id": ["item-003", "item-004"]}).write_parquet(tmp_path / "users.parquet")
    code = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, _: event.startswith('pickle.') and seen.append(event))\n"
        "from pipeline.cli import main\n"
        "import pickle, fractions\n"
        "pickle.loads(pickle.dumps(fractions.Fraction(1)))\n"
        "assert 'pickle.find_class' in seen, seen\n"
        "seen.clear()\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print('pickles', seen, 'torch' in sys.modules)\n"
    )
    command = ["score", "--input", "users.parquet", "--bundle", str(bundle), "--k", "3", "--device", "cpu"]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "pickles [] False"


# Mutants. "Accepted wrongly" is: opened although a file is not the one that was written, or although the manifest
# claims something else than was written outside of DESCRIPTIVE, the fields nothing in the bundle can be held against.
# With a public key it is: opened although anything at all is different.

DESCRIPTIVE = [
    *(("checkpoint",), ("counts",), ("metrics",), ("precision",), ("versions",)),
    *(("config", "data"), ("config", "training")),
    *(("config", "model", name) for name in ("dropout", "gumbel", "history_norm", "prior_std", "temperature")),
    *(
        ("formats", form, field)
        for form in ("onnx", "pt2", "torchscript")
        for field in ("opset", "operators", "parity")
    ),
]
FILES = [
    *("MODEL_CARD.md", "items.parquet", "manifest.json", SIGNATURE),
    *("model.onnx", "model.pt2", "model.torchscript.pt", "weights.safetensors"),
]


class Farm:
    """A signed bundle, a folder in which it is mutated again and again, and what became of the mutants."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.source, self.folder, self.public_key = folder / "source", folder / "mutant", folder / "public.pem"
        shutil.copytree(bundle, self.source)
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        sign(self.source, key)
        self.public_key.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        (folder / "elsewhere").mkdir()
        for name in FILES:
            shutil.copyfile(self.source / name, folder / "elsewhere" / name)
        self.content = {name: (self.source / name).read_bytes() for name in FILES}
        self.opened = read_bundle(self.source, self.public_key)
        self.histories = random_histories([0, 1, 5, 40], SMALL_ITEMS, seed=9)
        self.scored: dict[str, bytes] = {}
        self.scores = self.score(self.source, self.opened)
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def fresh(self) -> Path:
        """The bundle again; hard links, so whatever writes must replace the file."""
        if self.folder.is_symlink() or self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name in FILES:
            (self.folder / name).hardlink_to(self.source / name)
        return self.folder

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_bytes(content)

    def same(self, names: list[str]) -> bool:
        """Whether the folder holds exactly these files, as they were written."""
        there = {path.name for path in self.folder.iterdir()}
        files = [self.folder / name for name in names]
        plain = all(file.is_file() and not file.is_symlink() for file in files)
        return (
            there | {SIGNATURE} == set(FILES) and plain and all(f.read_bytes() == self.content[f.name] for f in files)
        )

    def score(self, folder: Path, bundle: Bundle) -> bytes:
        """The recommendations of a graph, by its content."""
        sha256 = bundle.manifest.files["model.onnx"].sha256
        if sha256 not in self.scored:
            scorer = open_scorer(folder, "onnx", "cpu")
            bundle.check_opened(scorer)
            self.scored[sha256] = b"".join(part.tobytes() for part in scorer(self.histories, 20))
        return self.scored[sha256]

    def judge(self, kind: str) -> None:
        """Open the mutant, without and with the public key; anything but InputError passes through."""
        identical = self.same(FILES)
        try:
            opened = read_bundle(self.folder)
        except InputError:
            assert not identical
            self.outcomes[kind, "refused"] += 1
        else:
            assert self.same([name for name in FILES if name not in ("manifest.json", SIGNATURE)])
            assert checkable(opened) == checkable(self.opened)
            assert opened.vocabulary.items.equals(self.opened.vocabulary.items)
            assert self.score(self.folder, opened) == self.scores
            self.outcomes[kind, "unchanged" if identical else "harmless"] += 1
        try:
            read_bundle(self.folder, self.public_key)
        except InputError:
            assert not identical
        else:
            assert identical
            self.outcomes[kind, "verified"] += 1


def checkable(bundle: Bundle) -> dict[str, Any]:
    """What a manifest claims, without what only describes."""
    claims = bundle.manifest.model_dump(mode="json")
    for *above, last in DESCRIPTIVE:
        place = claims
        for key in above:
            place = place[key]
        place.pop(last)
    return claims


@pytest.fixture(scope="module")
def farm(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Farm:
    return Farm(bundle, tmp_path_factory.mktemp("farm"))


numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2, 3, 4, 499, 500, 501, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320]
    ),
    st.integers(),
    st.floats(),
)
texts = st.one_of(st.text(max_size=20), st.sampled_from(["../x", "/etc/passwd", "a\\b", "C:x", "", ".", "\0", *FILES]))
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def places(fields: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, the value itself first."""
    children = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@st.composite
def edited_manifest(draw: Any, content: bytes) -> tuple[str, bytes]:
    """One to three edits anywhere in the JSON."""
    root = {"": json.loads(content)}
    kind = ""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        everywhere = [place for place in places(root) if place]
        *above, key = draw(st.sampled_from(everywhere))
        parent: Any = root
        for step in above:
            parent = parent[step]
        kind = draw(st.sampled_from(["replaced", "number", "dropped", "renamed", "added", "moved"]))
        if kind == "dropped" and above:
            del parent[key]
        elif kind == "renamed" and isinstance(parent, dict) and above:
            parent[draw(texts)] = parent.pop(key)
        elif kind == "added" and isinstance(parent[key], dict):
            parent[key][draw(texts)] = draw(values)
        elif kind == "moved":
            place: Any = root
            for step in draw(st.sampled_from(everywhere)):
                place = place[step]
            parent[key] = json.loads(json.dumps(place))
        else:
            kind = "number" if kind == "number" else "replaced"
            parent[key] = draw(numbers if kind == "number" else values)
    text = json.dumps(root.get(""), indent=draw(st.sampled_from([None, 2])), ensure_ascii=draw(st.booleans()))
    return f"manifest: {kind}", text.encode("utf-8", "surrogatepass")


@st.composite
def repeated_key(draw: Any, content: bytes) -> tuple[str, bytes]:
    """A key a second time, with another value, in one of the objects."""
    text = content.decode()
    at = draw(st.sampled_from([match.end() for match in re.finditer(r"\{", text)]))
    key = re.match(r'\s*"([^"]*)"', text[at:])
    name = json.dumps(key[1]) if key else '"kind"'
    return "manifest: key repeated", (text[:at] + f"{name}: {json.dumps(draw(values))}, " + text[at:]).encode()


@st.composite
def edited_bytes(draw: Any, content: bytes) -> tuple[str, bytes]:
    """One edit of a file's bytes."""
    kind = draw(st.sampled_from(["flipped", "inserted", "truncated", "deleted", "exchanged"]))
    edited, at = bytearray(content), draw(st.integers(0, len(content) - 1))
    if kind == "flipped":
        edited[at] ^= draw(st.integers(1, 255))
    elif kind == "inserted":
        edited[at:at] = draw(st.binary(min_size=1, max_size=9))
    elif kind == "truncated":
        del edited[at:]
    elif kind == "deleted":
        del edited[at : at + draw(st.integers(1, 9))]
    else:
        other = draw(st.integers(0, len(content) - 1))
        edited[at], edited[other] = edited[other], edited[at]
    return f"bytes {kind}", bytes(edited)


def mutate_structure(farm: Farm, data: Any) -> str:
    """Files added, removed, renamed, exchanged, or replaced by something that is no file."""
    kind = data.draw(
        st.sampled_from(
            ["added", "removed", "renamed", "exchanged", "link", "link to itself", "folder", "pipe", "named"]
        )
    )
    folder, name = farm.folder, data.draw(st.sampled_from(FILES))
    free = st.from_regex(r"[a-z.]{1,8}[a-z]", fullmatch=True).filter(lambda text: text not in FILES)
    if kind == "added":
        farm.write(data.draw(free), data.draw(st.binary(max_size=9)))
        return "file added"
    path = folder / name
    if kind == "exchanged":
        other = data.draw(st.sampled_from([file for file in FILES if file != name]))
        farm.write(name, farm.content[other])
        farm.write(other, farm.content[name])
        return "files exchanged"
    if kind == "renamed":
        path.rename(folder / data.draw(free))
        return "file renamed"
    path.unlink()
    if kind == "link":
        path.symlink_to(Path("..", "elsewhere", name))
    elif kind == "link to itself":
        path.symlink_to(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "named":
        path = folder / data.draw(free)
        path.symlink_to(farm.source / name)
    return (
        f"file {kind}" if kind == "removed" else "file replaced by a " + kind.replace("named", "link of another name")
    )


def raise_mutant(farm: Farm, data: Any) -> None:
    """Draw a mutant and judge it."""
    folder = farm.fresh()
    sort = data.draw(st.sampled_from(["manifest", "manifest", "repeated", "bytes", "bytes", "structure", "resealed"]))
    if sort in ("manifest", "repeated"):
        strategy = edited_manifest if sort == "manifest" else repeated_key
        kind, content = data.draw(strategy(farm.content["manifest.json"]))
        farm.write("manifest.json", content)
    elif sort == "structure":
        kind = mutate_structure(farm, data)
    else:
        name = data.draw(st.sampled_from(FILES if sort == "bytes" else ["items.parquet", "weights.safetensors"]))
        kind, content = data.draw(edited_bytes(farm.content[name]))
        kind = {"manifest.json": "manifest: ", SIGNATURE: "signature: "}.get(name, "") + kind
        farm.write(name, content)
    if sort == "resealed":
        fields = json.loads(farm.content["manifest.json"])
        fields["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        farm.write("manifest.json", json.dumps(fields).encode())
        judge_resealed(farm, folder, content == farm.content[name])
    else:
        farm.judge(kind)


def judge_resealed(farm: Farm, folder: Path, same: bool) -> None:
    """A file altered, and its digest with it: never a crash, never other sizes, and never with the public key."""
    with pytest.raises(InputError):
        read_bundle(folder, farm.public_key)
    try:
        opened = read_bundle(folder)
    except InputError:
        assert not same
        farm.outcomes["bytes and digest", "refused"] += 1
    else:
        assert len(opened.vocabulary) == SMALL_ITEMS
        farm.outcomes["bytes and digest", "unchanged" if same else "only a signature tells"] += 1


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutants(farm: Farm, data: Any) -> None:
    raise_mutant(farm, data)


@pytest.mark.slow
def test_ten_thousand_mutants(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what became of them, by kind."""
    farm.outcomes.clear()
    started = time.monotonic()
    many = settings(max_examples=10_500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    many(given(data=st.data())(lambda data: raise_mutant(farm, data)))()
    kinds = sorted({kind for kind, _ in farm.outcomes})
    results = ("refused", "harmless", "only a signature tells", "unchanged")
    total = sum(farm.outcomes[kind, result] for kind in kinds for result in results[:3])
    with capsys.disabled():
        print(f"\n{total:,} mutants in {time.monotonic() - started:.0f} s: {', '.join(results)}")
        for kind in kinds:
            print(f"{kind:40}", *(f"{farm.outcomes[kind, result]:7,}" for result in results))
    assert total >= 10_000
    assert sum(farm.outcomes[kind, "refused"] for kind in kinds) > total / 2
