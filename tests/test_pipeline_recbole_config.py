"""A YAML of RecBole's as the config: the same meaning, or a refusal with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.config import Config, load_config
from pipeline.errors import InputError
from pipeline.recbole_config import DEFAULTS, NAMES

RECBOLE = load_config(Path(__file__).parents[1] / "configs" / "recbole.toml")


def load(folder: Path, text: str) -> Config:
    path = folder / "recbole.yaml"
    path.write_text(text)
    return load_config(path)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load(folder, text)
    first, *lines = str(error.value).splitlines()
    assert first == f"{folder / 'recbole.yaml'} is not a valid config:"
    return [line.removeprefix("  ") for line in lines]


@pytest.mark.parametrize("text", ["model: MacridVAE\n", "{}", "dataset: x\ntopk: [10, 20]\nmetrics: ~\n"])
def test_what_is_left_out_is_as_recbole_has_it(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == RECBOLE


def test_every_name_has_a_default_and_a_field() -> None:
    assert NAMES.keys() - DEFAULTS.keys() == {"drop_out"}  # another spelling of dropout_prob
    assert set(NAMES.values()) <= RECBOLE.fields().keys()


def test_every_name_is_translated(tmp_path: Path) -> None:
    text = """
embedding_size: 32
encoder_hidden_size: [128, 64]
kfac: 4
tau: 0.2
std: 5e-2
nogb: True
dropout_prob: .25
anneal_cap: 1
total_anneal_steps: 1000
reg_weights: [0.0, 1.0e-3]
learning_rate: 1.5e-3
epochs: 7
train_batch_size: 100
stopping_step: 3
seed: 1
val_interval: {rating: "[3.5,inf)"}
user_inter_num_interval: "[5,inf)"
eval_args: {split: {RS: [6, 1, 3]}}
train_neg_sample_args: ~
"""
    expected = {
        "model.embedding_size": 32,
        "model.encoder_hidden_sizes": [128, 64],
        "model.n_concepts": 4,
        "model.temperature": 0.2,
        "model.prior_std": 0.05,
        "model.gumbel": False,
        "model.dropout": 0.25,
        "training.kl_weight": 1.0,
        "training.kl_anneal_steps": 1000,
        "training.l2_weights": [0.0, 0.001],
        "training.learning_rate": 0.0015,
        "training.epochs": 7,
        "training.train_batch_size": 100,
        "training.stopping_step": 3,
        "training.seed": 1,
        "data.seed": 1,
        "data.min_rating": 3.5,
        "data.min_history": 5,
        "data.validation": 0.1,
        "data.test": 0.3,
    }
    assert load(tmp_path, text) == RECBOLE.updated(expected)


def test_open_intervals(tmp_path: Path) -> None:
    """Above 3, and 3 itself not."""
    config = load(tmp_path, 'val_interval: {rating: "(3,inf)"}\nuser_inter_num_interval: "(4,inf)"')
    assert config.data.min_rating == math.nextafter(3, 4)
    assert config.data.min_history == 5


@pytest.mark.parametrize("value", ["~", "0", "{}", "{distribution: none, sample_num: none}"])
@pytest.mark.parametrize("name", ["training_neg_sample", "train_neg_sample_args"])
def test_no_negative_sampling_is_fine(tmp_path: Path, name: str, value: str) -> None:
    assert load(tmp_path, f"{name}: {value}\n") == RECBOLE


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = """
kafc: 3
kfac: 0
training_neg_sample: 1
train_neg_sample_args: {distribution: uniform, sample_num: 1}
learner: sgd
mlp_hidden_size: [3]
drop_out: 0.1
dropout_prob: 0.2
item_inter_num_interval: "[5,inf)"
val_interval: {year: "[1990,inf)"}
user_inter_num_interval: "[2,10]"
eval_args: {split: {LS: valid_and_test}, order: TO, group_by: none, mode: uni100}
"""
    assert problems(tmp_path, text) == [
        "kafc: RecBole's documentation misspells kfac: with kafc the number of concepts was never tuned. Write kfac",
        "training_neg_sample: MacridVAE does not sample negatives. Remove the line",
        "train_neg_sample_args: MacridVAE does not sample negatives. Remove the line",
        "learner: 'sgd' cannot be followed: training uses Adam",
        "mlp_hidden_size: not known; parameters of MacridVAE are embedding_size, encoder_hidden_size, kfac, tau, std, "
        "nogb, drop_out, dropout_prob, anneal_cap, total_anneal_steps, reg_weights, learning_rate, epochs, "
        "train_batch_size, stopping_step",
        "item_inter_num_interval: '[5,inf)' cannot be followed: items are not filtered by their interactions. "
        "Filter the file beforehand",
        "drop_out: dropout_prob sets the same field. Remove one",
        "eval_args: group_by 'none' cannot be followed: each history is split ('user')",
        "eval_args: order 'TO' cannot be followed: histories are split at random ('RO')",
        "eval_args: mode 'uni100' cannot be followed: all items are ranked ('full')",
        "eval_args: split {'LS': 'valid_and_test'} cannot be followed: expected {'RS': [0.8, 0.1, 0.1]}",
        'user_inter_num_interval: expected "[N,inf)", which becomes data.min_history',
        'val_interval: expected { rating: "[N,inf)" }, which becomes data.min_rating',
        "kfac (model.n_concepts): Input should be greater than 0",
    ]


def test_another_model(tmp_path: Path) -> None:
    assert problems(tmp_path, "model: MultiVAE") == [
        "model: 'MultiVAE' cannot be followed: this project trains MacridVAE"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "is not a config of RecBole's: expected lines `name: value`. Correct the file."),
        ("", "is not a config of RecBole's: expected lines `name: value`. Correct the file."),
        ("1: 2\n", "is not a config of RecBole's: expected lines `name: value`. Correct the file."),
    ],
)
def test_not_a_config(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'recbole.yaml'} {message}"


def test_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recbole.yaml is not YAML: .* Correct the file\.$"):
        load(tmp_path, "a: [1\nb: 2")
    with pytest.raises(InputError, match=r"none.yml does not exist. Name a YAML file of RecBole's\.$"):
        load_config(tmp_path / "none.yml")


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(InputError, match="is not YAML: could not determine a constructor"):
        load(tmp_path, f"a: !!python/object/apply:os.mkdir ['{canary}']\n")
    assert not canary.exists()
