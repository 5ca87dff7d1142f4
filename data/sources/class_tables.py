"""Names and colours of the classes of a segmentation dataset."""

import re
from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError, listing

ADE20K_TABLE = "objectInfo150.txt"
FILES = ("classes.txt", "class_names.txt", "labels.txt", ADE20K_TABLE)
CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of these classes
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_BY_LAYOUT = {"cityscapes": CITYSCAPES, "cityscapes_ids": CITYSCAPES, "voc": VOC}


class ClassTable(NamedTuple):
    """Classes in label order; `colours` (red, green, blue) of each in RGB label maps, empty if unknown; `origin` for
    messages, empty if the names are unknown."""

    names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    origin: str = ""


def class_table(root: Path, layout: str, given: str = "") -> ClassTable:
    """Returns the classes listed in the file `given`, else in one of `FILES` in the root, else the layout's.

    A line is a name, or a name and its colour: "road 128 64 128". Raises: DataError for an unreadable file.
    """
    path = Path(given) if given else next((root / name for name in FILES if (root / name).is_file()), None)
    if path is not None:
        return _read(path)
    names = _BY_LAYOUT.get(layout, ())
    return ClassTable(names, (), layout if names else "")


def _read(path: Path) -> ClassTable:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8"
        raise DataError(str(path), f"cannot read the classes ({reason})", "write one class per line") from e
    if path.name == ADE20K_TABLE:  # a table with a head; the last column names the class
        names = [re.split(r"\t+|\s{2,}", line)[-1].split(",")[0].strip() for line in lines[1:] if line]
        return ClassTable(tuple(names), (), str(path))
    found = [_parsed(line) for line in lines if line and not line.startswith("#")]
    colours = [colour for _, colour in found if colour is not None]
    if not found or len(colours) not in (0, len(found)):
        problem = "some classes have a colour, others none" if found else "lists no classes"
        raise DataError(str(path), problem, "write one class per line: name, or name red green blue")
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(str(path), f"lists the class {twice} twice", "remove one of the lines")
    same = next((colour for colour in colours if colours.count(colour) > 1), None)
    if same is not None:
        both = listing(name for name, colour in found if colour == same)
        raise DataError(str(path), f"one colour for several classes: {both}", "give each class its own colour")
    return ClassTable(tuple(names), tuple(colours), str(path))


def _parsed(line: str) -> tuple[str, tuple[int, int, int] | None]:
    match = re.fullmatch(r"(.*?)[\s,;:]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})", line)
    if match is None or not match[1] or any(int(match[i]) > 255 for i in (2, 3, 4)):
        return line, None
    return match[1].strip(), (int(match[2]), int(match[3]), int(match[4]))
