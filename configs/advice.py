"""Suggests the equivalents of other programs' options."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from configs.schema import KEYS
from configs.synonyms import ABSENT, CONVERTED, meant_by, word_of
from configs.values import BOOL, Kind, kind_of
from utils.errors import ConfigError

BETAS = ("adam-beta1", "adam-beta2")
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf|-nan")


class KnownOptions(NamedTuple):
    """The options of this program: `all` of them, `switches` among them, and `by_key`: the one that sets a key."""

    all: Collection[str]
    switches: Collection[str]
    by_key: Mapping[str, str]

    def abbreviates(self, name: str) -> bool:
        """Returns whether a name is the beginning of a single option."""
        return sum(each.startswith(name) for each in self.all) == 1


def check_words(arguments: Sequence[str], known: KnownOptions) -> None:
    """Rejects options of other programs, all at once.

    Args: arguments: the command line. Raises: ConfigError with what replaces them, or why there is no such thing.
    """
    options, keys = [], []
    foreign = ""
    for name, values in _joined(_words(arguments)):
        meaning = None if name in known.all else _meaning(name, values, known)
        if meaning is None or (meaning.startswith(name) and known.abbreviates(name)):
            continue
        foreign = foreign or name
        option, _, key = meaning.partition("--opts ") if meaning.startswith("--") else ("", "", meaning)
        options += [option.strip()] if option else []
        keys += [key] if key else []
    if foreign:
        text = " ".join([*options, *(["--opts", *keys] if keys else [])])
        raise ConfigError(foreign, "unknown option", f"use {text}" if text else "remove it: it is the default")


def _words(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields every option with the values that follow it."""
    for position, argument in enumerate(arguments):
        if not _is_option(argument):
            continue
        name, equals, value = argument.partition("=")
        values = [value] if equals else []
        for following in arguments[position + 1 :]:
            if _is_option(following):
                break
            values.append(following)
        yield name, values


def _joined(words: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Replaces the two options with which transformers sets Adam's betas by a single one."""
    found = list(words)
    betas = {word_of(name): values for name, values in found if values and word_of(name) in BETAS}
    if len(betas) < len(BETAS):
        return found
    others = [(name, values) for name, values in found if word_of(name) not in BETAS]
    return [*others, ("--opt-betas", [betas[name][0] for name in BETAS])]


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and len(argument) > 1 and not NEGATIVE.fullmatch(argument)


def _meaning(name: str, values: list[str], known: KnownOptions) -> str | None:
    """Returns the words that replace an option and its values; None if unknown. Raises: ConfigError if absent."""
    word = word_of(name)
    if word in ABSENT:
        raise ConfigError(name, f"there is no such option: {ABSENT[word]}", "remove it")
    if word in CONVERTED:
        try:
            return CONVERTED[word](values)
        except (IndexError, ValueError) as e:
            raise ConfigError(
                name, f"unknown option with a missing or invalid value ({' '.join(values)})", "give it a valid one"
            ) from e
    meant = meant_by(name, KEYS)
    if meant is None and word.startswith("no-") and (key := meant_by(word[3:], KEYS)) in KEYS:
        return f"{key} False" if _kind(key) is BOOL else None
    if meant is not None and (meant in known.switches or (" " in meant and "{}" not in meant)) and _is_off(values):
        return f"{meant.removesuffix(' True')} False" if meant.endswith(" True") else ""
    if meant is None or meant in known.switches:
        return meant
    if " " in meant:
        return meant.replace("{}", " ".join(values) or "VALUE")
    option = meant if meant.startswith("--") else known.by_key.get(meant)
    return f"{option or meant} {_value(None if option else meant, values)}"


def _is_off(values: list[str]) -> bool:
    """Returns whether a switch is given a value that turns it off."""
    return [value.lower() for value in values] in (["false"], ["no"], ["off"], ["0"])


def _value(key: str | None, values: list[str]) -> str:
    """Returns the values as a word of the shell: one for an option, a list for a key that takes one."""
    if key is not None and _kind(key) is BOOL and not values:
        return "True"
    if not values:
        return "VALUE"
    if key is None or (len(values) == 1 and _fits(key, values[0])):
        return values[0]
    items = [text for value in values for text in value.strip("[]()").split(",") if text.strip()]
    return f'"[{", ".join(text.strip() for text in items)}]"'


def _fits(key: str, value: Any) -> bool:
    try:
        _kind(key).convert(value)
    except (TypeError, ValueError, SyntaxError, OverflowError):
        return "list" not in _kind(key).wanted
    return True


def _kind(key: str) -> Kind:
    return KEYS[key].kind or kind_of(KEYS[key].default)
