"""From a YAML file and the command line to one frozen, checked configuration.

Precedence for every key: option > --opts > YAML > the files in its BASE > schema. Whatever is wrong ends the program
here, before anything is built.
"""

import ast
import difflib
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.schema import DEPRECATED, KEYS, flatten

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A mistake on the command line or in a YAML file: what, where, what to do."""

    exit_code = 2


class _Loader(yaml.SafeLoader):
    """Plain YAML: no Python tags, no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is no name", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Iterable[tuple[str, Any, str]] = ()) -> CfgNode:
    """Read a YAML file, lay it and then `overrides` over the schema's defaults, and check every value.

    Args: overrides: (KEY, value, origin) in rising precedence; origin ("--batch-size") is named in errors.
    Returns: a frozen CfgNode with every key of the schema.
    Raises: ConfigError.
    """
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    origins: dict[str, str] = {}
    for file, given in _read_chain(Path(path), ()):
        for name, value in given.items():
            values[name], origins[name] = _coerce(name, value, str(file)), str(file)
        if values["AMP_OPT_LEVEL"] == "O0" and "AMP_OPT_LEVEL" in given:  # the original's way to turn it off
            values["AMP_ENABLE"] = False
    for name, value, origin in overrides:
        given_last = _coerce(name, value, origin)
        values[name], origins[name] = given_last, origin
        if (name, given_last) == ("AMP_OPT_LEVEL", "O0"):
            values["AMP_ENABLE"] = False
    values["BASE"] = [""]
    _retire(values, origins)
    _check_together(values)
    cfg = _nest(values)
    cfg.freeze()
    return cfg


def dump_config(cfg: CfgNode) -> str:
    """The configuration as YAML text that `load_config` reads back to the same values."""
    return yaml.safe_dump(_plain(cfg), sort_keys=False, allow_unicode=True)


def parse_config(text: str, origin: str) -> dict[str, Any]:
    """Flat {KEY: value} of a text that `dump_config` wrote. Raises: ConfigError."""
    return {name: _coerce(name, value, origin) for name, value in _parse(text, origin).items()}


def flat_config(cfg: CfgNode) -> dict[str, Any]:
    """{KEY: value} with dotted names, in the schema's order."""
    return flatten(_plain(cfg))


def nearest(name: str, names: Iterable[str]) -> str:
    """', did you mean X?' for the closest of `names`, or nothing."""
    names = list(names)
    name = name if name.startswith("--") else name.upper()
    leaf = name.rsplit(".", 1)[-1]  # the right name in the wrong group: TRAIN.BATCH_SIZE
    near = [n for n in names if n.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(name, names, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _read_chain(path: Path, chain: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """The files that `path` builds on, lowest first, then itself."""
    links = " -> ".join(str(p) for p in (*chain, path))
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(f"BASE goes in a circle: {links}: take one of them out")
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"not a YAML file: {path}: --cfg and BASE take files that end in .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read the configuration ({reason}): {links}: name an existing file") from e
    given = _parse(text, str(path))
    bases = _coerce("BASE", given.pop("BASE", [""]), str(path))
    files: list[tuple[Path, dict[str, Any]]] = []
    for base in filter(None, bases):
        files += _read_chain(path.parent / base, (*chain, path))
    return [*files, (path, given)]


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or str(e)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(f"not plain YAML: {where}: {' '.join(problem.split())}") from e
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"no KEY: value pairs: {origin}: see configs/swin_tiny.yaml for the form")
    try:
        return flatten(tree)
    except RecursionError as e:
        raise ConfigError(f"an anchor contains itself: {origin}: write the keys out") from e


def _coerce(name: str, value: Any, origin: str) -> Any:
    """The value in the type of its key; an int where a float stands is fine, a float for an int is not."""
    if name not in KEYS:
        if any(k.startswith(name + ".") for k in KEYS):
            raise ConfigError(f"{name} is a group of keys: {origin}: set one of its keys, as {name}.KEY")
        raise ConfigError(
            f"no such key: {name} in {origin}{nearest(name, KEYS) or ': configs/schema.py lists them all'}"
        )
    key = KEYS[name]
    kind = key.kind or type(key.default)
    try:
        if key.default is None and value in (None, "", "None", "null"):
            return None
        result = _convert(value, kind, type(key.default[0]) if key.default and kind is list else key.item)
    except (TypeError, ValueError, SyntaxError, OverflowError) as e:
        wanted = kind.__name__
        raise ConfigError(f"{name} is {value!r}: {origin}: must be {_ARTICLE.get(wanted, wanted)}") from e
    complaint = key.check(result) if key.check else None
    if complaint:
        raise ConfigError(f"{name} is {result!r}: {origin}: {complaint}")
    return result


_ARTICLE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list, as [2, 2, 6, 2]",
}


