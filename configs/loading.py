"""Merges a YAML file and the command line into one frozen, checked configuration.

Precedence: option > --opts > YAML > its BASE files > schema. Unknown keys and invalid values are rejected here, before
anything is built.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.schema import DEFAULT_TASK, KEYS, NAME_DEFAULTS, TASKS, flatten
from configs.synonyms import meant_by
from configs.values import AUTO, TaskKeys, kind_of
from utils.errors import ConfigError, count, did_you_mean, shortened

log = logging.getLogger(__name__)
# keys of the modes that replace training
MODES = {"EVAL_MODE": "--eval", "THROUGHPUT_MODE": "--throughput", "DRY_RUN": "--dry-run"}
CONFIGS = Path(__file__).parent
ARCHITECTURE = ("MODEL.TYPE", "MODEL.NAME", "MODEL.DROP_PATH_RATE", "DATA.IMG_SIZE")  # and the sections of MODEL
# values in which a leading "~" stands for the home folder
PATHS = (
    *("OUTPUT", "DATA.DATA_PATH", "MODEL.RESUME", "MODEL.PRETRAINED", "DISTILLATION.WEIGHTS"),
    *("TEST.RESULTS", "TEST.PER_CLASS", "TEST.CLASSES", "TEST.PROBABILITIES", "TEST.DETECTIONS"),
    *("LOSS.CLASS_WEIGHTS", "DATA.CLASSES", "DISTILLATION.TEACHER"),
)
# of these, those whose value may also be a name
NAMED = ("MODEL.PRETRAINED", "LOSS.CLASS_WEIGHTS", "DISTILLATION.TEACHER", "DISTILLATION.WEIGHTS")
_REMOTE = re.compile(r"(hub|hf|timm|https?):")


# limits of a YAML file: characters, and values after expanding aliases
MAX_TEXT, MAX_VALUES = 2**20, 50_000
MAX_FILES = 100  # YAML files of a configuration, counting repeated BASE files


class _Loader(yaml.SafeLoader):
    """Plain YAML: no Python tags, no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a string", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Iterable[tuple[str, Any, str]] = ()) -> CfgNode:
    """Merges the schema's defaults, a YAML file and `overrides`, and checks every value.

    Args: path: "" for no file; overrides: (KEY, value, origin), by increasing precedence; errors name the origin, such
    as "--batch-size".
    Returns: a frozen CfgNode with every key of the schema.
    Raises: ConfigError.
    """
    cfg = _merged(_read_chain(find_config(path), ()) if path else [], list(overrides))
    _check_warmup(cfg)
    return cfg


def load_stored_config(text: str, origin: str, overrides: Iterable[tuple[str, Any, str]] = ()) -> CfgNode:
    """Returns the configuration stored as text in a checkpoint, with `overrides` applied. Raises: ConfigError."""
    return _merged([(Path(origin), parse_config(text, origin))], list(overrides))


def architecture_of(recipe: str, option: str) -> list[tuple[str, Any, str]]:
    """Returns the overrides that set the architecture of a recipe, with its image size. Raises: ConfigError."""
    flat = flat_config(_merged(_read_chain(find_config(recipe, option), ()), []))
    of_tasks = {name for task in TASKS.values() for name in flatten(task.keys)}
    sections = [name for name in flat if name.startswith("MODEL.") and name.count(".") > 1 and name not in of_tasks]
    chosen = [*ARCHITECTURE, *sections]
    return [(name, flat[name], option) for name in chosen]


def config_of_weights(
    contents: Mapping[str, Any],
    name: str,
    recipe: str = "",
    overrides: Iterable[tuple[str, Any, str]] = (),
    option: str = "--cfg",
) -> CfgNode:
    """Returns the configuration of a weights file: `recipe`, else the released model's, else the stored one.

    Args: contents: the contents of the file `name`; option: the option or key that sets the recipe, for messages.
    Raises: ConfigError if there is none.
    """
    kind, _, released = name.partition(":")
    if recipe or kind == "hub":
        return load_config(find_config(recipe or released, option), overrides)
    if not isinstance(contents.get("config"), str):
        raise ConfigError(name, "the file does not store its model configuration", f"name its recipe with {option}")
    return load_stored_config(contents["config"], name, overrides)


