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


def test_the_field_decides_whether_numbers_are_whole(tmp_path: Path) -> None:
    """`low = 0, high = 2` of the KL weight is not a choice of 0, 1 and 2."""
    text = """
[training]
kl_weight = { low = 0, high = 2 }
stopping_step = { low = 5, high = 50 }
[model]
dropout = { low = 0, high = 0.75, step = 0.25 }
"""
    found = space(tmp_path / "space.toml", text)
    whole = {name: candidates.whole for name, candidates in found.items() if isinstance(candidates, Range)}
    assert whole == {"training.kl_weight": False, "training.stopping_step": True, "model.dropout": False}


def test_all_problems_of_toml_at_once(tmp_path: Path) -> None:
    text = """
[model]
n_concepts = [3, 0]
embedding_size = { low = 8, high = 9, step = 0.5 }
temperature = { low = 0.001, high = 0.2 }
prior_std = { low = "small", hihg = 1.0 }
dropout = { low = 0.5, high = 0.2 }
width = [1, 2]
gumbel = true
history_norm = []
encoder_hidden_sizes = [[100], 600]
[training]
learning_rate = { low = 0, high = 0.1, log = true }
kl_weight = { low = 0.1, high = 1.0, step = 0.4 }
stopping_step = { low = 5.5, high = 50 }
[data]
min_rating = [3.0, 4.0]
[modle]
n_concepts = [3, 5]
"""
    path = tmp_path / "space.toml"
    expected = "expected { low = .., high = .. } or a list of choices"
    assert refusal(path, text).splitlines() == [
        f"{path} is not a valid search space:",
        "  model.prior_std: low: Input should be a valid integer",
        "  model.prior_std: low: Input should be a valid number",
        "  model.prior_std: high: Field required",
        "  model.prior_std: hihg: Extra inputs are not permitted",
        "  model.dropout: high 0.2 is below low 0.5",
        f"  model.gumbel: {expected}",
        f"  model.history_norm: {expected}",
        "  training.learning_rate: log takes a low above 0, and no step",
        "  training.kl_weight: high 1.0 is not low 0.1 and a whole number of steps of 0.4",
        "  model.n_concepts: 0: Input should be greater than 0",
        "  model.embedding_size: step 0.5: Input should be a valid integer",
        "  model.temperature: 0.001: Input should be greater than or equal to 0.025",
        "  model.width: no such field; configs/default.toml lists them",
        "  model.encoder_hidden_sizes: 600: Input should be a valid list",
        "  training.stopping_step: 5.5: Input should be a valid integer",
        "  data.min_rating: data decide what is measured, so they are not searched; set them in the config",
        "  modle.n_concepts: no such field; configs/default.toml lists them",
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
anneal_cap\tuniform  0, 1   # beta
std loguniform -3,-1
train_batch_size quniform 100,500,100
drop_out quniform 0.12,0.5,0.1
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
    text = """kafc choice [3,5]
training_neg_sample choice [1]
lambda uniform 0,1
tau normal 0,1
std uniform 1
embedding_size choice [64, 0]
learning_rate uniform 0.1,0.01
drop_out choice [0.5]
dropout_prob choice [0.2]
anneal_cap loguniform 0,1000
kfac
"""
    kinds = "`uniform low,high`, `loguniform low,high` or `quniform low,high,step`"
    lines = refusal(path, text).splitlines()
    assert lines.pop(3).startswith("  line 3, lambda: not a parameter of MacridVAE; known are embedding_size, ")
    assert lines == [
        f"{path} is not a valid search space:",
        "  line 1, kafc: RecBole's documentation misspells kfac: "
        "with kafc the number of concepts was never tuned. Write kfac",
        "  line 2, training_neg_sample: MacridVAE does not sample negatives. Remove the line",
        f"  line 4, tau: expected `tau choice [..]`, {kinds}",
        f"  line 5, std: expected `std choice [..]`, {kinds}",
        "  line 7, learning_rate: high 0.01 is below low 0.1",
        "  line 9, dropout_prob: a line above sets model.dropout. Remove one",
        f"  line 10, anneal_cap: expected `anneal_cap choice [..]`, {kinds}",
        f"  line 11, kfac: expected `kfac choice [..]`, {kinds}",
        "  model.embedding_size: 0: Input should be greater than 0",
    ]
