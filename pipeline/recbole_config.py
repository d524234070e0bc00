"""RecBole's settings: its names and defaults for MacridVAE (version 1.2.1), and what a RecBole YAML means here.

A RecBole YAML leaves out what RecBole's own files set, so a translation starts from RecBole's defaults, not from ours.
What has no meaning here passes only where it cannot change a result; everything else is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from pipeline.errors import InputError

NAMES = {
    "embedding_size": "model.embedding_size",
    "encoder_hidden_size": "model.encoder_hidden_sizes",
    "kfac": "model.n_concepts",
    "tau": "model.temperature",
    "std": "model.prior_std",
    "nogb": "model.gumbel",
    "drop_out": "model.dropout",
    "dropout_prob": "model.dropout",
    "anneal_cap": "training.kl_weight",
    "total_anneal_steps": "training.kl_anneal_steps",
    "reg_weights": "training.l2_weights",
    "learning_rate": "training.learning_rate",
    "epochs": "training.epochs",
    "train_batch_size": "training.train_batch_size",
    "stopping_step": "training.stopping_step",
}
"""RecBole's names for MacridVAE's parameters, and ours."""

REFUSED = {
    "kafc": "RecBole's documentation misspells kfac: with kafc the number of concepts was never tuned. Write kfac",
    "training_neg_sample": "MacridVAE does not sample negatives. Remove the line",
    "train_neg_sample_args": "MacridVAE does not sample negatives. Remove the line",
}

DEFAULTS: dict[str, object] = {
    "embedding_size": 64,
    "encoder_hidden_size": [600],
    "kfac": 10,
    "tau": 0.1,
    "std": 0.01,
    "nogb": False,
    "dropout_prob": 0.5,
    "anneal_cap": 0.2,
    "total_anneal_steps": 200_000,
    "reg_weights": [0.0, 0.0],
    "learning_rate": 1e-3,
    "epochs": 300,
    "train_batch_size": 2048,
    "stopping_step": 10,
    "seed": 2020,
    "RATING_FIELD": "rating",
    "user_inter_num_interval": "[0,inf)",
}
"""RecBole's, as far as they become fields here."""

_EVAL_ARGS: dict[str, object] = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "full"}

_ONLY: dict[str, tuple[object, str]] = {
    "model": ("MacridVAE", "this project trains MacridVAE"),
    "learner": ("adam", "training uses Adam"),
    "weight_decay": (0, "l2_weights of [training] weigh the parameters"),
    "clip_grad_norm": (None, "gradients are not clipped"),
    "eval_step": (1, "every epoch is validated"),
    "shuffle": (True, "every epoch has an order of its own"),
    "repeatable": (False, "what a user has is never recommended again"),
    "enable_amp": (False, "precision of [training] takes its place"),
    "enable_scaler": (False, "precision of [training] takes its place"),
    "transform": (None, "histories are not transformed"),
    "rm_dup_inter": (None, "a history is a set: repeated rows count once"),
    "filter_inter_by_user_or_item": (True, "interactions are read as prepared"),
    "item_inter_num_interval": ("[0,inf)", "items are not filtered by their interactions. Filter the file beforehand"),
    "benchmark_filename": (None, "prepared splits stand in files of their own"),
    "threshold": (None, "data.min_rating of a TOML config decides what counts"),
}
"""Names with the one value that changes nothing here, and the reason; null is taken as well."""

_HARMLESS = {
    *("dataset", "config_files", "data_path", "checkpoint_dir", "encoding", "field_separator", "seq_separator"),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD", "load_col", "unload_col", "unused_col"),
    *("additional_feat_suffix", "normalize_field", "normalize_all", "numerical_features", "discretization"),
    *("gpu_id", "use_gpu", "device", "worker", "reproducibility", "save_dataset", "dataset_save_path"),
    *("save_dataloaders", "dataloaders_save_path", "state", "show_progress", "log_wandb", "wandb_project"),
    *("loss_decimal_place", "metric_decimal_place", "metrics", "topk", "valid_metric", "valid_metric_bigger"),
    *("eval_batch_size", "valid_neg_sample_args", "test_neg_sample_args", "require_pow", "NEG_PREFIX", "seq_len"),
    *("ITEM_LIST_LENGTH_FIELD", "LIST_SUFFIX", "MAX_ITEM_LIST_LENGTH", "POSITION_FIELD"),
}
"""Names of where files lie and what their columns are called, of machines, logs and measures, and of other models."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which 1e-3 is a number, as RecBole reads it (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?|\.[0-9])[0-9_]*[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, object]:
    """The settings that a RecBole YAML states.

    Raises:
        InputError: the file is missing, is not YAML, or is not a mapping of names to values.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a YAML file of RecBole's.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}. Correct the file.") from None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise InputError(f"{path} is not a config of RecBole's: expected lines `name: value`. Correct the file.")
    return settings


