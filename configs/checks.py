"""Checks for configuration values; each returns None if the value is valid, else a description of the allowed ones."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from configs.values import AUTO

Check = Callable[[Any], str | None]


def at_least(low: float) -> Check:
    return lambda v: None if v >= low else f"must be at least {low}"


def above(low: float) -> Check:
    return lambda v: None if v > low else f"must be above {low}"


def within(low: float, high: float) -> Check:
    return lambda v: None if low <= v <= high else f"must be between {low} and {high}"


def inside(low: float, high: float) -> Check:
    return lambda v: None if low < v < high else f"must be above {low} and below {high}"


def grouping(value: str) -> str | None:
    kind, _, rule = value.partition(":")
    good = not value or (kind in ("prefix", "regex", "column") and rule)
    try:
        re.compile(rule if kind == "regex" else "")
    except (re.error, RecursionError, OverflowError):
        good = False
    return None if good else "must be prefix:CHARACTERS, regex:PATTERN or column:NAME"


def weighting(value: str) -> str | None:
    good = value in ("none", "inverse", "effective") or value.lower().endswith(".csv")
    return None if good else "must be none, inverse, effective or a .csv file"


def below_one(value: float) -> str | None:
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


@dataclass(frozen=True)
class OneOf:
    """Allows some words."""

    choices: tuple[str, ...]

    def __call__(self, value: Any) -> str | None:
        return None if value in self.choices else f"must be one of {', '.join(self.choices)}"


def one_of(*names: str) -> Check:
    return OneOf(names)


def ending(*suffixes: str) -> Check:
    return lambda v: None if not v or v.endswith(suffixes) else f"must end in {' or '.join(suffixes)}"


def pair(high: float) -> Check:
    def check(value: Any) -> str | None:
        good = len(value) == 2 and 0 < value[0] <= value[1] <= high
        return None if good else f"must be two numbers, the smaller first, above 0 and up to {high}"

    return check


def two_below_one(value: list[float]) -> str | None:
    return None if len(value) == 2 and all(0 <= v < 1 for v in value) else "must be two numbers, at least 0 and below 1"


def sides(low: int) -> Check:
    """Checks an image size. Args: low: minimum of a single side; each of two sides must be at least 1."""

    def check(value: int | list[int]) -> str | None:
        least = low if isinstance(value, int) else 1
        smallest = value if isinstance(value, int) else min(value)
        return None if smallest >= least else f"must be at least {least}"

    return check


def numbers(value: list[float] | str) -> str | None:
    return None if len(value) else "must have a number for each channel"


def positives(value: list[float] | str) -> str | None:
    good = value == AUTO or (value and all(isinstance(v, float) and v > 0 for v in value))
    return None if good else "must have a number above 0 for each channel"


def unless_auto(check: Check) -> Check:
    return lambda v: None if v == AUTO else check(v)


def portion(value: float) -> str | None:
    return None if 0 < value <= 1 else "must be above 0 and at most 1"


def odd(value: int) -> str | None:
    return None if value >= 3 and value % 2 else "must be odd, at least 3"


def policy(value: str) -> str | None:
    good = re.fullmatch(r"(none)?|(rand|augmix|original|originalr|v0|v0r|3a)(-[a-z]+\d+(\.\d+)?)*", value)
    return None if good else "must be a timm policy, such as rand-m9-mstd0.5-inc1, or none"


def frozen(value: str) -> str | None:
    return None if value in ("none", "all") or value.isdigit() else "must be none, all or a number of stages"


def hexadecimal(value: str) -> str | None:
    return None if re.fullmatch("([0-9a-fA-F]{64})?", value) else "must be 64 hexadecimal digits"


def positive_list(value: list[int]) -> str | None:
    return None if value and all(v > 0 for v in value) else "must be a list of numbers above 0"
