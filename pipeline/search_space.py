"""Search space: which fields of the config a search may set, and to what.

    [training]
    learning_rate = { low = 1e-4, high = 1e-2, log = true }
    [model]
    n_concepts = [3, 5, 7, 10]

A table is a range, a list holds choices. RecBole's `hyper.test` files are read as well, its names translated.
"""

from __future__ import annotations

import ast
import math
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from pipeline.config import Config, Section
from pipeline.errors import InputError
from pipeline.recbole_config import NAMES, REFUSED, translated


class Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: int | FiniteFloat
    high: int | FiniteFloat
    log: bool = False
    """Draw the logarithm evenly."""
    step: int | FiniteFloat | None = Field(default=None, gt=0)
    """Only low, low + step, low + 2 step ... high."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"high {self.high} is below low {self.low}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log takes a low above 0, and no step")
        if self.step is not None:
            low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
            if (high - low) % step:
                raise ValueError(f"high {high} is not low {low} and a whole number of steps of {step}")
        return self

    @property
    def whole(self) -> bool:
        """Whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


SearchSpace = dict[str, Range | list[object]]
"""By dotted name of the field; a list holds choices."""


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
    try:
        read = (_from_toml if path.suffix == ".toml" else _from_recbole)(text, problems)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}. Correct the file.") from None
    space = {name: _fitted(config, name, candidates, problems) for name, candidates in read.items()}
    if not space and not problems:
        problems.append("it names no field")
    if problems:
        raise InputError("\n".join([f"{path} is not a valid search space:", *(f"  {line}" for line in problems)]))
    return space


def _fitted(config: Config, name: str, candidates: Range | list[object], problems: list[str]) -> Range | list[object]:
    """What a field may be; a range has whole ends only if the field takes nothing else."""
    if isinstance(candidates, list):
        problems += _misfits(config, name, candidates)
        return candidates
    ends = {"low": float(candidates.low), "high": float(candidates.high)}
    if not _misfits(config, name, list(ends.values())):
        return candidates.model_copy(update=ends)
    problems += _misfits(config, name, [candidates.low, candidates.high])
    if candidates.whole and isinstance(candidates.step, float):
        problems.append(f"{name}: step {candidates.step}: Input should be a valid integer")
    return candidates


def _misfits(config: Config, name: str, values: list[object]) -> list[str]:
    if name.startswith("data."):
        return [f"{name}: data decide what is measured, so they are not searched; set them in the config"]
    if name not in config.fields():
        return [f"{name}: no such field; configs/default.toml lists them"]
    found: dict[str, None] = {}
    for value in values:
        try:
            config.updated({name: value})
        except ValidationError as error:
            found |= dict.fromkeys(f"{name}: {value!r}: {one['msg']}" for one in error.errors())
    return list(found)


def _from_toml(text: str, problems: list[str]) -> SearchSpace:
    space: SearchSpace = {}
    for section, fields in tomllib.loads(text).items():
        if not isinstance(fields, dict):
            problems.append(f"{section}: fields stand in a section, [model] or [training]")
            continue
        for name, candidates in fields.items():
            dotted = f"{section}.{name}"
            if isinstance(candidates, dict):
                try:
                    space[dotted] = Range.model_validate(candidates)
                except ValidationError as error:
                    problems += [f"{dotted}: {message}" for message in _messages(error)]
            elif isinstance(candidates, list) and candidates:
                space[dotted] = candidates
            else:
                problems.append(f"{dotted}: expected {{ low = .., high = .. }} or a list of choices")
    return space


def _messages(error: ValidationError) -> list[str]:
    return [
        ": ".join([*map(str, one["loc"][:1]), one["msg"].removeprefix("Value error, ")])
        for one in error.errors(include_url=False)
    ]


def _from_recbole(text: str, problems: list[str]) -> SearchSpace:
    space: SearchSpace = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, kind, values, *_ = [*line.split("#")[0].split(maxsplit=2), "", "", ""]
        if not name:
            continue
        at = f"line {number}, {name}"
        if name in REFUSED:
            problems.append(f"{at}: {REFUSED[name]}")
        elif name not in NAMES:
            problems.append(f"{at}: not a parameter of MacridVAE; known are {', '.join(NAMES)}")
        elif NAMES[name] in space:
            problems.append(f"{at}: a line above sets {NAMES[name]}. Remove one")
        else:
            try:
                space[NAMES[name]] = _translated(name, _RECBOLE_KINDS[kind](values))
            except ValidationError as error:
                problems += [f"{at}: {message}" for message in _messages(error)]
            except (KeyError, ValueError, TypeError, SyntaxError, ArithmeticError):
                problems.append(
                    f"{at}: expected `{name} choice [..]`, `uniform low,high`, `loguniform low,high` "
                    "or `quniform low,high,step`"
                )
    return space


def _choices(text: str) -> list[object]:
    values = ast.literal_eval(text.strip())
    if not isinstance(values, list) or not values:
        raise ValueError(text)
    # Lists may be written as strings: ['[600]', '[128, 128]'].
    return [ast.literal_eval(value) if isinstance(value, str) else value for value in values]


def _uniform(text: str) -> Range:
    low, high = map(float, text.split(","))
    return Range(low=low, high=high)


def _loguniform(text: str) -> Range:
    """Hyperopt's: the bounds are exponents of e."""
    low, high = map(float, text.split(","))
    return Range(low=math.exp(low), high=math.exp(high), log=True)


def _quniform(text: str) -> Range:
    """Hyperopt's: what is drawn is rounded to a multiple of the step."""
    low, high, step = (Decimal(number.strip()) for number in text.split(","))
    ends = (round(low / step) * step, round(high / step) * step)
    numbers = [int(number) if number == int(number) else float(number) for number in (*ends, step)]
    return Range(low=numbers[0], high=numbers[1], step=numbers[2])


_RECBOLE_KINDS: dict[str, Callable[[str], Range | list[object]]] = {
    "choice": _choices,
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
}


def _translated(name: str, candidates: Range | list[object]) -> Range | list[object]:
    return [translated(name, value) for value in candidates] if isinstance(candidates, list) else candidates
