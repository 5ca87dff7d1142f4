"""Configuration keys, and the types that values from YAML or the command line are converted to."""

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.devices import CHOICES, parse_device

AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """A value type. `convert` raises TypeError, ValueError, SyntaxError or OverflowError unless given `wanted`."""

    convert: Callable[[Any], Any]
    wanted: str


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if re.fullmatch(r"[+-]?\d+", str(value)):
        if abs(int(value)) >= 2**63:
            raise OverflowError
        return int(value)
    number = _to_float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_bool(value: Any) -> bool:
    if not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        raise TypeError
    return str(value).lower() == "true"


def _to_text(value: Any) -> str:
    if isinstance(value, bool | dict | list):
        raise TypeError
    return "" if value in (None, "None") else str(value)


def _to_number(value: Any) -> int | float:
    number = _to_float(value)
    return int(number) if number == int(number) else number


INT = Kind(_to_int, "an integer")
FLOAT = Kind(_to_float, "a number")
NUMBER = Kind(_to_number, "a number")  # integral floats become int
BOOL = Kind(_to_bool, "true or false")
TEXT = Kind(_to_text, "a string")
DEVICE = Kind(lambda value: parse_device(str(value)), f"one of {CHOICES}")


def list_of(item: Kind, example: str = "[2, 2, 6, 2]") -> Kind:
    """Returns the type "list of `item`", also given as a string "[1, 2]". Args: example: shown in error messages."""

    def convert(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = ast.literal_eval(value)
        if not isinstance(value, list | tuple):
            raise TypeError
        return [item.convert(v) for v in value]

    return Kind(convert, f"a list such as {example}")


def optional(kind: Kind) -> Kind:
    """Returns `kind`, also accepting null."""
    return Kind(lambda value: None if value in (None, "", "None", "null") else kind.convert(value), kind.wanted)


def auto_or(kind: Kind) -> Kind:
    """Returns `kind`, also accepting "auto"."""
    return Kind(lambda value: AUTO if value == AUTO else kind.convert(value), f"auto or {kind.wanted}")


def _to_size(value: Any) -> int | list[int]:
    if isinstance(value, str) and value.strip()[:1] in ("[", "("):
        value = ast.literal_eval(value)
    if not isinstance(value, list | tuple):
        return _to_int(value)
    sides = [_to_int(side) for side in value]
    if len(sides) != 2:
        raise ValueError
    return sides[0] if sides[0] == sides[1] else sides


SIZE = Kind(_to_size, "an integer, or height and width such as [224, 288]")


def kind_of(default: Any) -> Kind:
    """Returns the kind of a default value."""
    if isinstance(default, list):
        return list_of(kind_of(default[0]), str(default))
    return {bool: BOOL, int: INT, float: FLOAT, str: TEXT}[type(default)]


@dataclass(frozen=True)
class Key:
    """A configuration key.

    `check`: returns None for a valid value, else what is required; `kind`: the value type, inferred from the default if
    None. `free`: may change when a run is resumed, since it does not affect the result. `per_machine`: may differ
    between the machines of a job. `deprecated`: accepted and ignored.
    """

    default: Any
    about: str
    check: Callable[[Any], str | None] | None = None
    kind: Kind | None = None
    free: bool = False
    per_machine: bool = False
    deprecated: bool = False


@dataclass(frozen=True)
class TaskKeys:
    """The keys that a task adds, as a tree like `configs.schema.SCHEMA`.

    `defaults`: values of shared keys, overridden by files and options. TASK auto selects the task if MODEL.NAME begins
    with `name_prefix` or, with `selects`, if one of its keys is set. `check`: checks keys jointly; raises ConfigError.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    name_prefix: str = ""
    selects: bool = False
    check: Callable[[Mapping[str, Any]], None] = lambda values: None
