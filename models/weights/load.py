"""Loading of Swin weights in any published format: found, recognised, translated, fitted, checked and copied."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeGuard

from torch import Tensor, nn

from models.backbone import SwinBackbone
from models.registry import MODELS
from models.swin_v2 import ContinuousBackbone
from models.weights.checks import (
    WrongModelError,
    check_finite,
    check_kinds,
    check_names,
    check_shapes,
    misfits,
    trained_as,
)
from models.weights.experts import check_experts, flat_biases
from models.weights.fitting import Head, Tables, fit_head, fit_weights
from models.weights.layouts import CLASSIFIERS, DERIVED, LAYOUTS, Layout, Weights, recognise
from models.weights.parts import HEAD_CLASSIFIERS, parts_to_original, split_norm
from models.weights.timm import load_timm
from utils.errors import CheckpointError, listing

# keys that wrap the weights; EMA first: published accuracies were measured with it
WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "model_state_dict")
# of DistributedDataParallel, torch.compile and Lightning
TRAINING_PREFIXES = re.compile(r"^((module|_orig_mod|model)\.)+")
# prefixes of the backbone in larger models, such as detectors
BACKBONES = ("backbone.", "encoder.", "swin.", "swinv2.")
HEAD_WEIGHTS = ("head.weight", "head.fc.weight", "classifier.weight")
# tensors that models/weights/fitting.py may reshape
FITTED = re.compile(
    r".*\.relative_position_bias_table|absolute_pos_embed|embeddings\.position_embeddings|(head|head\.fc|classifier)\..*"
    r"|(patch_embed\.proj(ection)?|embeddings\.patch_embeddings\.projection|features\.0\.0)\.weight"
)
HEAD = re.compile(r"(head|head\.fc|classifier)\.(weight|bias)")


@dataclass(frozen=True)
class Found:
    """Weights found in a file.

    `tensors`: under the names in the file, without prefixes and derived tensors; `others`: the other parts of a larger
    model, with prefixes; `windows`: the window that V2's position coordinates are normalised to in each stage, empty if
    not stored.
    """

    tensors: Weights
    place: str
    layout: Layout
    others: Weights
    windows: tuple[int, ...]
    origin: str

    @cached_property
    def weights(self) -> Weights:
        """The tensors under the original's names. Raises: CheckpointError if they cannot be translated."""
        try:
            return self.layout.to_original(self.tensors)
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError) as e:
            reason = str(e).splitlines()[0]
            raise CheckpointError(self.origin, f"impossible tensor shape ({reason})", "name another file") from e

    @property
    def family(self) -> str | None:
        """The MODEL.TYPE recognised by the names, or None."""
        names = "\n".join(self.tensors)
        return next((family for family, model in MODELS.items() if model.signature in names), None)

    @property
    def remark(self) -> str:
        """The layout and the place of the weights, unless they are this program's; for the log."""
        unusual = [] if self.layout.name == "original" else [f"{self.layout.name} layout"]
        unusual += [] if self.place == "model" else [self.place]
        return f" ({', '.join(unusual)})" if unusual else ""

    @property
    def classes(self) -> int:
        """Number of head outputs; 0 if there is no head."""
        head = next((value for name, value in self.tensors.items() if name in HEAD_WEIGHTS), None)
        return 0 if head is None or not head.ndim else len(head)


class HasEncoder(Protocol):
    """A model with a Swin as `encoder`, whose parameter names begin with `encoder_name`."""

    encoder_name: ClassVar[str]

    @property
    def encoder(self) -> SwinBackbone: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


def has_encoder(model: nn.Module) -> TypeGuard[HasEncoder]:
    """Returns whether a model is a `HasEncoder`; isinstance ignores submodules since Python 3.12."""
    return hasattr(model, "encoder_name") and isinstance(getattr(model, "encoder", None), SwinBackbone)


