"""Data with named classes, and the names in a file of any program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from utils.checkpoints.contents import are_names
from utils.errors import CheckpointError
from utils.runs.provenance import DataInfo


@dataclass(frozen=True)
class NamedClasses(DataInfo):
    """`class_names` in label order."""

    class_names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"class_names": list(self.class_names), **super().as_dict()}

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Raises: CheckpointError also for other classes, whatever `accept_changes`."""
        names = saved.get("class_names")
        if names is not None and list(names) != list(self.class_names):
            counts = f"the checkpoint has {len(names)} classes, the data {len(self.class_names)}"
            remedy = "use a different --tag to train on other data, or fine-tune this file with --pretrained"
            raise CheckpointError(str(origin), f"{counts}; {_first_difference(names, self.class_names)}", remedy)
        super().check(saved, origin, accept_changes)


def metadata_of(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the description of the data in a file of mmsegmentation or mmdetection, of any version; may be empty."""
    meta = contents.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    inner = meta.get("dataset_meta")
    return inner if isinstance(inner, Mapping) else meta


def names_in(contents: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the class names that a file stores, empty if it stores none."""
    theirs = metadata_of(contents)
    names: Any = contents.get("class_names") or theirs.get("CLASSES") or theirs.get("classes")
    return tuple(map(str, names)) if are_names(names) else ()


def with_names(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the contents of a file with its class names where this program stores them."""
    names = names_in(contents)
    return {**contents, "class_names": list(names)} if names else contents


def stored_names(contents: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Returns the class names that a file stores, else "class 0", ... Args: classes: number of outputs."""
    names = names_in(contents)
    return names if len(names) == classes else tuple(f"class {label}" for label in range(classes))


def _first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    for label, (a, b) in enumerate(zip_longest(one, other, fillvalue="none")):
        if a != b:
            return f"class {label} is {a} in the checkpoint and {b} in the data"
    return "none differs"
