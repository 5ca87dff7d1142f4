"""Class maps of ImageNet: from ImageNet-22K to ImageNet-1K, and ImageNet-ReaL."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor

from utils.errors import ConfigError, listing

CLASSES_22K = 21841
CLASSES_1K = 1000


@cache
def rows_of_1k() -> tuple[int, ...]:
    """Returns the row of the released 22K heads for each ImageNet-1K class.

    The heads are in the order of timm's "imagenet-21k-goog" list, with its two last synsets at 9205 and 15027. Class
    850 (teddy bear) is in no 22K list; the published map assigns it row 5564.
    """
    goog = ImageNetInfo("imagenet-21k-goog").label_names()
    order = goog[:CLASSES_22K]
    order[9205], order[15027] = goog[CLASSES_22K], goog[CLASSES_22K + 1]
    place = {synset: row for row, synset in enumerate(order)}
    return tuple(place.get(synset, 5564) for synset in ImageNetInfo("imagenet-1k").label_names())


class KnownClasses(NamedTuple):
    """Classes of a file: `names` in label order, None if not stored; `likely`: the synsets of ImageNet-1K, if the head
    may be for them."""

    names: list[str] | None
    likely: list[str] | None


def known_classes(contents: Mapping[str, Any]) -> KnownClasses:
    """Finds the classes of the weights in a file."""
    sizes = {len(v) for group in (contents, *contents.values()) if isinstance(group, Mapping) for v in _heads(group)}
    names = contents.get("class_names")
    return KnownClasses(
        names if isinstance(names, list) and names else None,  # a pre-training stores an empty list
        ImageNetInfo("imagenet-1k").label_names() if sizes & {CLASSES_1K, CLASSES_22K} else None,
    )


def _heads(weights: Mapping[str, Any]) -> list[Tensor]:
    ends = ("head.weight", "head.fc.weight", "classifier.weight", "fc.weight")
    heads = [value for name, value in weights.items() if isinstance(name, str) and name.endswith(ends)]
    return [value for value in heads if isinstance(value, Tensor) and value.ndim == 2]


def real_labels(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the labels of ImageNet-ReaL: file name of a validation image -> its valid labels.

    Args: class_names: synsets in the label order of the model; other classes are omitted.
    Raises: ConfigError if a class is not a synset of ImageNet-1K.
    """
    synsets = ImageNetInfo("imagenet-1k").label_names()
    strange = [name for name in class_names if name not in set(synsets)]
    if strange:
        raise ConfigError("TEST.REAL", f"ImageNet-ReaL has no labels for {listing(strange)}", "set it to false")
    label = {name: i for i, name in enumerate(class_names)}
    own = [label.get(synset) for synset in synsets]
    found = RealLabelsImagenet([""] * 50_000).real_labels
    return {name: [place for i in valid if (place := own[i]) is not None] for name, valid in found.items()}


def map_head(weight: Tensor) -> Tensor:
    """Selects the rows of a 22K head's weight or bias (21841, ...) for the 1K classes: (1000, ...)."""
    return weight[torch.tensor(rows_of_1k())]
