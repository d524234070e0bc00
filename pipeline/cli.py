"""The command line: each command is a few calls of the library.

Results go to standard output (tables, or one JSON object with --json), progress to standard error. Exit codes: 0 done;
1 the job failed; 2 the caller can fix it. Heavy imports live inside the commands: `pipeline --help` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.errors import InputError, JobError, PipelineError

if TYPE_CHECKING:
    from export.parity import Precision
    from pipeline.config import Config
    from pipeline.scorer import Scorer
    from pipeline.split import HeldOut
    from pipeline.vocabulary import Vocabulary

FORMATS = ("onnx", "torchscript", "pt2")
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

config_option = click.option(
    "--config", type=FILE, help="TOML, or RecBole's YAML.  [default: pipeline.toml if there is one, else the defaults]"
)
interactions_option = click.option(
    "--input", "interactions", help="Parquet file, directory or glob.  [default: input of [data]]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), default="onnx", show_default=True, help="Which graph to run."
)

verify_option = click.option(
    "--verify", "public_key", type=FILE, help="Refuse a bundle that was not signed with this key (PEM)."
)


class _Failure(click.ClickException):
    """An error with a message for people, shown as `Error: ...`."""

    def __init__(self, error: PipelineError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Shows errors written for people as one message, with their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            raise _Failure(error) from None
        except OSError as error:
            what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            raise _Failure(JobError(f"{what}. Check the path, its permissions and the disk.")) from error


def _caps(_context: click.Context, _option: click.Parameter, typed: tuple[str, ...]) -> dict[str, int]:
    """COLUMN=N of every --cap."""
    caps: dict[str, int] = {}
    for cap in typed:
        column, _, limit = cap.rpartition("=")
        if not column or not (limit.isdecimal() and int(limit)):
            raise InputError(f"--cap {cap} is not COLUMN=N with N from 1. Write, for one, --cap category=3.")
        if column in caps:
            raise InputError(f"--cap names the column {column} twice. Keep one of them.")
        caps[column] = int(limit)
    return caps


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="macrid", prog_name="pipeline")
def main() -> None:
    """Train MacridVAE on Parquet, export a verified bundle, score every user every night."""


@main.command()
@click.option("--workspace", type=FOLDER, default=Path("demo"), show_default=True, help="Folder to work in.")
def demo(workspace: Path) -> None:
    """Generate a shop, then train, export, score, and show what came out."""
    from pipeline.demo import run_demo

    run_demo(workspace)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--from", "form", type=click.Choice(["movielens", "recbole", "csv"]), required=True, help="What the source is."
)
@click.option("--output", type=FOLDER, default=Path(), show_default=True, help="Folder to write Parquet files to.")
@click.option("--columns", help="What user_id, item_id, rating, timestamp are called there, such as uid,iid,stars.")
@json_option
def prepare(source: Path, form: Any, output: Path, columns: str | None, as_json: bool) -> None:
    """Write interactions.parquet, and items.parquet, from other formats."""
    from pipeline.prepare import prepare
    from pipeline.report import print_facts

    rows = prepare(source, form, output, columns.split(",") if columns else ())
    facts = {f"{name}.parquet": n if as_json else f"{n:,} rows" for name, n in rows.items()}
    print_facts(f"{output}: prepared from {source}", facts, as_json)


@main.command(name="import")
@click.argument("model", type=FILE)
@click.option(
    "--input", "interactions", type=click.Path(path_type=Path), required=True, help="The data set it learned."
)
@click.option("--output", type=FOLDER, default=Path("checkpoint"), show_default=True, help="Checkpoint to write.")
@click.option("--items", type=FILE, help="Parquet file about items, as `pipeline prepare` writes.")
@click.option("--config", type=FILE, help="RecBole's YAML, where the model lacks its settings.")
@click.option("--tokens", type=FILE, help="Item tokens, one per line, in RecBole's order.  [default: worked out]")
@json_option
def import_(model: Path, interactions: Path, output: Path, as_json: bool, **files: Path | None) -> None:
    """Turn a MacridVAE of RecBole's (.pth) into a checkpoint, without running what is in it."""
    from pipeline.recbole_import import import_recbole
    from pipeline.report import print_facts

    manifest = import_recbole(model, interactions, output, **files)
    print_facts(f"{output}: imported from {model}", {"checkpoint": output, **manifest.counts}, as_json)


