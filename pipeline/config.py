"""Config: what data, what model, what training. TOML in; validated, frozen, stored in every checkpoint.

Each hyper-parameter is stated once, here, with its type, bounds, default and meaning.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from pipeline.errors import InputError
from pipeline.recbole_config import NAMES, read_yaml, translate

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]


C = TypeVar("C", bound="Config")
YAML = (".yaml", ".yml")
WORKSPACE_CONFIG = Path("pipeline.toml")


class Section(BaseModel, extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True):
    """A part of the config: unknown keys and wrong types are refused, nothing is converted silently."""


class DataConfig(Section):
    """Which interactions become histories, and which users are held out."""

    input: str = "interactions.parquet"
    """Interactions or histories: a Parquet file, a directory (hive partitions too) or a glob."""
    items: str | None = None
    """Parquet file about items: `item_id`, and columns for people to read, such as `title`, that are carried along."""
    min_rating: float | None = None
    """Keep interactions with at least this `rating`. None: every interaction counts, and no `rating` is needed."""
    min_history: PositiveInt = 5
    """Users with fewer distinct items are left out of training and evaluation."""
    split: Literal["held-out-users", "random"] = "held-out-users"
    """`held-out-users`: training sees other users than evaluation (strong generalisation); `random`: other items."""
    validation: Amount = 0.1
    """Held out to choose the epoch: a number of users, or below 1 a share; under `random`, a share of each history."""
    test: Amount = 0.1
    """Held out to report on: a number of users, or below 1 a share; under `random`, a share of each history."""
    fold_in: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of a held-out user's items that the model sees; the others are its targets."""
    seed: NonNegativeInt = 98765
    """Draws the held-out users and their targets."""


class ModelConfig(Section):
    """The shape of MacridVAE (Ma et al., NeurIPS 2019)."""

    n_concepts: PositiveInt = 7
    """Macro concepts; K in the paper."""
    embedding_size: PositiveInt = 200
    """Dimensions of an item, a prototype and one concept of a user; d in the paper."""
    encoder_hidden_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [600]
    """Widths of the encoder's hidden layers, first to last."""
    temperature: Annotated[float, Field(ge=0.025)] = 0.1
    """Divides every cosine; tau in the paper. Far below 0.025, sums of exp(1 / temperature) leave float32."""
    prior_std: PositiveFloat = 0.075
    """Standard deviation of the prior of z; sigma_0 in the paper."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the encoder's input that training hides."""
    gumbel: bool = True
    """Draw each item's concepts with Gumbel noise in training (inference never draws)."""
    history_norm: Literal["per-concept", "history"] = "per-concept"
    """`per-concept`: each concept's part of a history gets length 1 (authors); `history`: the whole (RecBole)."""


class TrainingConfig(Section):
    """How the model is fitted."""

    initialisation: Literal["random", "spectral"] = "random"
    """First item vectors and prototypes. `spectral`: the interactions' singular vectors, and centres of clusters."""
    sharpness_weight: NonNegativeFloat = 0.0
    """Weight of a term that makes each item's concept clear and keeps concepts evenly used. 0: none."""
    epochs: PositiveInt = 100
    """Passes over the training users, at most."""
    train_batch_size: PositiveInt = 250
    """Users per step."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """`cosine`: the step size falls to 0 along half a cosine over `epochs`."""
    averaged_epochs: NonNegativeFloat = 10.0
    """The weights validated and kept are a moving average over about so many epochs. 0: the weights themselves."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products over catalogue and history. `bfloat16` is faster on GPUs and on CPUs with AVX-512 BF16 or AMX."""
    kl_weight: NonNegativeFloat = 0.2
    """Weight of the KL term once annealed; beta in the paper."""
    kl_anneal_steps: NonNegativeInt | Literal["5-epochs"] = "5-epochs"
    """The KL weight at step s is min(kl_weight, s / kl_anneal_steps); `5-epochs` means the steps of five epochs."""
    l2_weights: Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] = [0.0, 0.0]
    """Weights of the sums of squares of [items and prototypes, encoder weights]."""
    stopping_step: PositiveInt = 20
    """Stop after this many epochs without a better validation NDCG@100."""
    seed: NonNegativeInt = 98765
    """Draws the first weights, the order of users, dropout and noise."""