def _merged(files: Sequence[tuple[Path, dict[str, Any]]], overrides: list[tuple[str, Any, str]]) -> CfgNode:
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    origins: dict[str, str] = {}
    chosen: list[str] = []  # keys set explicitly; a dump of a whole configuration does not count
    for file, given in files:
        _merge(values, origins, [(name, value, str(file)) for name, value in given.items()])
        chosen += given if len(given) < len(KEYS) // 2 else []
    _merge(values, origins, overrides)
    chosen += [name for name, _, _ in overrides]
    values["BASE"] = [""]
    values.update({name: os.path.expanduser(values[name]) for name in PATHS})
    for name in ("MODEL.RESUME", "MODEL.PRETRAINED"):  # in evaluation also several, separated by commas
        values[name] = ",".join(map(os.path.expanduser, values[name].split(",")))
    _drop_deprecated(values, origins)
    _resolve_task(values, chosen, origins)
    _resolve_experts(values)
    _check_together(values)
    cfg = _nest(values)
    cfg.freeze()
    return cfg


def _merge(values: dict[str, Any], origins: dict[str, str], given: list[tuple[str, Any, str]]) -> None:
    for name, value, origin in given:
        values[name], origins[name] = _coerce(name, value, origin), origin
    # O0 is how the original disables mixed precision; at the same level, only a later AMP_ENABLE overrides it
    last = next((name for name, _, _ in reversed(given) if name in ("AMP_ENABLE", "AMP_OPT_LEVEL")), None)
    if last == "AMP_OPT_LEVEL" and values["AMP_OPT_LEVEL"] == "O0":
        values["AMP_ENABLE"] = False


def dump_config(cfg: CfgNode) -> str:
    """Returns the configuration as YAML text; `load_config` restores the same values."""
    return yaml.safe_dump(_plain(cfg), sort_keys=False, allow_unicode=True)


def parse_config(text: str, origin: str) -> dict[str, Any]:
    """Parses text written by `dump_config` into flat {KEY: value}. Raises: ConfigError."""
    return {name: _coerce(name, value, origin) for name, value in _parse(text, origin).items()}


def flat_config(cfg: CfgNode) -> dict[str, Any]:
    """Returns {KEY: value} with dotted names, in the schema's order."""
    return flatten(_plain(cfg))


def shared_config(cfg: CfgNode) -> dict[str, Any]:
    """Returns flat {KEY: value} of the keys that must agree on all ranks."""
    return {name: value for name, value in flat_config(cfg).items() if not KEYS[name].per_machine}


def config_differences(cfg: CfgNode, text: str) -> list[str]:
    """Returns "KEY was A, now B" for each key that affects the result and differs from `text`, an earlier dump."""
    then = {"TASK": DEFAULT_TASK, **parse_config(text, "config.yaml of the output folder")}
    now = flat_config(cfg)
    before = {name: then.get(name, key.default) for name, key in KEYS.items() if not key.free}
    changed = {name: (value, now[name]) for name, value in before.items() if value != now[name]}
    return [f"{name} was {_shown(value)}, now {_shown(new)}" for name, (value, new) in changed.items()]


def _shown(value: Any) -> str:
    return "empty" if value == "" else str(value)


def find_config(name: str | Path, option: str = "--cfg") -> Path:
    """Resolves a path, absolute or relative to the working directory or the repository, or the name of a file anywhere
    in configs/, such as "swin_tiny".

    Args: option: the option or key that `name` was given to, for messages. Raises: ConfigError if there is none.
    """
    path = Path(name)
    if os.path.exists(path) and not os.path.isdir(path):  # false for names that no file can have
        return path
    if os.path.isfile(CONFIGS.parent / path):
        return CONFIGS.parent / path
    known = {file.stem: file for file in sorted(CONFIGS.rglob("*.yaml"), reverse=True)}
    if path.parent == Path() and path.suffix in ("", ".yaml") and path.stem in known:
        return known[path.stem]
    remedy = did_you_mean(path.stem, known, "see configs/")
    if option == "--model":
        weights = path.suffix in (".pth", ".pt", ".safetensors")
        remedy += "; pass weights to --pretrained or --resume" if weights else f"; for a timm model: timm:{name}"
    raise ConfigError(option, f"no configuration {str(name)!r}", remedy)


