"""The commands as a person types them: a nightly job, evaluation, help, and errors with their exit codes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result
from conftest import SMALL_ITEMS

from pipeline.baselines import EASE_L2
from pipeline.cli import main
from pipeline.demo_data import CATEGORIES, COLD_USER, UNKNOWN_USER, write_demo

FEW_EPOCHS = 3


def pipeline(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="pipeline")


def fine(*arguments: str) -> str:
    result = pipeline(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(code: int, *arguments: str) -> str:
    result = pipeline(*arguments)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's workspace after the three commands, trained for a few epochs only."""
    folder = tmp_path_factory.mktemp("workspace")
    write_demo(folder)
    config = folder / "pipeline.toml"
    lines = config.read_text().splitlines()
    config.write_text(
        "\n".join(f"epochs = {FEW_EPOCHS}" if line.startswith("epochs") else line for line in lines) + "\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "train.json").write_text(fine("train", "--json"))
        (folder / "export.json").write_text(fine("export", "--format", "onnx", "--json"))
        (folder / "score.json").write_text(fine("score", "--input", "users.parquet", "--json"))
    return folder


def test_training_writes_a_checkpoint_and_says_what_it_measured(workspace: Path) -> None:
    printed = json.loads((workspace / "train.json").read_text())
    manifest = json.loads((workspace / "checkpoint" / "manifest.json").read_text())
    assert printed["metrics"] == manifest["metrics"]
    assert printed["counts"] == manifest["counts"]
    assert 1 <= printed["best_epoch"] <= FEW_EPOCHS
    lines = [json.loads(line) for line in (workspace / "checkpoint" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, FEW_EPOCHS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not list(workspace.glob(".*"))


def test_scoring_accounts_for_every_user(workspace: Path) -> None:
    run = workspace / "recommendations"
    asked = pl.read_parquet(workspace / "users.parquet")
    users = pl.read_parquet(run / "users")
    assert sorted(users["user_id"]) == sorted(asked["user_id"])
    status = dict(users.select("user_id", "status").iter_rows())
    assert (status.pop(COLD_USER), status.pop(UNKNOWN_USER)) == ("cold", "unknown")
    assert set(status.values()) == {"scored"}
    data = pl.read_parquet(run / "data")
    assert data.group_by("user_id").len()["len"].unique().to_list() == [100]
    assert data.filter(pl.col("user_id") == COLD_USER)["concept"].null_count() == 100
    seen = asked.explode("history", empty_as_null=True, keep_nulls=True).rename({"history": "item_id"})
    assert data.join(seen, on=["user_id", "item_id"], how="semi").is_empty()
    printed = json.loads((workspace / "score.json").read_text())
    assert printed["scored"] == len(status)
    assert printed["device"] == "cpu"
    assert (run / "_SUCCESS").exists()


def test_every_format_recommends_the_same(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    bundle = str(tmp_path / "bundle")
    printed = json.loads(fine("export", "--output", bundle, "--format", "all", "--json"))
    assert {"onnx", "torchscript", "pt2"} <= printed.keys()
    ours = pl.read_parquet(workspace / "recommendations" / "data").sort("user_id", "item_id")
    for form in ("torchscript", "pt2"):
        fine(
            "score", "--input", "users.parquet", "--bundle", bundle, "--output", str(tmp_path / form), "--format", form
        )
        theirs = pl.read_parquet(tmp_path / form / "data").sort("user_id", "item_id")
        both = ours.join(theirs, on=["user_id", "item_id"], how="inner")
        assert len(both) > 0.9999 * len(ours)
        assert (both["score"] - both["score_right"]).abs().max() < 1e-4


def test_evaluating_the_checkpoint_repeats_its_metrics(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    metrics = json.loads(fine("evaluate", "--model", "checkpoint", "--json"))["metrics"]
    assert metrics == json.loads((workspace / "checkpoint" / "manifest.json").read_text())["metrics"]
    assert "ndcg@100" in fine("evaluate", "--model", "checkpoint")


def test_evaluating_a_bundle_on_files(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    users = pl.read_parquet("users.parquet").filter(pl.col("history").list.len() > 10)
    history, truth = str(tmp_path / "history.parquet"), str(tmp_path / "truth.parquet")
    users.with_columns(pl.col("history").list.slice(3)).write_parquet(history)
    users.with_columns(pl.col("history").list.head(3)).write_parquet(truth)
    both = ["--history", history, "--truth", truth, "--json"]
    of_bundle = json.loads(fine("evaluate", "--model", "bundle", *both))
    of_checkpoint = json.loads(fine("evaluate", "--model", "checkpoint", *both))
    assert of_bundle["counts"] == of_checkpoint["counts"]
    for name, measure in of_bundle["metrics"].items():
        assert measure["mean"] == pytest.approx(of_checkpoint["metrics"][name]["mean"], abs=1e-4), name
    message = refused(2, "evaluate", "--model", "bundle", "--history", history)
    assert message == "Error: Evaluating bundle takes both --history and --truth: Parquet files about the same users.\n"


def test_baselines_beside_the_model(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    both = ["--baseline", "ease", "--baseline", "popularity"]
    plain = json.loads(fine("evaluate", "--model", "checkpoint", "--json"))
    compared = json.loads(fine("evaluate", "--model", "checkpoint", *both, "--json"))
    baselines = compared.pop("baselines")
    assert compared == plain
    assert list(baselines) == ["ease", "popularity"]
    assert baselines["ease"]["l2"] in EASE_L2
    assert baselines["popularity"]["l2"] is None
    for of in baselines.values():
        assert of["metrics"].keys() == plain["metrics"].keys()
        lead = plain["metrics"]["ndcg@100"]["mean"] - of["metrics"]["ndcg@100"]["mean"]
        assert of["ndcg@100_advantage"]["mean"] == pytest.approx(lead)
    table = fine("evaluate", "--model", "checkpoint", *both)
    heading = f"EASE (l2 = {baselines['ease']['l2']:g})"
    assert re.search(rf"metric +model +{re.escape(heading)} +popularity *\n", table)
    for name, measure in plain["metrics"].items():
        row = next(line for line in table.splitlines() if line.split()[:1] == [name])
        beside = [measure, *(of["metrics"][name] for of in baselines.values())]
        assert all(f"{one['mean']:.4f} ± {one['standard_error']:.4f}" in row for one in beside)
    lead = baselines["popularity"]["ndcg@100_advantage"]
    assert table.splitlines()[-1] == (
        f"ndcg@100 of the model minus popularity: {lead['mean']:+.4f} ± {lead['standard_error']:.4f}, "
        f"95% interval {lead['low']:+.4f} .. {lead['high']:+.4f}"
    )
    assert table.splitlines()[-2].startswith(f"ndcg@100 of the model minus {heading}: ")
    users = pl.read_parquet("users.parquet").filter(pl.col("history").list.len() > 10)
    history, truth = str(tmp_path / "history.parquet"), str(tmp_path / "truth.parquet")
    users.with_columns(pl.col("history").list.slice(3)).write_parquet(history)
    users.with_columns(pl.col("history").list.head(3)).write_parquet(truth)
    moved = shutil.copy("interactions.parquet", tmp_path / "moved.parquet")
    arguments = ["evaluate", "--model", "bundle", "--history", history, "--truth", truth, "--baseline", "popularity"]
    of_bundle = json.loads(fine(*arguments, "--input", str(moved), "--json"))["baselines"]["popularity"]
    assert of_bundle["metrics"]["ndcg@100"]["n_users"] == len(users)
    fewer = pl.read_parquet("interactions.parquet").filter(pl.col("item_id") != pl.col("item_id").first())
    fewer.write_parquet(tmp_path / "fewer.parquet")
    message = refused(2, *arguments, "--input", str(tmp_path / "fewer.parquet"))
    assert message.startswith(f"Error: {tmp_path / 'fewer.parquet'} is not what the model was trained on: ")
    assert message.endswith(" Name the training interactions with --input.\n")
    message = refused(2, "evaluate", "--model", "checkpoint", "--input", str(moved))
    assert message == (
        "Error: --input names the training interactions of baselines. Add --baseline, or leave it out.\n"
    )


def test_concepts_of_a_checkpoint_and_of_a_bundle(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    asked = ["evaluate", "--concepts", "--categories", "category", "--model"]
    of_checkpoint = json.loads(fine(*asked, "checkpoint", "--json"))
    assert of_checkpoint["model"] == "checkpoint"
    measures = of_checkpoint["measures"]
    assert (measures["macro_score"], measures["dead_concepts"]) == (3, 0)
    assert measures["matched_purity"] > 0.95
    assert measures["mass_disentanglement"] > 0.9
    assert sorted(concept["category"] for concept in of_checkpoint["concepts"]) == sorted(CATEGORIES)
    titles = [title for concept in of_checkpoint["concepts"] for title in concept["examples"]]
    assert len(titles) == 3 * len(CATEGORIES)
    of_bundle = json.loads(fine(*asked, "bundle", "--json"))
    of_items = {name: value for name, value in measures.items() if not name.startswith(("user_", "mass_", "code_"))}
    assert of_bundle["measures"] == of_items, "nobody's histories lie in a bundle"

    users = pl.read_parquet("users.parquet").filter(pl.col("history").list.len() > 10)
    history, truth = str(tmp_path / "history.parquet"), str(tmp_path / "truth.parquet")
    users.with_columns(pl.col("history").list.slice(3)).write_parquet(history)
    users.with_columns(pl.col("history").list.head(3)).write_parquet(truth)
    given = json.loads(fine(*asked, "bundle", "--json", "--history", history, "--truth", truth))
    assert given["measures"].keys() == measures.keys()
    without = json.loads(fine("evaluate", "--concepts", "--model", "checkpoint", "--json"))
    assert "nmi" not in without["measures"]
    assert "category" not in without["concepts"][0]
    table = fine(*asked, "checkpoint")
    assert table.startswith("checkpoint: concepts\n")
    for name, value in measures.items():
        row = next(line.split() for line in table.splitlines() if line.split()[:1] == [name])
        assert row[1] == (str(value) if isinstance(value, int) else f"{value:.3f}")
    assert all(category in table for category in CATEGORIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--categories", "category"],
            "--categories names what concepts are compared with. Add --concepts, or leave it out.",
        ),
        (
            ["--concepts", "--baseline", "ease"],
            "--concepts measures concepts, --baseline recommendations. Leave one of them out.",
        ),
        (
            ["--concepts", "--categories", "genre"],
            "--categories genre: the model's items have no such column, only title, category.",
        ),
        (
            ["--concepts", "--history", "users.parquet"],
            "Evaluating checkpoint takes both --history and --truth: Parquet files about the same users.",
        ),
        (
            ["--concepts", "--input", "interactions.parquet"],
            "--input names the training interactions of baselines. Add --baseline, or leave it out.",
        ),
    ],
)
def test_refused_ways_to_measure_concepts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(workspace)
    assert refused(2, "evaluate", "--model", "checkpoint", *arguments) == f"Error: {message}\n"


def test_inspecting_what_the_nightly_job_wrote(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the README."""
    monkeypatch.chdir(workspace)
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pipeline (inspect .+)$", readme, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        kind = command.split()[1].replace("recommendations", "run")
        assert f": a {kind}" in fine(*command.split()).splitlines()[0]
        assert json.loads(fine(*command.split(), "--json"))["kind"] == kind
    concepts = json.loads(fine("inspect", "checkpoint", "--json"))["concepts"]
    titles = set(pl.read_parquet("items.parquet")["title"])
    assert all(item["title"] in titles for concept in concepts for item in concept["top_items"])
    assert concepts[0]["top_items"][0]["title"] in (workspace / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_tensorboard(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(workspace)
    fine("train", "--output", str(tmp_path / "checkpoint"), "--tensorboard", str(tmp_path / "events"))
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "checkpoint" / "metrics.jsonl").read_text().splitlines()]
    written = [(event.step, event.value) for event in events.Scalars("loss")]
    assert written == [(line["epoch"], pytest.approx(line["loss"])) for line in lines]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = refused(2, "train", "--output", str(tmp_path / "checkpoint"), "--tensorboard", str(tmp_path / "events"))
    assert message == "Error: --tensorboard needs TensorBoard. Install it: pip install 'macrid[tensorboard]'.\n"


def test_the_same_seed_gives_the_same_checkpoint(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    fine("train", "--output", str(tmp_path / "again"))
    for name in ("weights.safetensors", "items.parquet", "histories.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (workspace / "checkpoint" / name).read_bytes()


def test_tables_for_people(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    printed = fine("score", "--input", "users.parquet", "--output", str(tmp_path / "run"), "--k", "3")
    assert "every user accounted for" in printed
    assert "3,198" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train"],
            "Error: interactions.parquet does not exist. Name a local Parquet file, a directory of them, or a glob.\n",
        ),
        (["train", "--config", "no.toml"], "Error: no.toml does not exist. Name a TOML file; configs/ has examples.\n"),
        (
            ["tune", "--space", "no.toml"],
            "Error: no.toml does not exist. Name a search space; configs/space.toml is one.\n",
        ),
        (
            ["export"],
            "Error: checkpoint is not a checkpoint: it has no manifest.json. "
            "Name the folder a checkpoint was written to.\n",
        ),
        (
            ["score", "--input", "users.parquet"],
            "Error: bundle is not a bundle: it has no manifest.json. Name the folder a bundle was written to.\n",
        ),
        (
            ["evaluate", "--model", "x"],
            "Error: x is not a checkpoint: it has no manifest.json. Name the folder a checkpoint was written to.\n",
        ),
        (
            ["train", "--device", "cuda"],
            "Error: --device cuda was asked for, but torch finds no CUDA device. "
            "Run on a machine with a GPU and a CUDA build of torch, or choose --device cpu.\n",
        ),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(2, *arguments) == message
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_config_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[model]\nn_concepts = 0\nkfac = 7\n[training]\nepochs = "many"\n')
    assert refused(2, "train", "--config", str(path)) == (
        f"Error: {path} is not a valid config:\n"
        "  model.n_concepts: Input should be greater than 0\n"
        "  model.kfac: Extra inputs are not permitted\n"
        "  training.epochs: Input should be a valid integer\n"
    )
    path.write_text("epochs == 3")
    assert refused(2, "train", "--config", str(path)).startswith(f"Error: {path} is not TOML: ")


def test_a_bundle_changed_after_export_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    graph = copy / "model.onnx"
    graph.write_bytes(b"?" * graph.stat().st_size)  # no runtime would open it: refused before one tries
    pl.DataFrame({"user_id": [1], "history": [["item-001"]]}).write_parquet(tmp_path / "users.parquet")
    command = ["score", "--bundle", str(copy), "--input", str(tmp_path / "users.parquet")]
    users = str(tmp_path / "users.parquet")
    scored = refused(2, *command, "--output", str(tmp_path / "run"))
    assert scored == refused(2, "evaluate", "--model", str(copy), "--history", users, "--truth", users)
    assert scored == (
        f"Error: {copy / 'model.onnx'} has changed since it was written (its SHA-256 differs). "
        "Write the bundle again.\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_read_only_folder_is_a_failed_job(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "recommendations")

    monkeypatch.setattr("scoring.job.score", refuse)
    pl.DataFrame({"user_id": [1], "history": [["item-001"]]}).write_parquet(tmp_path / "users.parquet")
    command = ["score", "--bundle", str(bundle), "--input", str(tmp_path / "users.parquet")]
    assert refused(1, *command).splitlines()[-1] == (
        "Error: Permission denied: recommendations. Check the path, its permissions and the disk."
    )


def test_more_places_than_items(bundle: Path, tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 2], "history": [["item-001"], []]}).write_parquet(tmp_path / "users.parquet")
    fine(
        *("score", "--bundle", str(bundle), "--input", str(tmp_path / "users.parquet")),
        *("--output", str(tmp_path / "run"), "--k", str(SMALL_ITEMS + 100), "--fallback", "none", "--layout", "nested"),
    )
    lengths = pl.read_parquet(tmp_path / "run" / "data").select("user_id", pl.col("item_ids").list.len())
    assert dict(lengths.iter_rows()) == {1: SMALL_ITEMS - 1, 2: 0}


def test_thresholds_come_from_the_config_and_end_the_job_with_1(workspace: Path, tmp_path: Path) -> None:
    """Nothing that is trained depends on them."""
    arguments = ["score", "--input", str(workspace / "users.parquet"), "--bundle", str(workspace / "bundle")]
    arguments += ["--output", str(tmp_path / "run"), "--k", "3", "--fallback", "none"]
    config = tmp_path / "night.toml"
    config.write_text("[publish]\nmax_empty_share = 0.1\n")
    fine(*arguments, "--config", str(config))
    config.write_text("[publish]\nmax_empty_share = 0.0001\n")
    assert refused(1, *arguments, "--config", str(config)) == (
        f"Error: {tmp_path / 'run'} was not published, and is what it was before. "
        f"The new run is in {tmp_path / 'run.unpublished'}:\n"
        "  0.000625 of users got nothing (2 of 3,200), above max_empty_share = 0.0001\n"
        "Find out why, then run again; if the run is right, change [publish] in the config.\n"
    )
    config.write_text("[publish]\nmin_scored_share = 80\nmax_loss = 1\n")
    assert refused(2, *arguments, "--config", str(config)) == (
        f"Error: {config} is not a valid config:\n"
        "  publish.min_scored_share: Input should be less than or equal to 1\n"
        "  publish.max_loss: Extra inputs are not permitted\n"
    )
    assert "publish" not in json.loads((workspace / "checkpoint" / "manifest.json").read_text())["config"]


def test_metadata_of_items_decide_what_is_recommended(workspace: Path, tmp_path: Path) -> None:
    """The columns of `data.items` travel from training to scoring."""
    items = pl.read_parquet(workspace / "items.parquet")
    (tmp_path / "deny.csv").write_text("item_id\n" + "".join(f"{item}\n" for item in items["item_id"][:50]))
    fine(
        *("score", "--input", str(workspace / "users.parquet"), "--bundle", str(workspace / "bundle")),
        *("--output", str(tmp_path / "run"), "--k", "12", "--where", "category <> 'Garden'", "--cap", "category=2"),
        *("--deny", str(tmp_path / "deny.csv")),
    )
    data = pl.read_parquet(tmp_path / "run" / "data")
    categories = data.join(items, on="item_id").group_by("user_id", "category").len()
    assert not categories["category"].is_in(["Garden"]).any()
    assert categories["len"].unique().to_list() == [2]
    assert data["user_id"].value_counts()["count"].unique().to_list() == [12]
    assert data.join(items[:50], on="item_id", how="semi").is_empty()


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        (["category"], "Error: --cap category is not COLUMN=N with N from 1. Write, for one, --cap category=3.\n"),
        (["category=0"], "Error: --cap category=0 is not COLUMN=N with N from 1. Write, for one, --cap category=3.\n"),
        (["a=1", "b=1", "a=2"], "Error: --cap names the column a twice. Keep one of them.\n"),
    ],
)
def test_a_cap_that_is_none(caps: list[str], message: str) -> None:
    arguments = [argument for cap in caps for argument in ("--cap", cap)]
    assert refused(2, "score", "--input", "users.parquet", *arguments) == message


OPTIONS = {
    "demo": ["--workspace"],
    "prepare": ["source", "--from", "--output", "--columns", "--json"],
    "import": ["model", "--input", "--output", "--items", "--config", "--tokens", "--json"],
    "train": ["--config", "--input", "--output", "--resume", "--tensorboard", "--device", "--json"],
    "tune": ["--config", "--input", "--space", "--trials", "--output", "--device", "--json"],
    "evaluate": [
        *("--model", "--history", "--truth", "--baseline", "--input", "--verify", "--concepts", "--categories"),
        *("--format", "--device", "--json"),
    ],
    "export": ["--checkpoint", "--output", "--format", "--precision", "--sign", "--json"],
    "score": [
        *("--config", "--input", "--history", "--bundle", "--output", "--k", "--keep-seen", "--fallback"),
        *("--allow", "--deny", "--exclude", "--where", "--cap", "--since", "--max-errors", "--layout", "--verify"),
        *("--format", "--device", "--json"),
    ],
    "inspect": ["directory", "--json"],
}


def test_the_list_of_options_is_frozen() -> None:
    """Hyper-parameters live in the config file; a new option needs a reason."""
    found = {name: [option.opts[0] for option in command.params] for name, command in main.commands.items()}
    assert found == OPTIONS


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option(command: str) -> None:
    printed = fine(command, "--help")
    assert all(option in printed or option.upper() in printed for option in OPTIONS[command])