@main.command()
@config_option
@interactions_option
@click.option("--output", type=FOLDER, default=Path("checkpoint"), show_default=True, help="Checkpoint to write.")
@click.option("--resume", is_flag=True, help="Go on where a stopped run of the same config and data was, if one was.")
@click.option("--tensorboard", type=FOLDER, help="Folder for TensorBoard's event files.")
@device_option
@json_option
def train(
    config: Path | None,
    interactions: str | None,
    output: Path,
    resume: bool,
    tensorboard: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Train a model on interactions and write a checkpoint."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable products; CUDA reads it when it starts
    from pipeline.config import workspace_config
    from pipeline.progress import TrainingProgress
    from pipeline.report import print_metrics
    from pipeline.train import train, training_device

    settings = workspace_config(config, interactions)
    with TrainingProgress(settings.training.epochs, tensorboard) as show:
        manifest = train(
            settings,
            output,
            training_device(device),
            resume=resume,
            on_data=show.data,
            on_step=show.step,
            on_epoch=show.epoch,
        )
    if manifest is None:  # the first worker reports
        return
    facts = {
        "checkpoint": output,
        "best_epoch": manifest.best_epoch,
        "seconds": show.seconds,
        "counts": manifest.counts,
    }
    title = f"{output}: {manifest.counts['test_users']:,} test users, weights of epoch {manifest.best_epoch}"
    print_metrics(title, manifest.metrics, facts, as_json)


@main.command()
@config_option
@interactions_option
@click.option("--space", type=FILE, required=True, help="What to search: TOML, or RecBole's hyper.test.")
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True, help="Finished trials to have.")
@click.option("--output", type=FOLDER, default=Path("tuning"), show_default=True, help="Folder of the study.")
@device_option
@json_option
def tune(
    config: Path | None,
    interactions: str | None,
    space: Path,
    trials: int,
    output: Path,
    device: str,
    as_json: bool,
) -> None:
    """Search for better hyper-parameters; started again, the search goes on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from pipeline.config import workspace_config
    from pipeline.progress import TuningProgress
    from pipeline.report import print_rows
    from pipeline.search_space import load_space
    from pipeline.train import training_device
    from pipeline.tuning import BEST, readable, tune

    settings = workspace_config(config, interactions)
    what = load_space(space, settings)
    with TuningProgress(trials, settings.training.epochs) as show:
        table = tune(settings, what, trials, output, training_device(device), show.epoch)
    title = f"{output / BEST}: the best of {len(table)} trials"
    print_rows(title, table if as_json else readable(table), {"best": output / BEST}, as_json)


@main.command()
@click.option("--model", type=FOLDER, required=True, help="Checkpoint or bundle.")
@click.option("--history", help="What users have: interactions or histories.  [default: a checkpoint's test users]")
@click.option("--truth", help="What they went on to choose: interactions or histories of the same users.")
@click.option(
    "--baseline",
    "baselines",
    type=click.Choice(["ease", "popularity"]),
    multiple=True,
    help="Compare with this as well, fitted on the training interactions; may be repeated.",
)
@click.option("--input", "interactions", help="The training interactions, for baselines.  [default: where they were]")
@verify_option
@click.option("--concepts", is_flag=True, help="Measure the model's concepts, not its recommendations.")
@click.option("--categories", help="Column about the items (of [data] items) that concepts are compared with.")
@format_option
@device_option
@json_option
def evaluate(
    model: Path,
    history: str | None,
    truth: str | None,
    baselines: tuple[str, ...],
    interactions: str | None,
    public_key: Path | None,
    concepts: bool,
    categories: str | None,
    form: str,
    device: str,
    as_json: bool,
) -> None:
    """Measure a checkpoint's or bundle's recommendations against what users went on to choose, or its concepts."""
    from pipeline.evaluation import evaluate, evaluate_each
    from pipeline.held_out import read_held_out
    from pipeline.report import print_comparison, print_metrics

    if categories is not None and not concepts:
        raise InputError("--categories names what concepts are compared with. Add --concepts, or leave it out.")
    if concepts and baselines:
        raise InputError("--concepts measures concepts, --baseline recommendations. Leave one of them out.")
    if interactions is not None and not baselines:
        raise InputError("--input names the training interactions of baselines. Add --baseline, or leave it out.")
    opened = _open_model(model, form, device, public_key)
    held_out, counts, one_file = opened.test, opened.counts, (history is None) != (truth is None)
    if history is not None and truth is not None:
        held_out, counts = read_held_out(history, truth, opened.vocabulary)
    if concepts and not one_file:
        _show_concepts(model, opened, held_out, categories, as_json)
        return
    if held_out is None or one_file:
        raise InputError(f"Evaluating {model} takes both --history and --truth: Parquet files about the same users.")
    users = (held_out.histories, held_out.targets)
    title, facts = f"{model}: {len(held_out):,} users", {"model": model, "counts": counts}
    if not baselines:
        print_metrics(title, evaluate(opened.scorer, *users), facts, as_json)
        return
    from pipeline.baselines import compare, fit_baselines

    config = opened.config.updated({"data.input": interactions}) if interactions else opened.config
    fitted = fit_baselines(baselines, config.data, opened.vocabulary)  # may refuse the input, so before the work
    measured, values = evaluate_each(opened.scorer, *users)
    print_comparison(title, measured, compare(values["ndcg@100"], fitted, held_out), facts, as_json)


@main.command()
@click.option("--checkpoint", type=FOLDER, default=Path("checkpoint"), show_default=True, help="Checkpoint to read.")
@click.option("--output", type=FOLDER, default=Path("bundle"), show_default=True, help="Bundle to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*FORMATS, "all"]),
    default="onnx",
    show_default=True,
    help="Which graphs the bundle holds.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the tables: fp16 is half the size, for GPUs; int8 a quarter.",
)
@click.option("--sign", type=FILE, help="Sign the bundle with this Ed25519 private key (PEM).")
@json_option
def export(checkpoint: Path, output: Path, form: str, precision: Precision, sign: Path | None, as_json: bool) -> None:
    """Turn a checkpoint into a bundle, every graph of it proven equal to the model."""
    from export.exporter import export_bundle
    from pipeline.report import print_facts
    from scoring.runtimes import open_scorer

    forms = FORMATS if form == "all" else [form]
    manifest = export_bundle(checkpoint, output, forms, open_scorer, precision, sign=sign)
    facts: dict[str, object] = {"bundle": output, "items": manifest.n_items, "concepts": manifest.n_concepts}
    facts |= {name: parity.model_dump() if as_json else parity.sentence() for name, parity in manifest.parity().items()}
    print_facts(f"{output}: every graph proven equal to the model", facts, as_json)


@main.command()
@config_option
@click.option("--input", "users", required=True, help="Whom to score: interactions, histories, or bare users.")
@click.option("--history", help="Interactions of bare users.")
@click.option("--bundle", type=FOLDER, default=Path("bundle"), show_default=True, help="Bundle to score with.")
@click.option("--output", type=FOLDER, default=Path("recommendations"), show_default=True, help="Run to write.")
@click.option("--k", type=click.IntRange(min=1), default=100, show_default=True, help="Recommendations per user.")
@click.option("--keep-seen", is_flag=True, help="Recommend items of the user's own history too.")
@click.option(
    "--fallback",
    type=click.Choice(["popular", "none"]),
    default="popular",
    show_default=True,
    help="What users without a known item get.",
)
@click.option("--allow", type=FILE, help="Recommend only these: .parquet or .csv with a column item_id, or .txt.")
@click.option("--deny", type=FILE, help="Never recommend these: a file as for --allow.")
@click.option("--exclude", help="Keep these from their users: Parquet file, directory or glob of user_id, item_id.")
@click.option("--where", help="Recommend only items for which this SQL expression over items.parquet is true.")
@click.option(
    "--cap",
    "caps",
    metavar="COLUMN=N",
    multiple=True,
    callback=_caps,
    help="At most N items of each value of a column of items.parquet in a list; may be repeated.",
)
@click.option("--since", type=FOLDER, help="Last night's run: compare with it, and keep its parts that did not change.")
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Set aside at most so many rows and files that cannot be used.",
)
@click.option(
    "--layout",
    type=click.Choice(["long", "nested"]),
    default="long",
    show_default=True,
    help="A row per recommendation, or a row per user.",
)
@verify_option
@format_option
@device_option
@json_option
def score(
    config: Path | None,
    users: str,
    history: str | None,
    bundle: Path,
    output: Path,
    public_key: Path | None,
    allow: Path | None,
    deny: Path | None,
    exclude: str | None,
    since: Path | None,
    max_errors: int,
    form: str,
    device: str,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Recommend items to every user of the input."""
    from export.bundle import read_bundle
    from pipeline.config import load_publish_config
    from pipeline.progress import ScoringProgress
    from pipeline.report import print_facts
    from scoring.job import score
    from scoring.run import Options
    from scoring.runtimes import open_scorer, scoring_device

    where = scoring_device(form, device)
    publish = load_publish_config(config)
    options = Options.model_validate({"format": form, "device": where, **chosen})
    opened = read_bundle(bundle, public_key)
    with ScoringProgress() as show:
        scorer = open_scorer(bundle, form, where)
        opened.check_opened(scorer)
        summary = score(
            opened,
            scorer,
            users,
            output,
            options,
            history=history,
            allow=allow,
            deny=deny,
            exclude=exclude,
            max_errors=max_errors,
            publish=publish,
            since=since,
            on_progress=show.users,
        )
    facts = {"run": output, "device": where, **summary.model_dump(), "seconds": round(show.seconds, 2)}
    if not as_json:
        facts |= facts.pop("churn") or {}
    print_facts(f"{output}: every user accounted for", facts, as_json)