def _read_chain(path: Path, chain: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the BASE files of `path`, lowest precedence first, then `path` itself."""
    links = " -> ".join(str(p) for p in (*chain, path))
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(str(path), f"circular BASE: {links}", "remove one of them")
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(str(path), "not a YAML file", "name a file that ends in .yaml or .yml")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_TEXT + 1)
    except (OSError, ValueError) as e:  # also for a name with a null byte
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        inherited = f", inherited through {links}" if chain else ""
        remedy = "name an existing file" if isinstance(e, OSError) else "save it as UTF-8"
        raise ConfigError(str(path), f"cannot be read ({reason}){inherited}", remedy) from e
    given = _parse(text, str(path))
    bases = _coerce("BASE", given.pop("BASE", [""]), str(path))
    files: list[tuple[Path, dict[str, Any]]] = []
    for base in filter(None, bases):
        files += _read_chain(path.parent / os.path.expanduser(base), (*chain, path))
        if len(files) > MAX_FILES:
            raise ConfigError(str(path), f"BASE expands to more than {MAX_FILES} files", "name each file once")
    return [*files, (path, given)]


def _parse(text: str, origin: str) -> dict[str, Any]:
    """Returns flat {KEY: value}. Raises: ConfigError for anything that is not a bounded tree of plain values."""
    where, problem = origin, ""
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT:,} characters")
        if _size(yaml.compose(text, _Loader), {}) > MAX_VALUES:
            raise ValueError(f"its anchors expand to more than {MAX_VALUES:,} values")
        tree = yaml.load(text, _Loader)
        flat = flatten(tree) if isinstance(tree, dict) else {}
    except yaml.MarkedYAMLError as e:
        where = f"{origin}:{e.problem_mark.line + 1}" if e.problem_mark else origin
        problem = e.problem or str(e)
    except RecursionError:
        problem = "nested too deeply, or an anchor that contains itself"
    except Exception as e:  # constructors of scalars, such as dates, may raise anything
        problem = str(e)
    if problem:
        raise ConfigError(where, f"invalid YAML: {' '.join(problem.split())}", "correct the file")
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(origin, "contains no KEY: value pairs", "see configs/swin_tiny.yaml for the format")
    return flat


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Returns the number of values below a node, counting an anchor's values at each alias."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # for an anchor that contains itself
        children = list(chain.from_iterable(node.value)) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _coerce(name: str, value: Any, origin: str) -> Any:
    """Converts a value to the type of its key. Raises: ConfigError."""
    if name not in KEYS:
        if any(k.startswith(name + ".") for k in KEYS):
            raise ConfigError(name, f"a group of keys, set in {origin}", f"set one of its keys, {name}.KEY")
        raise ConfigError(name, f"unknown key in {origin}", _nearest(name))
    key = KEYS[name]
    kind = key.kind or kind_of(key.default)
    try:
        result = kind.convert(value)
    except Exception as e:  # a Python literal may also be nested too deeply
        raise ConfigError(name, f"must be {kind.wanted}, got {shortened(repr(value))}", f"change it in {origin}") from e
    texts = result if isinstance(result, list) else [result]
    if any("\0" in text for text in texts if isinstance(text, str)):
        raise ConfigError(name, "contains a null character", f"change it in {origin}")
    complaint = key.check(result) if key.check and result is not None else None
    if complaint:
        raise ConfigError(name, f"{complaint}, got {shortened(repr(result))}", f"change it in {origin}")
    return result


def _nearest(name: str) -> str:
    # several groups have a NAME, which is not that of the run
    meant = "" if name.endswith(".NAME") else (meant_by(name) or "").split(" ")[0]
    return f"did you mean {meant}?" if meant else did_you_mean(name, KEYS, "see docs/configuration.md")


def _drop_deprecated(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Resets deprecated keys, warning once for each that was set."""
    for name, origin in origins.items():
        if KEYS[name].deprecated and values[name] != KEYS[name].default:
            log.warning("%s (%s) is deprecated and ignored", name, origin)
    for name, key in KEYS.items():
        if key.deprecated:
            values[name] = key.default


def _resolve_task(values: dict[str, Any], chosen: list[str], origins: Mapping[str, str]) -> None:
    """Infers TASK from the keys that were set if it is "auto"; applies the task's defaults to keys that were not."""
    if values["TASK"] == AUTO:
        values["TASK"] = next((name for name, own in TASKS.items() if _selects(own, values, chosen)), DEFAULT_TASK)
    names = [own for name, own in NAME_DEFAULTS.items() if values["MODEL.NAME"].startswith(name)]
    for defaults in (TASKS[values["TASK"]].defaults, *names):
        values.update({name: value for name, value in defaults.items() if name not in origins})


def _selects(own: TaskKeys, values: Mapping[str, Any], chosen: Iterable[str]) -> bool:
    """Returns whether TASK auto selects the task that adds these keys."""
    by_name = bool(own.name_prefix) and values["MODEL.NAME"].startswith(own.name_prefix)
    return by_name or (own.selects and not flatten(own.keys).keys().isdisjoint(chosen))


def _resolve_experts(values: dict[str, Any]) -> None:
    """Derives NUM_EXPERTS from the original's NUM_LOCAL_EXPERTS: experts per rank or, if negative, ranks per expert.

    Raises: ConfigError if the ranks cannot be divided that way.
    """
    blocks, local = values["MODEL.SWIN_MOE.MOE_BLOCKS"], values["MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS"]
    given = values["MODEL.TYPE"] != "swin_moe" or values["MODEL.SWIN_MOE.NUM_EXPERTS"]
    if given or not any(isinstance(stage, list) and max(stage, default=-1) >= 0 for stage in blocks):
        return
    text = os.environ.get("WORLD_SIZE", "1")
    size = int(text) if text.isdigit() else 1
    if not local or (local < 0 and size % local):
        raise ConfigError(
            "MODEL.SWIN_MOE.NUM_EXPERTS",
            f"cannot be derived from MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS {local} on {size} ranks",
            "set it; for a released model, to its number of experts",
        )
    values["MODEL.SWIN_MOE.NUM_EXPERTS"] = local * size if local > 0 else size // -local


def _check_together(values: dict[str, Any]) -> None:
    """Checks keys against each other. Raises: ConfigError."""
    if values["TRAIN.GLOBAL_BATCH_SIZE"] and values["TRAIN.ACCUMULATION_STEPS"] > 1:
        raise ConfigError("TRAIN.ACCUMULATION_STEPS", "conflicts with TRAIN.GLOBAL_BATCH_SIZE", "set it to 1")
    if not values["TEST.VALIDATE"] and values["TRAIN.LR_SCHEDULER.NAME"] == "plateau":
        problem = "plateau depends on validation results, but TEST.VALIDATE is false"
        raise ConfigError("TRAIN.LR_SCHEDULER.NAME", problem, "choose cosine, or set TEST.VALIDATE to true")
    if not values["TEST.VALIDATE"] and values["TRAIN.PATIENCE"]:
        log.warning("without validation (TEST.VALIDATE false), TRAIN.PATIENCE has no effect")
    epochs = float("inf") if values["TRAIN.EPOCHS"] == AUTO else values["TRAIN.EPOCHS"]
    if values["TRAIN.START_EPOCH"] >= epochs and not values["TRAIN.UPDATES"]:
        raise ConfigError("TRAIN.START_EPOCH", "nothing is left to train", "set it below TRAIN.EPOCHS")
    for name in ("MODEL.NAME", "TAG"):
        path = PurePath(values[name])
        if not values[name].strip() or path.is_absolute() or ".." in path.parts:
            raise ConfigError(name, f"{values[name]!r} is not a folder below OUTPUT", "use a plain name")
    if values["TRAIN.LR"] and not values["TRAIN.BASE_LR"]:
        problem = "0, although TRAIN.LR is set: WARMUP_LR and MIN_LR keep their ratio to it"
        raise ConfigError("TRAIN.BASE_LR", problem, "set it above 0")
    if values["EVAL_MODE"] and not (values["MODEL.RESUME"] or values["MODEL.PRETRAINED"]).strip(" ,"):
        raise ConfigError("--eval", "no weights to evaluate", "name them with --resume FILE")
    for key, excluded, remedy in (("TRAIN.COMPILE", True, "False"), ("AMP_DTYPE", "float16", "bfloat16")):
        if values["TRAIN.PARALLEL"] == "fsdp" and values[key] == excluded:
            raise ConfigError(key, f"{excluded} does not work with TRAIN.PARALLEL fsdp", f"set it to {remedy}")
    modes = [option for key, option in MODES.items() if values[key]]
    if len(modes) > 1:
        raise ConfigError(modes[0], f"cannot be combined with {' or '.join(modes[1:])}", "use one of them")
    TASKS[values["TASK"]].check(values)


def _check_warmup(cfg: CfgNode) -> None:
    """Checks that a training run outlasts its warm-up. Raises: ConfigError."""
    train = cfg.TRAIN
    if cfg.EVAL_MODE or cfg.THROUGHPUT_MODE or train.EPOCHS == AUTO:
        return
    if train.UPDATES and 0 < train.UPDATES <= train.WARMUP_UPDATES:
        unit, warmup, length = "UPDATES", train.WARMUP_UPDATES, train.UPDATES
    elif not (train.UPDATES or train.WARMUP_UPDATES) and 0 < train.EPOCHS <= train.WARMUP_EPOCHS:
        unit, warmup, length = "EPOCHS", train.WARMUP_EPOCHS, train.EPOCHS
    else:
        return  # mixed units: checked once the length of an epoch is known
    noun = unit.lower().removesuffix("s")
    raise ConfigError(
        f"TRAIN.WARMUP_{unit}",
        f"{count(warmup, noun)} of warm-up, but only {count(length, noun)} of training: TRAIN.BASE_LR would never be"
        " reached",
        f"set it below {length}, for example to {length // 10 if unit == 'EPOCHS' else max(1, length // 10)}",
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


def is_local(name: str, value: Any) -> bool:
    """Returns whether a key's value names a file or describes the machine of a run, and so must not be published."""
    if name not in NAMED or not isinstance(value, str):
        return KEYS[name].per_machine or name in PATHS
    return not _REMOTE.match(value) and (os.sep in value or bool(Path(value).suffix))