def find_weights(contents: Mapping[str, Any], origin: str, encoder_name: str = "") -> Found:
    """Finds the weights of a Swin in the contents of a file.

    Args: encoder_name: prefix of the Swin if the file may come from a `HasEncoder`.
    Raises: CheckpointError if there are none, or one is not finite.
    """
    place, tensors = _unwrap(contents, origin)
    # transformers 5 in memory, and its final norm, which dense models do not use, in files
    tensors = {re.sub(r"^backbone\.swin(v2)?\.", "backbone.", name): value for name, value in tensors.items()}
    prefix, tensors, others = _split_backbone(tensors, encoder_name)
    tensors = {name.replace(".rpe_mlp.", ".cpb_mlp."): value for name, value in tensors.items()}
    tensors = flat_biases(tensors)
    derived = {name: value for name, value in tensors.items() if name.rsplit(".", 1)[-1] in DERIVED}
    layout = recognise(list(tensors))
    others |= {f"{prefix}{name}": tensors.pop(name) for name in layout.extras(tensors)}
    tensors = {name: value for name, value in tensors.items() if name not in derived}
    check_finite(tensors, origin)
    windows = _stored_windows(contents, origin) or _windows_of(derived)
    return Found(tensors, place, layout, others, windows, origin)


def load_weights(model: SwinBackbone, found: Found, head: Head = "fit", tables: Tables = "bicubic") -> str:
    """Copies weights into a model, fitted to its windows, image size, input channels and classes.

    Args: head: "fit": the head must fit; "renew": re-initialised if it does not; "replace": always re-initialised;
    tables: resampling of position tables to a different window size.
    Returns: a log line. Raises: CheckpointError with the first names that are missing, unexpected or misshapen.
    """
    own = model.state_dict()
    apart = {name: own.pop(name) for name in LAYOUTS["original"].extras(own)}  # load_composite loads them
    _check_family(model, found)
    check_experts(found.tensors, own, found.origin)
    notes = [f"{len(found.tensors)} tensors from {found.origin}{found.remark}"]
    if found.others:
        notes.append(f"{len(found.others)} ignored ({listing(found.others, 3)})")
    _check_layout(found, own)
    weights = dict(found.weights)
    notes += fit_weights(weights, own, model.grid, tables)
    notes.append(fit_head(weights, own, head, found.origin))
    wrong = found.layout.shapes_of({name: own[name] for name in misfits(weights, own)})
    check_shapes(found.tensors, wrong, list(wrong), found.origin)
    model.load_state_dict(weights | apart)
    notes.append(_adopt_windows(model, found))
    return ", ".join(note for note in notes if note)


def load_contents(
    model: nn.Module,
    contents: Mapping[str, Any],
    origin: str,
    head_for: Sequence[str] | None = None,
    tables: Tables = "bicubic",
) -> str:
    """Loads the weights in the contents of a file into a Swin, a model that contains one, or a timm model.

    Args: head_for: classes to train on: a head for other classes is re-initialised, and so are the other parts of a
    `HasEncoder` if the file lacks them; None: everything must fit; tables: resampling of position tables.
    Returns: a log line. Raises: CheckpointError.
    """
    names = contents.get("class_names")
    others = isinstance(names, list) and names != list(head_for or ())
    head: Head = "fit" if head_for is None else "replace" if others else "renew"
    try:
        if isinstance(model, SwinBackbone):
            return load_weights(model, find_weights(contents, origin), head, tables)
        if has_encoder(model):
            return load_composite(model, contents, origin, encoder_only=head_for is not None, head=head, tables=tables)
        return load_timm(model, *_unwrap(contents, origin), origin, head)
    except WrongModelError as error:
        own = trained_as(contents, origin)
        if own is None:
            raise
        raise WrongModelError(origin, f"contains the weights of {own[0]}", f"use {own[1]}") from error