@main.command()
@click.argument("directory", type=FOLDER)
@json_option
def inspect(directory: Path, as_json: bool) -> None:
    """Show what a checkpoint, a bundle or a run holds, and verify its files."""
    from pipeline.inspection import kind_of, print_inspection

    kind = kind_of(directory)
    if kind == "checkpoint":
        from pipeline.inspect_checkpoint import inspect_checkpoint as inspect_directory
    elif kind == "bundle":
        from export.inspect_bundle import inspect_bundle as inspect_directory
    else:
        from scoring.inspect_run import inspect_run as inspect_directory
    print_inspection(inspect_directory(directory), as_json)


class _Opened(NamedTuple):
    """A checkpoint or a bundle, ready to rank; only a trained checkpoint has test users, and a bundle has no counts."""

    scorer: Scorer
    vocabulary: Vocabulary
    config: Config
    test: HeldOut | None
    counts: dict[str, int]


def _open_model(path: Path, form: str, device: str, public_key: Path | None) -> _Opened:
    from pipeline.manifest import directory_kind

    if directory_kind(path) == "bundle":
        from export.bundle import read_bundle
        from scoring.runtimes import open_scorer, scoring_device

        bundle = read_bundle(path, public_key)  # verifies every file, so before the graph is opened
        scorer = open_scorer(path, form, scoring_device(form, device))
        bundle.check_opened(scorer)
        return _Opened(scorer, bundle.vocabulary, bundle.manifest.config, None, {})
    if public_key is not None:
        raise InputError(f"{path} is not a bundle, and only bundles are signed. Name a bundle, or leave --verify out.")
    from pipeline.checkpoint import read_checkpoint
    from pipeline.eager import EagerScorer
    from pipeline.train import training_device

    opened = read_checkpoint(path)
    eager = EagerScorer(opened.model().to(training_device(device)))
    test = opened.test if len(opened.test) else None  # an imported model has none
    return _Opened(eager, opened.vocabulary, opened.manifest.config, test, opened.manifest.counts)


def _show_concepts(
    path: Path, opened: _Opened, held_out: HeldOut | None, categories: str | None, as_json: bool
) -> None:
    from pipeline.categories import read_categories
    from pipeline.checkpoint import read_model
    from pipeline.concept_report import report
    from pipeline.report import print_concepts

    compared = None if categories is None else read_categories(opened.vocabulary, categories)
    users = None if held_out is None else held_out.histories
    found = report(read_model(path, len(opened.vocabulary), opened.config), opened.vocabulary, users, compared)
    print_concepts(f"{path}: concepts", found.concepts, found.measures, {"model": path}, as_json)


if __name__ == "__main__":
    main(prog_name="pipeline")
