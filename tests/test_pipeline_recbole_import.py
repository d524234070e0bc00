"""A MacridVAE of RecBole's becomes a checkpoint: the same scores, nothing of the file run.

Files in RecBole's layout are written here under its names; the last test compares with RecBole itself where it is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from click.testing import CliRunner
from recbole_file import SETTINGS, TOKENS, recbole_weights, write_pth

import pipeline.recbole_checkpoint
from export.exporter import export_bundle
from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.cli import main
from pipeline.eager import EagerScorer
from pipeline.errors import InputError
from pipeline.fitting import to_batch
from pipeline.histories import Histories
from pipeline.model import Draws
from pipeline.recbole_checkpoint import read_recbole_checkpoint
from pipeline.recbole_import import import_recbole
from pipeline.recbole_numbering import number_items
from scoring.runtimes import open_scorer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "recbole"
INTER = "user_id:token\titem_id:token\n" + "".join(
    f"{user}\t{item}\n" for user, item in [("u", "30"), ("u", "7"), ("v", "30"), ("v", "007"), ("w", "a b"), ("u", "7")]
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.inter").write_text(INTER)
    return folder


def imported(folder: Path, dataset: Path, **options: Any) -> Checkpoint:
    import_recbole(write_pth(folder / "model.pth"), dataset, folder / "checkpoint", **options)
    return read_checkpoint(folder / "checkpoint")


def recbole_scores(weights: dict[str, torch.Tensor], x_BI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """RecBole's forward in evaluation, in float64: scores [B, items and padding], and its KL term."""
    of = {name: weight.double() for name, weight in weights.items()}
    unit = torch.nn.functional.normalize
    items, cores = unit(of["item_embedding.weight"]), unit(of["k_embedding.weight"])
    shares_IC = torch.softmax(items @ cores.T / SETTINGS["tau"], dim=1)
    total, kl = torch.zeros(len(x_BI), len(items), dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for share_I in shares_IC.T:
        hidden = unit(x_BI.double()) * share_I
        for layer in (0, 2):
            hidden = torch.tanh(hidden @ of[f"encoder.{layer}.weight"].T + of[f"encoder.{layer}.bias"])
        mean, logvar = (hidden @ of["encoder.4.weight"].T + of["encoder.4.bias"]).chunk(2, dim=1)
        kl += -0.5 * torch.mean(torch.sum(1 + logvar - logvar.exp(), dim=1))
        total += torch.exp(unit(mean) @ items.T / SETTINGS["tau"]) * share_I
    return torch.log(total), kl


def test_scores_are_recbole_s_less_their_logsumexp(tmp_path: Path, dataset: Path) -> None:
    checkpoint = imported(tmp_path, dataset)
    histories = [[0], [0, 1], [0, 2], [1, 2, 3]]
    x_BI = torch.zeros(len(histories), len(TOKENS) + 1)
    for row, history in enumerate(histories):
        x_BI[row, [1 + item for item in history]] = 1
    theirs_BI, kl = recbole_scores(recbole_weights(SETTINGS), x_BI)
    real_BI = theirs_BI[:, 1:]
    expected_BI = real_BI - torch.logsumexp(real_BI, dim=1, keepdim=True)
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ["onnx"], open_scorer)
    for scorer in (EagerScorer(checkpoint.model()), open_scorer(tmp_path / "bundle", "onnx", "cpu")):
        found = scorer(Histories.of(histories), len(TOKENS))
        ours_BI = np.empty(expected_BI.shape)
        np.put_along_axis(ours_BI, found.items, found.scores.astype(np.float64), axis=1)
        np.testing.assert_allclose(ours_BI, expected_BI.numpy(), atol=1e-5)
    batch = to_batch(Histories.of(histories), "cpu")
    quiet = Draws(None, torch.ones(len(batch.items_N), 3), torch.zeros(3, len(histories), 6))
    assert checkpoint.model()(batch, quiet).kl.item() == pytest.approx(kl.item(), rel=1e-5)


def test_what_the_checkpoint_says(tmp_path: Path, dataset: Path) -> None:
    pl.DataFrame({"item_id": ["7"], "title": ["Seven"]}).write_parquet(tmp_path / "items.parquet")
    checkpoint = imported(tmp_path, dataset, items=tmp_path / "items.parquet")
    assert checkpoint.vocabulary.items.select("item_id", "n_interactions", "title").rows() == [
        *(("30", 2, None), ("7", 1, "Seven"), ("007", 1, None), ("a b", 1, None)),
    ]
    fields = checkpoint.manifest.config.fields()
    assert fields["model.history_norm"] == "history"
    assert (fields["model.n_concepts"], fields["model.temperature"], fields["model.prior_std"]) == (3, 0.2, 0.05)
    assert checkpoint.manifest.counts == {"users": 3, "interactions": 5, "items": 4}
    assert (checkpoint.manifest.best_epoch, checkpoint.manifest.metrics) == (None, {})
    assert sorted(history.tolist() for history in map(checkpoint.training.__getitem__, range(3))) == [
        [0, 1],
        [0, 2],
        [3],
    ]