def translate(settings: Mapping[str, object]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Our sections from RecBole's settings, and what in them cannot be followed.

    Args:
        settings: by RecBole's names; what is missing is as RecBole's defaults say.

    Returns:
        `data`, `model` and `training`, not yet validated; and one line per problem.
    """
    problems = [line for name, value in settings.items() if (line := _refusal(name, value))]
    stated = {**DEFAULTS, **settings}
    if "drop_out" in settings and "dropout_prob" in settings:
        problems.append("drop_out: dropout_prob sets the same field. Remove one")
    sections: dict[str, dict[str, object]] = {
        "data": {"seed": stated["seed"], **_data_fields(stated, problems)},
        "model": {"history_norm": "history"},
        "training": {"seed": stated["seed"], "averaged_epochs": 0.0},
    }
    for name, dotted in NAMES.items():
        if name in stated:
            section, _, field = dotted.partition(".")
            sections[section][field] = translated(name, stated[name])
    return sections, problems


def translated(name: str, value: object) -> object:
    """What a value of RecBole's is in our field; only `nogb` says the opposite of it."""
    return not value if name == "nogb" and isinstance(value, bool) else value


def _refusal(name: str, value: object) -> str | None:
    if name in REFUSED:
        asks = value.get("distribution") not in (None, "none") if isinstance(value, dict) else value
        return f"{name}: {REFUSED[name]}" if asks or name == "kafc" else None
    if name in _ONLY:
        wanted, reason = _ONLY[name]
        return None if value in (wanted, None) else f"{name}: {value!r} cannot be followed: {reason}"
    if name in NAMES or name in DEFAULTS or name in _HARMLESS or name in ("eval_args", "val_interval"):
        return None
    return f"{name}: not known; parameters of MacridVAE are {', '.join(NAMES)}"


def _data_fields(settings: Mapping[str, object], problems: list[str]) -> dict[str, object]:
    fields: dict[str, object] = {"split": "random", **_split_shares(settings.get("eval_args"), problems)}
    at_least = _lower_bound(settings["user_inter_num_interval"] or "[0,inf)")
    if at_least is None:
        problems.append('user_inter_num_interval: expected "[N,inf)", which becomes data.min_history')
    fields["min_history"] = max(1, math.ceil(at_least or 0))
    intervals = settings.get("val_interval") or {}
    if isinstance(intervals, dict) and set(intervals) <= {settings["RATING_FIELD"]}:
        for interval in intervals.values():
            fields["min_rating"] = _lower_bound(interval)
    if intervals and fields.get("min_rating") is None:
        problems.append('val_interval: expected { rating: "[N,inf)" }, which becomes data.min_rating')
    return fields


def _split_shares(stated: object, problems: list[str]) -> dict[str, object]:
    if not isinstance(stated, dict | None):
        problems.append("eval_args: expected a mapping of split, group_by, order and mode")
        return {}
    asked = {**_EVAL_ARGS, **(stated or {})}
    modes = asked["mode"].values() if isinstance(asked["mode"], dict) else [asked["mode"]]
    problems += [
        f"eval_args: {name} {asked[name]!r} cannot be followed: {reason}"
        for name, fits, reason in (
            ("group_by", asked["group_by"] == "user", "each history is split ('user')"),
            ("order", asked["order"] == "RO", "histories are split at random ('RO')"),
            ("mode", set(modes) == {"full"}, "all items are ranked ('full')"),
        )
        if not fits
    ]
    match asked["split"]:
        case {"RS": [int() | float() as train, int() | float() as validation, int() | float() as test]} if train > 0:
            total = train + validation + test
            return {"validation": validation / total, "test": test / total}
    problems.append(f"eval_args: split {asked['split']!r} cannot be followed: expected {{'RS': [0.8, 0.1, 0.1]}}")
    return {}


def _lower_bound(interval: object) -> float | None:
    """The smallest number of an interval without upper end, such as "[3,inf)"; None for any other."""
    found = re.fullmatch(r"([\[(])\s*([-+.\de]+)\s*,\s*inf\s*[\])]", str(interval).strip())
    if found is None:
        return None
    try:
        bound = float(found[2])
    except ValueError:
        return None
    return bound if found[1] == "[" else math.nextafter(bound, math.inf)