class Config(Section):
    """Everything that decides what a training run produces."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()

    def fields(self) -> dict[str, Any]:
        """Every field by its dotted name, such as `model.n_concepts`."""
        sections = self.model_dump(mode="json")
        return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}

    def updated(self, fields: Mapping[str, object]) -> Config:
        """This config with other values of these fields (by dotted name), validated.

        Raises:
            pydantic.ValidationError: a field is unknown or out of bounds.
        """
        sections = self.model_dump()
        for dotted, value in fields.items():
            section, _, name = dotted.partition(".")
            sections.setdefault(section, {})[name] = value
        return Config.model_validate(sections)


class PublishConfig(Section):
    """What a scoring run must reach before it takes the place of the one before. It does not change what is trained."""

    min_scored_share: Share = 0.0
    """Users with an item that the model knows, of all users of the input."""
    min_catalogue_coverage: Share = 0.0
    """Items recommended to anyone, of those that may be."""
    max_empty_share: Share = 1.0
    """Users who get nothing, of all users of the input."""
    max_churn: Share = 1.0
    """1 minus the mean overlap of users' lists with those of the run of `--since`, where there is one."""


class ConfigFile(Config):
    """Everything that a TOML file may say."""

    publish: PublishConfig = PublishConfig()


def load_config(path: Path) -> Config:
    """Read what a file says about training: TOML, or a YAML of RecBole's, which says what differs from its defaults.

    Raises:
        InputError: the file is missing, is not TOML or YAML (`.yaml`, `.yml`), or a field is unknown or out of bounds;
            all problems are listed.
    """
    if path.suffix in YAML:
        return recbole_config(read_yaml(path), path)
    file = _load_file(path)
    return Config(data=file.data, model=file.model, training=file.training)


def load_publish_config(path: Path | None) -> PublishConfig:
    """What the named file says about publishing, else `pipeline.toml` where there is one, else the defaults.

    Raises:
        InputError: as `load_config`.
    """
    path = _workspace_file(path)
    return PublishConfig() if path is None or path.suffix in YAML else _load_file(path).publish


def recbole_config(settings: Mapping[str, object], path: Path) -> Config:
    """Our config of RecBole's settings.

    Args:
        settings: by RecBole's names; what is missing is as RecBole's defaults say.
        path: where they stand, for messages.

    Raises:
        InputError: a name is unknown, or a value is out of bounds or cannot be followed; all problems are listed.
    """
    sections, problems = translate(settings)
    names = {dotted: f"{name} ({dotted})" for name, dotted in NAMES.items()}
    return _validated(Config, sections, path, problems, names)


def _load_file(path: Path) -> ConfigFile:
    return _validated(ConfigFile, _read_toml(path), path, [], {})


def _validated(
    kind: type[C], sections: Mapping[str, Any], path: Path, problems: list[str], names: Mapping[str, str]
) -> C:
    try:
        config = kind.model_validate(sections)
    except ValidationError as error:
        for found in error.errors():
            dotted = ".".join(map(str, found["loc"]))
            problems.append(f"{names.get(dotted, dotted)}: {found['msg']}")
    if problems:
        raise InputError("\n".join([f"{path} is not a valid config:", *(f"  {line}" for line in problems)]))
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a TOML file; configs/ has examples.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}. Correct the file.") from None


def workspace_config(path: Path | None, interactions: str | None) -> Config:
    """The config of a command: the named file, else `pipeline.toml` where there is one, else the defaults.

    Args:
        path: a TOML file, or a YAML of RecBole's.
        interactions: takes the place of `data.input`.

    Raises:
        InputError: as `load_config`.
    """
    path = _workspace_file(path)
    config = Config() if path is None else load_config(path)
    return config if interactions is None else config.updated({"data.input": interactions})


def _workspace_file(path: Path | None) -> Path | None:
    return WORKSPACE_CONFIG if path is None and WORKSPACE_CONFIG.is_file() else path
