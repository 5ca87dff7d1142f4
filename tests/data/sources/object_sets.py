"""Small datasets of annotated rectangles, in the layouts that the program reads."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NAMES = ("red", "blue")
COLOURS = ((220, 30, 30), (30, 30, 220))


class Made(NamedTuple):
    """An image: its name without extension, pixels, and objects: label, x1, y1, x2, y2."""

    stem: str
    pixels: np.ndarray
    objects: list[tuple[int, int, int, int, int]]


def made(split: str, count: int, empty: int = 0) -> list[Made]:
    """Returns images of different sizes with one to three rectangles; the first `empty` have none."""
    images = []
    for i in range(count):
        draw = np.random.default_rng([i, len(split)])
        height, width = (int(side) for side in draw.integers(56, 90, 2))
        pixels = draw.integers(60, 90, (height, width, 3)).astype(np.uint8)
        objects = []
        for _ in range(0 if i < empty else int(draw.integers(1, 4))):
            label, side = int(draw.integers(2)), draw.integers(14, 30, 2)
            x, y = int(draw.integers(0, width - side[1])), int(draw.integers(0, height - side[0]))
            box = (x, y, x + int(side[1]), y + int(side[0]))
            pixels[box[1] : box[3], box[0] : box[2]] = COLOURS[label]
            objects.append((label, *box))
        images.append(Made(f"{split}_{i}", pixels, objects))
    return images


def write_coco(root: Path, counts: dict[str, int], empty: int = 0, masks: bool = True) -> Path:
    """Writes annotations/instances_<split>2017.json and <split>2017/; categories 44 and 2."""
    for split, count in counts.items():
        images, annotations = [], list[dict[str, Any]]()
        for number, each in enumerate(made(split, count, empty), start=10):
            save(root / f"{split}2017" / f"{each.stem}.png", each.pixels)
            height, width = each.pixels.shape[:2]
            images.append({"id": number, "file_name": f"{each.stem}.png", "height": height, "width": width})
            for label, x1, y1, x2, y2 in each.objects:
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": (44, 2)[label]}
                one |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                if masks:
                    one["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                annotations.append(one)
        categories = [{"id": 44, "name": "red"}, {"id": 2, "name": "blue"}]
        contents = {"images": images, "categories": categories, "annotations": annotations}
        write(root / f"annotations/instances_{split}2017.json", json.dumps(contents))
    return root


def write_voc(root: Path, counts: dict[str, int], empty: int = 0) -> Path:
    for split, count in counts.items():
        own = made(split, count, empty)
        for each in own:
            save(root / "JPEGImages" / f"{each.stem}.png", each.pixels)
            write(root / "Annotations" / f"{each.stem}.xml", voc_text(each))
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(each.stem for each in own))
    return root


def voc_text(image: Made) -> str:
    height, width = image.pixels.shape[:2]
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in image.objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image.stem}.png</filename>{size}{objects}</annotation>"


def write_yolo(root: Path, counts: dict[str, int], empty: int = 0) -> Path:
    write(root / "data.yaml", "names: {0: red, 1: blue}\n")
    for split, count in counts.items():
        for each in made(split, count, empty):
            save(root / "images" / split / f"{each.stem}.png", each.pixels)
            height, width = each.pixels.shape[:2]
            lines = []
            for label, x1, y1, x2, y2 in each.objects:
                centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
                lines.append(" ".join(map(repr, (label, *centre, (x2 - x1) / width, (y2 - y1) / height))))
            write(root / "labels" / split / f"{each.stem}.txt", "\n".join(lines))
    return root


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