def load_composite(
    model: HasEncoder,
    contents: Mapping[str, Any],
    origin: str,
    *,
    encoder_only: bool = False,
    head: Head = "fit",
    tables: Tables = "bicubic",
) -> str:
    """Loads a model that contains a Swin, which is fitted; its other parts must match exactly.

    Args: encoder_only: accept a file without the other parts, such as a classifier's; they stay as initialised. If the
    Swin is `dense`, parts that fit are loaded and the others named; head: "replace" leaves out the classifiers.
    Returns: a log line, which names the other parts. Raises: CheckpointError.
    """
    prefix, encoder = model.encoder_name, model.encoder.state_dict()
    fitted = {f"{prefix}{name}" for name in encoder.keys() - set(LAYOUTS["original"].extras(encoder))}
    own = {name: value for name, value in model.state_dict().items() if name not in fitted}
    parts = dict.fromkeys(name.removeprefix(prefix).split(".")[0].replace("_", " ") for name in own)
    parts = {part: None for part in parts if not re.fullmatch(r"norm\d+", part)}  # they belong to the encoder's maps
    found = find_parts(model.encoder, find_weights(contents, origin, prefix), prefix)
    if encoder_only and model.encoder.options.dense:
        return _load_fitting(model, found, own, head, tables)
    given = found.others if found.others.keys() & own.keys() else {}
    if given:
        check_names(given, own, origin)
        check_kinds(given, own, origin)
        check_finite(given, origin)
        check_shapes(given, own, misfits(given, own), origin)
        found = replace(found, others={})
    elif not encoder_only:
        raise WrongModelError(origin, f"has no {' and no '.join(parts)}", "start from an encoder with --pretrained")
    line = load_weights(model.encoder, found, tables=tables)
    model.load_state_dict(given, strict=False)
    return f"{line}, {'with its' if given else 'a new'} {' and '.join(parts)}"


def find_parts(encoder: SwinBackbone, found: Found, prefix: str) -> Found:
    """Returns the weights with all other parts under the authors' names and, for a `dense` encoder, with the norm of
    the last map among them and without a classifier's norm. Args: prefix: of the encoder's names."""
    others = parts_to_original(found.others, found.layout)
    if not encoder.options.dense:
        return replace(found, others=others)
    tensors, norm = split_norm(found.tensors, dense=f"{prefix}norm0.weight" in others)
    return replace(found, tensors=tensors, others=others | {f"{prefix}{name}": value for name, value in norm.items()})


def _load_fitting(model: HasEncoder, found: Found, own: Weights, head: Head, tables: Tables) -> str:
    """Loads the encoder and those other parts that a file has with the same shape. Args: own: the other parts."""
    given = {name: value for name, value in found.others.items() if name in own and value.shape == own[name].shape}
    if head == "replace":
        given = {name: value for name, value in given.items() if not HEAD_CLASSIFIERS.match(name)}
    check_kinds(given, own, found.origin)
    check_finite(given, found.origin)
    line = load_weights(model.encoder, replace(found, others=_without(found.others, own)), tables=tables)
    model.load_state_dict(given, strict=False)
    new = _without(own, given)
    groups = dict.fromkeys(re.findall(r"^(norm\d+|\w+\.\w+)", name.removeprefix(model.encoder_name))[0] for name in new)
    return f"{line}, {len(given)} of {len(own)} tensors of the heads, new: {listing(groups, 12) or 'nothing'}"


