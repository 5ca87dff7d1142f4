"""Any published file of Swin weights -> a model: find the weights, recognise their layout, fit, check, load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models.backbone import SwinBackbone
from models.errors import WeightsError
from models.fitting import fit_head, fit_weights
from models.layouts import DERIVED, Weights, recognise

# what files wrap the weights in; averaged weights first: a file's accuracy was measured with them
WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
TRAINING_PREFIXES = ("module.", "_orig_mod.")
# other parts of a file that hold no classifier: heads of detection and segmentation, the decoder of SimMIM
BACKBONES = ("backbone.", "encoder.", "swin.", "swinv2.")
HEADS = ("head.", "classifier.")
FAMILIES = {"swin": "Swin V1", "swinv2": "Swin V2", "swin_mlp": "Swin-MLP"}


@dataclass(frozen=True)
class Found:
    """The weights of a file under the original's names, and how they were found.

    `windows`: window that each stage's V2 position coordinates are normalised to, as far as the file tells.
    """

    weights: Weights
    place: str
    layout: str
    ignored: tuple[str, ...]
    windows: tuple[int, ...]
    origin: str

    @property
    def family(self) -> str | None:
        """MODEL.TYPE that the names belong to."""
        names = "\n".join(self.weights)
        signs = {"logit_scale": "swinv2", "spatial_mlp": "swin_mlp", "relative_position_bias_table": "swin"}
        return next((family for sign, family in signs.items() if sign in names), None)

    @property
    def classes(self) -> int:
        """Outputs of the head. Raises: WeightsError if there is none."""
        if "head.weight" not in self.weights:
            raise WeightsError(f"no head: {self.origin}: these weights classify nothing; name those of a classifier")
        return len(self.weights["head.weight"])


def find_weights(contents: Mapping[str, Any], origin: str) -> Found:
    """The weights in what a file holds. Raises: WeightsError if there are none, or one is not finite."""
    place, tensors = _unwrap(contents, origin)
    tensors, ignored = _only_backbone(tensors)
    layout = recognise(list(tensors))
    windows = tuple(contents.get("pretrained_windows") or ())
    derived = {name: value for name, value in tensors.items() if _is_derived(name)}
    weights = layout.to_original({name: value for name, value in tensors.items() if name not in derived})
    weights = {name.replace(".rpe_mlp.", ".cpb_mlp."): value for name, value in weights.items()}
    if layout.name == "mmdetection":  # detectors norm the map of every stage
        extra = [name for name in weights if name.startswith("norm") and not name.startswith("norm.")]
        ignored += tuple(extra)
        weights = {name: value for name, value in weights.items() if name not in extra}
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(
                f"a weight is not finite: {name} of {origin}: the file is damaged or its training failed"
            )
    return Found(weights, place, layout.name, ignored, windows or _windows_of(derived), origin)


def load_weights(model: nn.Module, found: Found, new_head: bool = False) -> str:
    """Copy found weights into a model, fitted to its windows, image size, input channels and classes.

    Args: new_head: keep the model's fresh head where the file's does not fit.
    Returns: a line that says what was loaded, and what was done to it.
    Raises: WeightsError with the first names that are missing, unexpected, or of another shape.
    """
    own, weights = model.state_dict(), dict(found.weights)
    _check_family(model, found)
    notes = [f"{len(weights)} tensors from {found.origin} ({found.layout} layout, {found.place})"]
    if found.ignored:
        notes.append(f"{len(found.ignored)} ignored ({_some(list(found.ignored))})")
    notes += fit_weights(weights, own)
    notes.append(fit_head(weights, own, new_head, found.origin))
    _check_names(weights, own, found.origin)
    model.load_state_dict(weights)
    notes.append(_adopt_windows(model, found))
    return ", ".join(note for note in notes if note)


def load_contents(
    model: nn.Module, contents: Mapping[str, Any], origin: str, head_for: Sequence[str] | None = None
) -> str:
    """`find_weights`, then `load_weights`; for a model that is no Swin, the weights by their own names.

    Args: head_for: classes of the data to train on, for which a fresh head is made where the file's head is of other
    classes; None: the file's head must fit.
    """
    new_head = head_for is not None
    names = contents.get("class_names")
    if new_head and names is not None and list(names) != list(head_for or ()):
        contents = {**contents, **{w: _headless(contents[w]) for w in WRAPPERS if isinstance(contents.get(w), Mapping)}}
    if isinstance(model, SwinBackbone):
        return load_weights(model, find_weights(contents, origin), new_head)
    place, tensors = _unwrap(contents, origin)
    own = model.state_dict()
    other = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if new_head and other:  # timm names the classifier last
        tensors |= {name: own[name] for name in other[-2:]}
    _check_names(tensors, own, origin)
    model.load_state_dict(tensors)
    return f"{len(tensors)} tensors from {origin} ({place})" + (f", fresh {_some(other)}" if other else "")


def _headless(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if not name.startswith("head.")}


def _unwrap(contents: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Tensor]]:
    """Where in a file the weights stand, and they, without the prefixes of training."""
    place, found = "top level", contents
    for wrapper in WRAPPERS:
        if isinstance(contents.get(wrapper), Mapping):
            place, found = wrapper, contents[wrapper]
            break
    tensors = {_bare(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"no weights: {origin}: it holds {_some(list(contents))}, but no tensors by name")
    return place, tensors


def _check_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what}: {_some(names, 10)}" for what, names in problems.items() if names)
        raise WeightsError(f"the weights are not of this model: {origin}: {text}: use the --cfg they were made with")


def _adopt_windows(model: nn.Module, found: Found) -> str:
    """Normalise V2's coordinates as the file's were, where the configuration leaves it open."""
    adopt = getattr(model, "adopt_pretrained_windows", None)
    if adopt is None or not found.windows:
        return ""
    return "position coordinates of window " + "/".join(map(str, found.windows)) if adopt(found.windows) else ""


def _windows_of(derived: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Window of pre-training of each stage, from the largest coordinate in its table.

    The table holds log2(1 + 8 * d / (w - 1)) / 3 for offsets up to d, one less than the window it was made for.
    """
    windows = {}
    for name, table in derived.items():
        if name.endswith("relative_coords_table"):
            stage = next(part for part in name.split(".") if part.isdigit())
            reach, largest = (table.shape[1] - 1) // 2, float(table.abs().max())
            windows[int(stage)] = round(8 * reach / (2 ** (3 * largest) - 1)) + 1 if largest > 0 else 1
    return tuple(windows[stage] for stage in sorted(windows))


def _only_backbone(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Without the prefix of a larger model; what belongs to its other parts is ignored, and said so."""
    for prefix in BACKBONES:
        inner = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        if any(name.startswith(("patch_embed.", "embeddings.", "features.")) for name in inner):
            heads = {name: v for name, v in tensors.items() if name.startswith(HEADS) and v.ndim <= 2}
            rest = [name for name in tensors if not name.startswith(prefix) and name not in heads]
            inner.pop("mask_token", None)
            return {**inner, **heads}, tuple(rest)
    return tensors, ()


def _check_family(model: nn.Module, found: Found) -> None:
    family = getattr(model, "family", None)
    if family and found.family and family != found.family:
        raise WeightsError(
            f"the file holds {FAMILIES[found.family]}, the model is {FAMILIES[family]}: {found.origin}:"
            f" use a configuration with MODEL.TYPE {found.family}"
        )


def _is_derived(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in DERIVED


def _bare(name: str) -> str:
    while name.startswith(TRAINING_PREFIXES):
        for prefix in TRAINING_PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