def test_the_command(tmp_path: Path, dataset: Path) -> None:
    model = write_pth(tmp_path / "model.pth")
    arguments = ["import", str(model), "--input", str(dataset), "--output", str(tmp_path / "checkpoint"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    facts = {"checkpoint": str(tmp_path / "checkpoint"), "users": 3, "interactions": 5, "items": 4}
    assert json.loads(result.stdout) == facts
    result = CliRunner().invoke(main, ["evaluate", "--model", str(tmp_path / "checkpoint")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: Evaluating {tmp_path / 'checkpoint'} takes both --history and --truth: Parquet files about the same "
        "users.\n"
    )


def test_weights_without_settings_take_a_yaml(tmp_path: Path, dataset: Path) -> None:
    model = write_pth(tmp_path / "model.pth", settings=None)
    with pytest.raises(InputError) as error:
        import_recbole(model, dataset, tmp_path / "checkpoint")
    assert str(error.value) == f"{model} holds weights without settings. Name the YAML it was trained with: --config."
    (tmp_path / "recbole.yaml").write_text(yaml.safe_dump(SETTINGS))
    import_recbole(model, dataset, tmp_path / "checkpoint", config=tmp_path / "recbole.yaml")
    assert read_checkpoint(tmp_path / "checkpoint").manifest.config.model.temperature == 0.2


def refusal(folder: Path, dataset: Path, settings: dict[str, Any], **options: Any) -> str:
    weights = options.pop("weights", None)
    model = write_pth(folder / "model.pth", SETTINGS | settings, weights)
    with pytest.raises(InputError) as error:
        import_recbole(model, dataset, folder / "checkpoint", **options)
    assert not (folder / "checkpoint").exists()
    return str(error.value).replace(str(folder), "~")


def test_what_does_not_belong_together(tmp_path: Path, dataset: Path) -> None:
    assert refusal(tmp_path, dataset, {"model": "MultiVAE"}) == (
        "~/model.pth holds a MultiVAE, not a MacridVAE. Train a MacridVAE."
    )
    assert refusal(tmp_path, dataset, {"tau": 0.001}) == (
        "~/model.pth is not a valid config:\n  tau (model.temperature): Input should be greater than or equal to 0.025"
    )
    assert refusal(tmp_path, dataset, {"encoder_hidden_size": [9]}) == (
        "~/model.pth holds encoder.0.bias, encoder.0.weight, encoder.2.bias, encoder.2.weight, encoder.4.bias, "
        "encoder.4.weight, item_embedding.weight, k_embedding.weight; a MacridVAE with its settings has "
        "encoder.0.bias, encoder.0.weight, encoder.2.bias, encoder.2.weight, item_embedding.weight, "
        "k_embedding.weight. Name the YAML it was trained with: --config."
    )
    assert refusal(tmp_path, dataset, {"kfac": 2}) == (
        "The weights of ~/checkpoint do not fit its config and its 4 items: prototypes has shape [3, 6], expected "
        "[2, 6]. Correct [model] in the config, or use the weights that belong to it."
    )
    assert refusal(tmp_path, dataset, {"rm_dup_inter": "first"}) == (
        "The model was trained with rm_dup_inter, which is not repeated here. "
        "Give RecBole's own numbering with --tokens."
    )
    assert refusal(tmp_path, dataset, {"item_inter_num_interval": "[2,inf)"}) == (
        "~/model.pth has 4 items, but ~/data has 2. Name the data it was trained on; if RecBole filtered them: "
        "Give RecBole's own numbering with --tokens."
    )
    assert refusal(tmp_path, dataset, {"val_interval": {"rating": "[3,inf)"}}) == (
        "~/data/x.inter has no field rating, which the model was trained with. "
        "Give RecBole's own numbering with --tokens."
    )


def test_recbole_s_own_numbering(tmp_path: Path, dataset: Path) -> None:
    """For what is not repeated here: the tokens in RecBole's order, its padding among them or not."""
    (dataset / "x.inter").write_text(INTER + 'NA\t7\nx\tNA\n"y"\t30\n')
    (tmp_path / "tokens.txt").write_text("[PAD]\n007\n30\na b\n7\n")
    vocabulary = imported(tmp_path, dataset, tokens=tmp_path / "tokens.txt").vocabulary
    assert vocabulary.items["item_id"].to_list() == ["007", "30", "a b", "7"]
    assert vocabulary.items["n_interactions"].to_list() == [1, 3, 1, 1]


def test_a_numbering_that_repeats_a_token(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "tokens.txt").write_text("007\n30\n007\n7\n")
    assert refusal(tmp_path, dataset, {}, tokens=tmp_path / "tokens.txt") == (
        "~/tokens.txt repeats '007'. Write each token once."
    )


def numbers(folder: Path, inter: str, settings: dict[str, Any], item: str | None = None) -> list[str]:
    (folder / "x.inter").write_text(inter)
    if item is not None:
        (folder / "x.item").write_text(item)
    return number_items(folder, settings).tokens.to_list()


RATED = "user_id:token\titem_id:token\trating:float\n" + "".join(
    f"{user}\t{item}\t{rating}\n"
    for user, item, rating in [
        *(("u", "d", "1"), ("u", "NA", "5"), ("u", "c", "5"), ("v", "b", "4"), ("v", "c", "nan")),
        *(("w", "b", "5"), ("w", "a", "4"), ("u", "b", "3"), ("u", "null", "5")),
    ]
)


def test_items_are_numbered_by_first_appearance(tmp_path: Path) -> None:
    assert numbers(tmp_path, RATED, {}) == ["d", "c", "b", "a"]


def test_filters_come_before_numbers(tmp_path: Path) -> None:
    above = {"val_interval": {"rating": "(3,inf)"}}
    assert numbers(tmp_path, RATED, above) == ["c", "b", "a"]
    assert numbers(tmp_path, RATED, {"val_interval": {"rating": "[1,2];[4,4]"}}) == ["d", "b", "a"]
    assert numbers(tmp_path, RATED, {"val_interval": {"user_id": ["v", "w"]}}) == ["b", "c", "a"]
    assert numbers(tmp_path, RATED, {"item_inter_num_interval": "[2,inf)"}) == ["c", "b"]
    both = {"item_inter_num_interval": "[2,inf)", "user_inter_num_interval": "[2,inf)"}
    assert numbers(tmp_path, RATED, both) == ["c", "b"]
    assert numbers(tmp_path, RATED, both | above) == []


def test_a_loaded_item_file_comes_after_the_interactions(tmp_path: Path) -> None:
    item = "item_id:token\nz\nc\nb\nb\ny\n"
    assert numbers(tmp_path, RATED, {}, item) == ["d", "c", "b", "a"]
    loaded: dict[str, Any] = {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]}}
    assert numbers(tmp_path, RATED, loaded) == ["c", "b", "z", "y"]
    assert numbers(tmp_path, RATED, {"load_col": None}) == ["c", "b", "z", "y"]
    assert numbers(tmp_path, RATED, loaded | {"filter_inter_by_user_or_item": False}) == ["d", "c", "b", "a", "z", "y"]
    assert numbers(tmp_path, RATED, loaded | {"item_inter_num_interval": "[1,inf)"}) == ["c", "b"]
    assert numbers(tmp_path, RATED, loaded | {"item_inter_num_interval": "[0,2]"}) == ["c", "z", "y"]


def test_benchmark_files_follow_one_another_unfiltered(tmp_path: Path) -> None:
    for split, item in (("train", "b"), ("valid", "c"), ("test", "a")):
        (tmp_path / f"x.{split}.inter").write_text(f"user_id:token\titem_id:token\nu\t{item}\n")
    settings = {"benchmark_filename": ["train", "valid", "test"], "item_inter_num_interval": "[5,inf)"}
    assert number_items(tmp_path, settings).tokens.to_list() == ["b", "c", "a"]


def test_missing_ids_that_recbole_mixes_up(tmp_path: Path) -> None:
    """It drops rows by labels as if they were positions, so after the first rows are gone it drops others."""
    with pytest.raises(InputError) as error:
        numbers(tmp_path, RATED + "NA\tc\t5\n", {})
    assert str(error.value) == (
        f"{tmp_path} has rows without user and rows without item (empty, or NA and the like), of which RecBole drops "
        "others in their place. Give RecBole's own numbering with --tokens."
    )
    loaded: dict[str, Any] = {"load_col": None}
    with pytest.raises(InputError) as error:
        numbers(tmp_path, RATED, loaded, "item_id:token\nz\nnull\n")
    assert str(error.value) == (
        f"{tmp_path / 'x.item'} has lines without item_id, which RecBole may drop others for. "
        "Give RecBole's own numbering with --tokens."
    )


def test_quotes_are_left_to_recbole(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        numbers(tmp_path, 'user_id:token\titem_id:token\nu\t"a"\n', {})
    assert str(error.value) == (
        f"{tmp_path} has ids that begin with a quote, which RecBole reads in its own way. "
        "Give RecBole's own numbering with --tokens."
    )


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def write_archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", "little")
    return path


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.mkdir,), f"{os.name}.mkdir"),
        ((eval, "__import__('os').mkdir({!r})"), "builtins.eval"),
        ((getattr, os, "mkdir"), "builtins.getattr"),
        ((torch.load,), "torch.serialization.load"),
        ((subprocess.check_output, ["mkdir"]), "subprocess.check_output"),
        ((np.load,), "numpy.load"),
        ((pickle.loads, b"."), "_pickle.loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_would_run_something_is_refused(
    tmp_path: Path, call: tuple[Any, ...], name: str, protocol: int
) -> None:
    canary = tmp_path / "canary"
    function, *arguments = call
    arguments = [one.format(str(canary)) if isinstance(one, str) else one for one in arguments if one is not os]
    evil = Runs(function, *(arguments or [str(canary)]))
    path = write_archive(tmp_path / "evil.pth", pickle.dumps({"state_dict": evil}, protocol, fix_imports=False))
    with pytest.raises(InputError) as error:
        read_recbole_checkpoint(path)
    assert str(error.value) == (
        f"{path} asks for {name}, which no checkpoint of RecBole's does. Nothing in it was run. "
        "Do not open it with torch.load; get the file anew from where it was trained."
    )
    assert not canary.exists()