def _convert(value: Any, kind: type, item: type) -> Any:
    """`value` as `kind`, the elements of a list as `item`. Raises: TypeError, ValueError, SyntaxError."""
    if kind is list:
        if isinstance(value, str):
            value = ast.literal_eval(value)
        if not isinstance(value, list | tuple):
            raise TypeError
        return [_convert(v, item, int) for v in value]
    if kind is str:
        if isinstance(value, bool | dict | list):
            raise TypeError
        return "" if value in (None, "None") else str(value)
    if kind is bool:
        if not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
            raise TypeError
        return str(value).lower() == "true"
    if isinstance(value, bool):
        raise TypeError
    if kind is int and re.fullmatch(r"[+-]?\d+", str(value)):
        if abs(int(value)) >= 2**63:
            raise OverflowError
        return int(value)
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    return kind(number)


def _retire(values: dict[str, Any], origins: dict[str, str]) -> None:
    """One warning line for each key that has lost its meaning."""
    for name, origin in origins.items():
        if KEYS[name].about.startswith(DEPRECATED) and values[name] != KEYS[name].default:
            log.warning("%s (%s) has no meaning any more and is ignored", name, origin)
    for name, key in KEYS.items():
        if key.about.startswith(DEPRECATED):
            values[name] = key.default


def _check_together(values: dict[str, Any]) -> None:
    """What no single key can tell."""
    for family in ("SWIN", "SWINV2", "SWIN_MLP", "SWIN_MOE"):
        depths, heads = values[f"MODEL.{family}.DEPTHS"], values[f"MODEL.{family}.NUM_HEADS"]
        if len(depths) != len(heads):
            raise ConfigError(
                f"MODEL.{family}.DEPTHS {depths} and MODEL.{family}.NUM_HEADS {heads} differ in length:"
                " give one number a stage"
            )
    if values["TRAIN.GLOBAL_BATCH_SIZE"] and values["TRAIN.ACCUMULATION_STEPS"] > 1:
        raise ConfigError(
            "TRAIN.GLOBAL_BATCH_SIZE sets the accumulation by itself: TRAIN.ACCUMULATION_STEPS: leave it at 1"
        )
    section = {"swin": "SWIN", "swinv2": "SWINV2", "swin_mlp": "SWIN_MLP"}.get(values["MODEL.TYPE"])
    if section:
        _check_sizes(values, f"MODEL.{section}")
    if values["TRAIN.START_EPOCH"] >= values["TRAIN.EPOCHS"]:
        raise ConfigError("TRAIN.START_EPOCH is not below TRAIN.EPOCHS: nothing is left to train")
    for name in ("MODEL.NAME", "TAG"):
        path = PurePath(values[name])
        if not values[name].strip() or path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{name} is {values[name]!r}: it names a folder below OUTPUT: give a plain name")
    if values["EVAL_MODE"] and not (values["MODEL.RESUME"] or values["MODEL.PRETRAINED"]).strip(" ,"):
        raise ConfigError("nothing to evaluate: --eval: name the weights with --resume FILE")
    if values["EVAL_MODE"] and values["THROUGHPUT_MODE"]:
        raise ConfigError("--eval and --throughput together: give one of them")


def _check_sizes(values: dict[str, Any], section: str) -> None:
    patch, window = values[f"{section}.PATCH_SIZE"], values[f"{section}.WINDOW_SIZE"]
    for name in ("DATA.IMG_SIZE", "TEST.IMG_SIZE"):
        if 0 < values[name] < patch:
            raise ConfigError(f"{name} is smaller than a patch: {section}.PATCH_SIZE {patch}: make the image larger")
    side = values["DATA.IMG_SIZE"] // patch
    if window > side:  # later stages may be smaller: their window is their map
        raise ConfigError(
            f"no stage has room for a window of {window}: {section}.WINDOW_SIZE: the first one sees {side}x{side}"
            f" tokens, take at most {side} or a larger DATA.IMG_SIZE"
        )


def _nest(values: dict[str, Any]) -> CfgNode:
    root = CfgNode()
    for name, value in values.items():
        *groups, leaf = name.split(".")
        node = root
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[leaf] = list(value) if isinstance(value, list) else value
    return root


def _plain(node: CfgNode) -> dict[str, Any]:
    return {name: _plain(value) if isinstance(value, CfgNode) else value for name, value in node.items()}
