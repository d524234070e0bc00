"""Search space: which fields of the config a search may set, and to what.

    [training]
    learning_rate = { low = 1e-4, high = 1e-2, log = true }
    [model]
    n_concepts = [3, 5, 7, 10]

A table is a range (of whole numbers if both ends are), a list holds choices. RecBole's `hyper.test` files are read as
well, its names translated.
"""

from __future__ import annotations

import ast
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipeline.config import Config, Section
from pipeline.errors import InputError


class Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: int | float
    high: int | float
    log: bool = False
    """Draw the logarithm evenly."""
    step: int | float | None = Field(default=None, gt=0)
    """Only low, low + step, low + 2 step ..."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log takes a low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


SearchSpace = dict[str, Range | list[object]]
"""By dotted name of the field; choices are a list of two or more."""


def load_space(path: Path, config: Config) -> SearchSpace:
    """Read a space: TOML where the name ends in .toml, RecBole's format otherwise.

    Args:
        path: the file.
        config: what the space varies; every choice, and both ends of a range, must be valid in it.

    Raises:
        InputError: the file cannot be read, or a name or value does not fit the config; all problems are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a search space; configs/space.toml is one.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error}. Name a search space.") from None
    problems: list[str] = []
    space = (_from_toml if path.suffix == ".toml" else _from_recbole)(path, text, problems)
    for name, candidates in space.items():
        values: list[object] = candidates if isinstance(candidates, list) else [candidates.low, candidates.high]
        problems += [f"{name}: {problem}" for problem in _misfits(config, name, values)]
    if not space and not problems:
        problems.append("it names no field")
    if problems:
        raise InputError("\n".join([f"{path} is not a valid search space:", *(f"  {line}" for line in problems)]))
    return space


def _misfits(config: Config, name: str, values: list[object]) -> list[str]:
    if name.startswith("data."):
        return ["data decide what is measured, so they are not searched; set them in --config"]
    found: dict[str, None] = {}
    for value in values:
        try:
            config.updated({name: value})
        except ValidationError as error:
            found |= dict.fromkeys(f"{value!r}: {one['msg']}" for one in error.errors())
    return list(found)


def _from_toml(path: Path, text: str, problems: list[str]) -> SearchSpace:
    try:
        sections = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}. Correct the file.") from None
    space: SearchSpace = {}
    for section, fields in sections.items():
        if not isinstance(fields, dict):
            problems.append(f"{section}: fields stand in a section, [model] or [training]")
            continue
        for name, candidates in fields.items():
            try:
                space[f"{section}.{name}"] = _CANDIDATES.validate_python(candidates)
            except ValidationError:
                problems.append(f"{section}.{name}: expected {{ low = .., high = .. }} or a list of choices")
    return space


_CANDIDATES: TypeAdapter[Range | list[object]] = TypeAdapter(Range | list[object])

RECBOLE_NAMES = {
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

_REFUSED = {
    "kafc": "RecBole's documentation misspells kfac: with kafc the number of concepts was never tuned. Write kfac",
    "training_neg_sample": "MacridVAE does not sample negatives. Remove the line",
    "train_neg_sample_args": "MacridVAE does not sample negatives. Remove the line",
}


def _from_recbole(_path: Path, text: str, problems: list[str]) -> SearchSpace:
    space: SearchSpace = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, rest = line.split("#")[0].strip().partition(" ")
        if not name:
            continue
        if name in _REFUSED:
            problems.append(f"line {number}, {name}: {_REFUSED[name]}")
        elif name not in RECBOLE_NAMES:
            problems.append(
                f"line {number}, {name}: not a parameter of MacridVAE; known are {', '.join(RECBOLE_NAMES)}"
            )
        else:
            kind, _, values = rest.strip().partition(" ")
            try:
                space[RECBOLE_NAMES[name]] = _translated(name, _RECBOLE_KINDS[kind](values))
            except (KeyError, ValueError, SyntaxError):
                problems.append(
                    f"line {number}, {name}: expected `{name} choice [..]`, `uniform low,high`, `loguniform low,high` "
                    "or `quniform low,high,step`"
                )
    return space


def _choices(text: str) -> list[object]:
    values = ast.literal_eval(text.strip())
    if not isinstance(values, list):
        raise ValueError(text)
    # Lists may be written as strings: ['[600]', '[128, 128]'].
    return [ast.literal_eval(value) if isinstance(value, str) else value for value in values]


def _numbers(text: str, count: int) -> list[float]:
    numbers = [float(number) for number in text.split(",")]
    if len(numbers) != count:
        raise ValueError(text)
    return numbers


def _uniform(text: str) -> Range:
    low, high = _numbers(text, 2)
    return Range(low=low, high=high)


def _loguniform(text: str) -> Range:
    """Hyperopt's: the bounds are exponents of e."""
    low, high = _numbers(text, 2)
    return Range(low=math.exp(low), high=math.exp(high), log=True)


def _quniform(text: str) -> Range:
    low, high, step = _numbers(text, 3)
    if all(number.is_integer() for number in (low, high, step)):
        return Range(low=int(low), high=int(high), step=int(step))
    return Range(low=low, high=high, step=step)


_RECBOLE_KINDS: dict[str, Callable[[str], Range | list[object]]] = {
    "choice": _choices,
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
}


def _translated(name: str, candidates: Range | list[object]) -> Range | list[object]:
    if name == "nogb" and isinstance(candidates, list):
        return [not value if isinstance(value, bool) else value for value in candidates]
    return candidates
