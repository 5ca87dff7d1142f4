"""Any published file of Swin weights -> a model: find the weights, recognise their layout, fit, check, load."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from models.backbone import SwinBackbone
from models.errors import WeightsError
from models.swin_v2 import SwinTransformerV2
from models.weights.checks import check_finite, check_kinds, check_names, misfits, not_of_this_model, some
from models.weights.fitting import Head, fit_head, fit_weights
from models.weights.layouts import CLASSIFIERS, DERIVED, Layout, Weights, recognise
from models.weights.timm import load_timm

# what files wrap the weights in; averaged weights first: a file's accuracy was measured with them
WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
TRAINING_PREFIXES = ("module.", "_orig_mod.")
# other parts of a file that hold no classifier: heads of detection and segmentation, the decoder of SimMIM
BACKBONES = ("backbone.", "encoder.", "swin.", "swinv2.")
HEAD_WEIGHTS = ("head.weight", "head.fc.weight", "classifier.weight")
# tensors that models/weights/fitting.py may bring to another shape
FITTED = re.compile(
    r".*\.relative_position_bias_table|absolute_pos_embed|embeddings\.position_embeddings|(head|head\.fc|classifier)\..*"
    r"|(patch_embed\.proj(ection)?|embeddings\.patch_embeddings\.projection|features\.0\.0)\.weight"
)
HEAD = re.compile(r"(head|head\.fc|classifier)\.(weight|bias)")
FAMILIES = {"swin": "Swin V1", "swinv2": "Swin V2", "swin_mlp": "Swin-MLP"}


@dataclass(frozen=True)
class Found:
    """The weights of a file, and how they were found.

    `tensors`: under the file's own names, without prefixes and what is derived; `windows`: window that each stage's V2
    position coordinates are normalised to, empty if the file does not tell.
    """

    tensors: Weights
    place: str
    layout: Layout
    ignored: tuple[str, ...]
    windows: tuple[int, ...]
    origin: str

    @cached_property
    def weights(self) -> Weights:
        """Under the original's names. Raises: WeightsError for tensors that cannot be translated."""
        try:
            return self.layout.to_original(self.tensors)
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError) as e:
            reason = str(e).splitlines()[0]
            raise WeightsError(f"a tensor has an impossible shape ({reason}): {self.origin}: name another file") from e

    @property
    def family(self) -> str | None:
        """MODEL.TYPE that the names belong to."""
        names = "\n".join(self.tensors)
        signs = {"logit_scale": "swinv2", "spatial_mlp": "swin_mlp", "relative_position_bias_table": "swin"}
        return next((family for sign, family in signs.items() if sign in names), None)

    @property
    def classes(self) -> int:
        """Outputs of the head, 0 if there is none."""
        head = next((value for name, value in self.tensors.items() if name in HEAD_WEIGHTS), None)
        return 0 if head is None or not head.ndim else len(head)


def find_weights(contents: Mapping[str, Any], origin: str) -> Found:
    """The weights in what a file holds. Raises: WeightsError if there are none, or one is not finite."""
    place, tensors = _unwrap(contents, origin)
    tensors, ignored = _only_backbone(tensors)
    tensors = {name.replace(".rpe_mlp.", ".cpb_mlp."): value for name, value in tensors.items()}
    derived = {name: value for name, value in tensors.items() if name.rsplit(".", 1)[-1] in DERIVED}
    layout = recognise(list(tensors))
    extra = layout.extras(tensors)
    tensors = {name: value for name, value in tensors.items() if name not in derived and name not in extra}
    check_finite(tensors, origin)
    windows = _told_windows(contents, origin) or _windows_of(derived)
    return Found(tensors, place, layout, (*ignored, *extra), windows, origin)