def _without(weights: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> Weights:
    return {name: value for name, value in weights.items() if name not in names}


def _unwrap(contents: Mapping[str, Any], origin: str) -> tuple[str, Weights]:
    """Returns the location of the weights in a file, and the weights without wrapper prefixes.

    Under an unusual name, they are the group with the most tensors.
    """
    groups = {str(name): _tensors(group) for name, group in contents.items() if isinstance(group, Mapping)}
    place = next((name for name in WRAPPERS if groups.get(name)), None)
    if place is None:
        groups["top level"] = _tensors(contents)
        place = max(groups, key=lambda name: len(groups[name]))
    if groups[place]:
        return place, groups[place]
    names = listing(map(str, contents), 3) or "nothing"
    raise CheckpointError(origin, f"has no weights, only {names}", "name another file")


def _tensors(group: Mapping[str, Any]) -> Weights:
    tensors = {name: v for name, v in group.items() if isinstance(v, Tensor) and isinstance(name, str)}
    tensors.pop("n_averaged", None)  # the counter of torch's AveragedModel
    return {TRAINING_PREFIXES.sub("", name): v for name, v in tensors.items()}


def _check_layout(found: Found, own: Weights) -> None:
    """Checks that the file has the tensors of the model, under the names in the file; either may lack a head."""
    wanted = found.layout.shapes_of(own)
    heads = [any(name.startswith(CLASSIFIERS) for name in names) for names in (found.tensors, wanted)]
    skip = () if heads[0] == heads[1] else CLASSIFIERS
    given, wanted = ({n: v for n, v in group.items() if not n.startswith(skip)} for group in (found.tensors, wanted))
    check_names(given, wanted, found.origin)
    check_kinds(given, wanted, found.origin)
    wrong = [name for name in misfits(given, wanted) if not FITTED.fullmatch(name)]
    check_shapes(found.tensors, wanted, wrong, found.origin)


def _stored_windows(contents: Mapping[str, Any], origin: str) -> tuple[int, ...]:
    """Returns the pre-training window sizes, stored in checkpoints and converted files of this program."""
    stored = contents.get("pretrained_windows") or []
    if not isinstance(stored, list) or not all(isinstance(w, int) and 0 < w < 10_000 for w in stored):
        raise CheckpointError(origin, "pretrained_windows is not a list of windows", "name another file")
    return tuple(stored)


def _adopt_windows(model: nn.Module, found: Found) -> str:
    """Normalises coordinates as in the file, unless the configuration sets their window; returns a log message."""
    if not isinstance(model, ContinuousBackbone):
        return ""
    stages = len(model.layers)
    if found.windows and len(found.windows) != stages:
        problem = f"has windows of {len(found.windows)} stages, the model has {stages}"
        raise CheckpointError(found.origin, problem, "name another file")
    changed = model.adopt_pretrained_windows(found.windows)
    own, theirs = ("/".join(map(str, windows)) for windows in (model.pretrained_windows(), found.windows))
    if not found.windows and not model.is_configured():
        return (
            f"position coordinates of window {own}: the file does not store its pre-training window size"
            f" (set MODEL.{model.options.SECTION}.PRETRAINED_WINDOW_SIZES)"
        )
    if found.windows and own != theirs:
        return f"position coordinates of window {own} as configured, although the file has {theirs}"
    return f"position coordinates of window {own}" if changed else ""


def _windows_of(derived: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Derives the pre-training window size of each stage from the largest coordinate in its table.

    The table contains log2(1 + 8 * d / (w - 1)) / 3 for offsets up to d, one less than the window it was built for.
    """
    windows = {}
    for name, table in derived.items():
        stages = [int(part) for part in name.split(".") if part.isdigit()]
        if not (name.endswith("relative_coords_table") and stages and table.ndim == 4 and table.is_floating_point()):
            continue
        reach, largest = (table.shape[1] - 1) // 2, float(table.float().abs().amax()) if table.numel() else 0.0
        # below 10 = log2(1 + 8 * d) / 3 for any realistic window; anything else is not a coordinate table
        if not 0.1 < largest < 10:
            windows[stages[0]] = 1
            continue
        windows[stages[0]] = round(8 * reach / (2 ** (3 * largest) - 1)) + 1
    return tuple(windows[stage] for stage in sorted(windows))


def _split_backbone(tensors: Weights, encoder_name: str) -> tuple[str, Weights, Weights]:
    """Returns the prefix of the Swin in a larger model, its tensors without the prefix, and all other tensors."""
    for prefix in (encoder_name, *BACKBONES):
        inner = {name.removeprefix(prefix): v for name, v in tensors.items() if prefix and name.startswith(prefix)}
        if any(name.startswith(("patch_embed.", "embeddings.", "features.")) for name in inner):
            others = {name: v for name, v in tensors.items() if not name.startswith(prefix)}
            # a classifier's head is not prefixed in some layouts; in a `HasEncoder` it is one of the other parts
            heads = [] if prefix == encoder_name else [name for name in others if HEAD.fullmatch(name)]
            return prefix, inner | {name: others.pop(name) for name in heads}, others
    return "", tensors, {}


def _check_family(model: nn.Module, found: Found) -> None:
    family = getattr(model, "family", None)
    if family and found.family and family != found.family:
        problem = f"contains a {MODELS[found.family].title}, but the model is a {MODELS[family].title}"
        raise CheckpointError(found.origin, problem, f"use a configuration with MODEL.TYPE {found.family}")