def test_a_foreign_object_deep_in_the_config_is_refused_too(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "evil.pth", SETTINGS | {"callback": Runs(os.mkdir, str(tmp_path / "canary"))})
    with pytest.raises(InputError, match=rf"asks for {os.name}.mkdir, which no checkpoint"):
        read_recbole_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_names_of_recbole_s_do_nothing(tmp_path: Path) -> None:
    """Not even where RecBole is installed: a name below recbole may be anything that it imports."""
    canary = tmp_path / "canary"
    text = f"crecbole.config.configurator\nos.mkdir\n(V{canary}\ntR."
    path = write_archive(tmp_path / "evil.pth", text.encode())
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint of RecBole 1\.2"):
        read_recbole_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["recbole.x\nY", "collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2"])
@pytest.mark.parametrize("state", ["(dVcall\nI1\ns", "(N(dVcall\nI1\nst"])
def test_what_stands_in_cannot_be_changed(tmp_path: Path, name: str, state: str) -> None:
    """BUILD sets attributes of what it is given; of these it must not."""
    classes = [pipeline.recbole_checkpoint._Inert, pipeline.recbole_checkpoint._View]
    before = [dict(vars(one)) for one in classes]
    path = write_archive(tmp_path / "evil.pth", f"c{name}\n{state}b.".encode())
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint of RecBole 1\.2 \((Type|Attribute)Error"):
        read_recbole_checkpoint(path)
    assert [dict(vars(one)) for one in classes] == before


def test_tensors_cannot_reach_outside_their_numbers(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "model.pth")
    good = read_recbole_checkpoint(path).weights["k_embedding.weight"]
    torch.testing.assert_close(good, recbole_weights(SETTINGS)["k_embedding.weight"], rtol=0, atol=0)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in members if name.endswith("data/0"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:8] if name == key else content)
    with pytest.raises(InputError, match=r"cannot be read .*RuntimeError: setStorage: .* out of bounds"):
        read_recbole_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04", b"nonsense"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x.pth cannot be read as a checkpoint of RecBole 1.2 \(BadZipFile: "):
        read_recbole_checkpoint(tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        read_recbole_checkpoint(tmp_path / "none.pth")
    assert str(error.value) == (
        f"{tmp_path / 'none.pth'} does not exist. Name a .pth file of RecBole's, from its folder saved/."
    )


def recbole_python() -> str:
    """An interpreter with RecBole."""
    python = os.environ.get("RECBOLE_PYTHON", sys.executable)
    command = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('recbole') is None)"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("RecBole is not installed (RECBOLE_PYTHON names an interpreter that has it)")
    return python


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "filtered": {
        "load_col": {"inter": ["user_id", "item_id", "rating"]},
        "val_interval": {"rating": "[2,inf)"},
        "user_inter_num_interval": "[6,inf)",
        "item_inter_num_interval": "[6,inf)",
    },
    "items": {
        "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]},
        "item_inter_num_interval": "[2,30]",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_against_recbole(tmp_path: Path, case: str) -> None:
    python = recbole_python()
    rng = np.random.default_rng(5)
    folder = tmp_path / "data"
    folder.mkdir()
    pairs = [(user, item) for user in range(60) for item in rng.permutation(40)[: rng.integers(3, 20)]]
    order = rng.permutation(len(pairs))
    names = {3: "NA", 5: "007", 6: "7", 9: "a b"}  # RecBole drops rows of NA
    lines = [f"u{user}\t{names.get(item, item)}\t{rng.integers(1, 6)}\n" for user, item in (pairs[at] for at in order)]
    header = "user_id:token\titem_id:token\trating:float\n"
    (folder / "data.inter").write_text(header + "".join([*lines, *lines[:5]]))
    described = [f"{names.get(item, item)}\n" for item in range(50) if item % 11 and item != 3]
    (folder / "data.item").write_text("item_id:token\n" + "".join(described))
    small = {"embedding_size": 8, "encoder_hidden_size": [12, 10], "kfac": 3, "tau": 0.15, "epochs": 3}
    settings = json.dumps(small | {"train_batch_size": 16, "learning_rate": 0.01} | CASES[case])
    command = [python, str(BENCHMARKS / "scores.py"), str(tmp_path), settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("parity", BENCHMARKS / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    parity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parity)
    found = parity.compare(tmp_path)  # ends the test where items are numbered otherwise
    assert found["largest_difference"] < 1e-5
    assert found["recbole_with_and_without_noise"] == 0
    assert found["users"] > 20


def random_case(rng: np.random.Generator, folder: Path) -> dict[str, Any]:
    """A data set with missing and doubtful ids, and settings that filter it."""
    odd = [*("NA", "null", "nan", "None"), *("007", "7", " x", "x ")]
    users, items = ([odd[i] if i < len(odd) and rng.random() < 0.3 else f"{p}{i}" for i in range(24)] for p in "ui")
    clean = users if rng.random() < 0.5 else items  # RecBole mixes rows up where both may be missing
    clean[:4] = ["c0", "c1", "c2", "c3"]
    rows = [
        (users[rng.integers(24)], items[int(24 * rng.random() ** 2)], rng.choice(["1", "2", "3", "4.5", "nan", ""]))
        for _ in range(150)
    ]
    split = rng.random() < 0.15
    for part, name in enumerate([".train", ".valid", ".test"] if split else [""]):
        lines = ["\t".join(row) for row in (rows[50 * part : 50 * part + 50] if split else rows)]
        text = "\n".join(["user_id:token\titem_id:token\trating:float", *lines, ""])
        (folder / f"data{name}.inter").write_text(text)
    for kind, ids in (("user", users), ("item", items)):
        known = [one for one in ids if one not in odd[:4] and rng.random() < 0.85] + ["extra0", "extra1"]
        described = [str(one) for one in rng.permutation(known)]
        (folder / f"data.{kind}").write_text("\n".join([f"{kind}_id:token", *described, *described[:2], ""]))
    load = {"inter": ["user_id", "item_id", "rating"]}
    load |= {kind: [f"{kind}_id"] for kind in ("user", "item") if rng.random() < 0.5}
    possible: dict[str, Any] = {
        "val_interval": {"rating": str(rng.choice(["[2,inf)", "(1,4.5)", "[1,1];(2,5]"]))},
        "user_inter_num_interval": str(rng.choice(["[3,inf)", "(2,8]", "[0,9]"])),
        "item_inter_num_interval": str(rng.choice(["[4,inf)", "(3,15]", "[0,12)"])),
        "filter_inter_by_user_or_item": False,
    }
    settings = {name: value for name, value in possible.items() if rng.random() < 0.4}
    benchmark = {"benchmark_filename": ["train", "valid", "test"]} if split else {}
    return {"load_col": load if rng.random() < 0.8 else None, **settings, **benchmark}


def test_numbers_are_recbole_s(tmp_path: Path) -> None:
    python, rng, cases = recbole_python(), np.random.default_rng(3), []
    for case in range(100):
        (tmp_path / str(case) / "data").mkdir(parents=True)
        cases.append(random_case(rng, tmp_path / str(case) / "data"))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [python, str(BENCHMARKS / "numbering.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "numbers.json").read_text())
    assert sum(tokens is not None for tokens in theirs) > 80
    for case, (settings, tokens) in enumerate(zip(cases, theirs, strict=True)):
        ours = number_items(tmp_path / str(case) / "data", settings).tokens.to_list()
        assert ["[PAD]", *ours] == (tokens or ["[PAD]"]), settings