def load_weights(model: SwinBackbone, found: Found, head: Head = "fit") -> str:
    """Copy found weights into a model, fitted to its windows, image size, input channels and classes.

    Args: head: what becomes of the head: "fit": the file's must fit; "renew": the model's fresh one stays where the
    file's does not fit; "replace": the fresh one stays.
    Returns: a line that says what was loaded, and what was done to it.
    Raises: WeightsError with the first names that are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    _check_family(model, found)
    notes = [f"{len(found.tensors)} tensors from {found.origin} ({found.layout.name} layout, {found.place})"]
    if found.ignored:
        notes.append(f"{len(found.ignored)} ignored ({some(found.ignored, 3)})")
    _check_layout(found, own)
    weights = dict(found.weights)
    notes += fit_weights(weights, own)
    notes.append(fit_head(weights, own, head, found.origin))
    _check_shapes(weights, own, found)
    model.load_state_dict(weights)
    notes.append(_adopt_windows(model, found))
    return ", ".join(note for note in notes if note)


def load_contents(
    model: nn.Module, contents: Mapping[str, Any], origin: str, head_for: Sequence[str] | None = None
) -> str:
    """`find_weights`, then `load_weights`; for a model that is no Swin, the weights by timm's names.

    Args: head_for: classes of the data to train on, for which a fresh head is made where the file's head is of other
    classes; None: the file's head must fit.
    """
    names = contents.get("class_names")
    known_others = isinstance(names, list) and names != list(head_for or ())
    head: Head = "fit" if head_for is None else "replace" if known_others else "renew"
    if isinstance(model, SwinBackbone):
        return load_weights(model, find_weights(contents, origin), head)
    return load_timm(model, *_unwrap(contents, origin), origin, head)


def _unwrap(contents: Mapping[str, Any], origin: str) -> tuple[str, Weights]:
    """Where in a file the weights stand, and they, without the prefixes of training."""
    for place in (*WRAPPERS, ""):
        group = contents.get(place) if place else contents
        tensors = _tensors(group) if isinstance(group, Mapping) else {}
        if tensors:
            return place or "top level", tensors
    raise WeightsError(f"no weights: {origin}: it holds {some(contents, 3)}, but no tensors by name")


def _tensors(group: Mapping[str, Any]) -> Weights:
    return {_bare(name): v for name, v in group.items() if isinstance(v, Tensor) and isinstance(name, str)}


def _check_layout(found: Found, own: Weights) -> None:
    """Whether the file holds the model's tensors, under the file's own names; only one of them may have a head."""
    wanted = found.layout.shapes_of(own)
    heads = [any(name.startswith(CLASSIFIERS) for name in names) for names in (found.tensors, wanted)]
    skip = () if heads[0] == heads[1] else CLASSIFIERS
    given, wanted = ({n: v for n, v in group.items() if not n.startswith(skip)} for group in (found.tensors, wanted))
    check_names(given, wanted, found.origin)
    check_kinds(given, wanted, found.origin)
    _refuse_shapes(found, wanted, [name for name in misfits(given, wanted) if not FITTED.fullmatch(name)])


def _check_shapes(weights: Weights, own: Weights, found: Found) -> None:
    """Whether everything fits after fitting."""
    wrong = found.layout.shapes_of({name: own[name] for name in misfits(weights, own)})
    _refuse_shapes(found, wanted=wrong, names=list(wrong))


def _refuse_shapes(found: Found, wanted: Weights, names: list[str]) -> None:
    if names:
        shapes = [f"{name} {tuple(found.tensors[name].shape)} for {tuple(wanted[name].shape)}" for name in names]
        raise WeightsError(not_of_this_model(found.origin, f"{len(names)} of another shape: {some(shapes)}"))


def _told_windows(contents: Mapping[str, Any], origin: str) -> tuple[int, ...]:
    """Windows of pre-training where the file names them: our own checkpoints and converted files do."""
    told = contents.get("pretrained_windows") or []
    if not isinstance(told, list) or not all(isinstance(w, int) and 0 < w < 10_000 for w in told):
        raise WeightsError(f"no list of windows: pretrained_windows of {origin}: name another file")
    return tuple(told)


def _adopt_windows(model: nn.Module, found: Found) -> str:
    """Normalise V2's coordinates as the file's were, where the configuration leaves it open; say what was done."""
    if not isinstance(model, SwinTransformerV2):
        return ""
    stages = len(model.layers)
    if found.windows and len(found.windows) != stages:
        raise WeightsError(f"windows of {len(found.windows)} stages for a model of {stages}: {found.origin}")
    changed = model.adopt_pretrained_windows(found.windows)
    own, theirs = ("/".join(map(str, windows)) for windows in (model.pretrained_windows(), found.windows))
    if not found.windows and not model.is_configured():
        return (
            f"position coordinates of window {own}: the file does not tell its window of pre-training,"
            " MODEL.SWINV2.PRETRAINED_WINDOW_SIZES does"
        )
    if found.windows and own != theirs:
        return f"position coordinates of window {own} as configured, though the file's are of {theirs}"
    return f"position coordinates of window {own}" if changed else ""


def _windows_of(derived: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Window of pre-training of each stage, from the largest coordinate in its table.

    The table holds log2(1 + 8 * d / (w - 1)) / 3 for offsets up to d, one less than the window it was made for.
    """
    windows = {}
    for name, table in derived.items():
        stages = [int(part) for part in name.split(".") if part.isdigit()]
        if not (name.endswith("relative_coords_table") and stages and table.ndim == 4 and table.is_floating_point()):
            continue
        reach, largest = (table.shape[1] - 1) // 2, float(table.float().abs().amax()) if table.numel() else 0.0
        # up to 10 = log2(1 + 8 * d) / 3 for any window there is; a table of nonsense tells nothing
        if not 0.1 < largest < 10:
            windows[stages[0]] = 1
            continue
        windows[stages[0]] = round(8 * reach / (2 ** (3 * largest) - 1)) + 1
    return tuple(windows[stage] for stage in sorted(windows))


def _only_backbone(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Without the prefix of a larger model; what belongs to its other parts is ignored, and said so."""
    for prefix in BACKBONES:
        inner = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        if any(name.startswith(("patch_embed.", "embeddings.", "features.")) for name in inner):
            heads = {name: v for name, v in tensors.items() if HEAD.fullmatch(name)}
            rest = [name for name in tensors if not name.startswith(prefix) and name not in heads]
            return {**inner, **heads}, tuple(rest)
    return tensors, ()


def _check_family(model: nn.Module, found: Found) -> None:
    family = getattr(model, "family", None)
    if family and found.family and family != found.family:
        raise WeightsError(
            f"the file holds {FAMILIES[found.family]}, the model is {FAMILIES[family]}: {found.origin}:"
            f" use a configuration with MODEL.TYPE {found.family}"
        )


def _bare(name: str) -> str:
    while name.startswith(TRAINING_PREFIXES):
        for prefix in TRAINING_PREFIXES:
            name = name.removeprefix(prefix)
    return name
