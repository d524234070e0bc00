from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import SMALL

from pipeline.config import Config, load_config
from pipeline.errors import InputError
from pipeline.search_space import Range, SearchSpace, load_space

SPACE = Path(__file__).parents[1] / "configs" / "space.toml"


def space(path: Path, text: str, config: Config = SMALL) -> SearchSpace:
    path.write_text(text)
    return load_space(path, config)


def refusal(path: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        space(path, text)
    return str(error.value)


def test_the_shipped_space_fits_the_defaults() -> None:
    found = load_space(SPACE, load_config(SPACE.with_name("default.toml")))
    assert found["model.n_concepts"] == [3, 5, 7, 10]
    assert found["training.learning_rate"] == Range(low=3e-4, high=3e-3, log=True)


def test_toml(tmp_path: Path) -> None:
    text = """
[training]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
epochs = { low = 10, high = 100, step = 10 }
[model]
encoder_hidden_sizes = [[100], [600, 200]]
gumbel = [true, false]
"""
    found = space(tmp_path / "space.toml", text)
    assert found == {
        "training.learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "training.epochs": Range(low=10, high=100, step=10),
        "model.encoder_hidden_sizes": [[100], [600, 200]],
        "model.gumbel": [True, False],
    }
    assert found["training.epochs"].whole
    assert not found["training.learning_rate"].whole


def test_all_problems_of_toml_at_once(tmp_path: Path) -> None:
    text = """
[model]
n_concepts = [3, 0]
temperature = { low = 0.001, high = 0.2 }
dropout = { low = 0.5, high = 0.2 }
width = [1, 2]
gumbel = true
[data]
min_rating = [3.0, 4.0]
"""
    path = tmp_path / "space.toml"
    assert refusal(path, text).splitlines() == [
        f"{path} is not a valid search space:",
        "  model.dropout: expected { low = .., high = .. } or a list of choices",
        "  model.gumbel: expected { low = .., high = .. } or a list of choices",
        "  model.n_concepts: 0: Input should be greater than 0",
        "  model.temperature: 0.001: Input should be greater than or equal to 0.025",
        "  model.width: 1: Extra inputs are not permitted",
        "  model.width: 2: Extra inputs are not permitted",
        "  data.min_rating: data decide what is measured, so they are not searched; set them in --config",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is not a valid search space:\n  it names no field"),
        (
            "epochs = [1, 2]",
            " is not a valid search space:\n  epochs: fields stand in a section, [model] or [training]",
        ),
        (
            "[model",
            " is not TOML: Expected ']' at the end of a table declaration (at end of document). Correct the file.",
        ),
    ],
)
def test_refused_toml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.toml"
    assert refusal(path, text) == f"{path}{message}"


def test_a_missing_space(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_space(tmp_path / "none.toml", SMALL)
    assert (
        str(error.value) == f"{tmp_path / 'none.toml'} does not exist. Name a search space; configs/space.toml is one."
    )


def test_recbole(tmp_path: Path) -> None:
    text = """
# MacridVAE
learning_rate choice [0.01,0.005,0.001]
kfac choice [3,5,10,20]
nogb choice [False,True]
encoder_hidden_size choice ['[600]','[128, 64]']
anneal_cap uniform 0,1   # beta
std loguniform -3,-1
train_batch_size quniform 100,500,100
drop_out quniform 0.1,0.5,0.1
reg_weights choice [[0,0],[0.1,0.2]]
"""
    assert space(tmp_path / "hyper.test", text) == {
        "training.learning_rate": [0.01, 0.005, 0.001],
        "model.n_concepts": [3, 5, 10, 20],
        "model.gumbel": [True, False],
        "model.encoder_hidden_sizes": [[600], [128, 64]],
        "training.kl_weight": Range(low=0.0, high=1.0),
        "model.prior_std": Range(low=math.exp(-3), high=math.exp(-1), log=True),
        "training.train_batch_size": Range(low=100, high=500, step=100),
        "model.dropout": Range(low=0.1, high=0.5, step=0.1),
        "training.l2_weights": [[0, 0], [0.1, 0.2]],
    }


def test_all_problems_of_recbole_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hyper.test"
    lines = refusal(
        path, "kafc choice [3,5]\ntraining_neg_sample choice [1]\nlambda uniform 0,1\ntau normal 0,1\nstd uniform 1"
    ).splitlines()
    assert lines[:3] == [
        f"{path} is not a valid search space:",
        "  line 1, kafc: RecBole's documentation misspells kfac: "
        "with kafc the number of concepts was never tuned. Write kfac",
        "  line 2, training_neg_sample: MacridVAE does not sample negatives. Remove the line",
    ]
    assert lines[3].startswith("  line 3, lambda: not a parameter of MacridVAE; known are embedding_size, ")
    for line, name in zip(lines[4:], ("4, tau", "5, std"), strict=True):
        kinds = "`uniform low,high`, `loguniform low,high` or `quniform low,high,step`"
        assert line == f"  line {name}: expected `{name[3:]} choice [..]`, {kinds}"
