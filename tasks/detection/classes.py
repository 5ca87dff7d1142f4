"""The classes of a detection dataset, and whether its objects have masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.named_classes import NamedClasses, stored_names

# of the 80 classes of COCO, among 1 to 90
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


@dataclass(frozen=True)
class DetectionInfo(NamedClasses):
    """`category_ids`: of the classes in annotation files; `masks`: whether masks are predicted."""

    category_ids: tuple[int, ...] = ()
    masks: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {"category_ids": list(self.category_ids), **super().as_dict()}


def stored_classes(contents: Mapping[str, Any], classes: int, masks: bool) -> DetectionInfo:
    """Returns the classes stored in a file from this program or mmdetection, else "class 0", ...

    Args: classes: number of outputs; masks: whether there is a mask head.
    """
    names, ids = stored_names(contents, classes), contents.get("category_ids") or ()
    if len(ids) != classes:
        is_coco = classes == len(COCO_IDS) and names[0] in ("person", "class 0")
        ids = COCO_IDS if is_coco else range(1, classes + 1)
    return DetectionInfo(class_names=names, category_ids=tuple(ids), masks=masks)
