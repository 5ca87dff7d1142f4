"""Evaluation of detections: AP by COCO's definition over all ranks, errors by class and size, worst images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.loaders import EvalLoader
from data.pipeline.decoding import decode
from data.sources.object_store import ObjectSource
from data.sources.object_truth import truth_of
from models.detection.instances import Detections
from tasks.detection.average_precision import SIZES, Precision, average_precision
from tasks.detection.classes import DetectionInfo
from tasks.detection.pictures import Drawn, precision_figure, tile
from tasks.detection.results import as_results
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.files import writing
from utils.pictures import Sheet
from utils.training.objective import Evaluation, Table

WORST = 8  # images of a picture
SCORE = 0.3  # from which a detection is drawn, and counted as a false one
_KINDS = {"box": "bbox", "mask": "segm"}


class DetectionEvaluator:
    """Collects the detections of this rank, masks as run lengths.

    Args: target: .json file for all detections, "" for none.
    """

    def __init__(self, val: EvalLoader, info: DetectionInfo, target: str = ""):
        assert isinstance(val.source, ObjectSource)
        self._source, self._info, self._target = val.source, info, target
        self._found: dict[int, list[dict[str, Any]]] = {}

    def update(self, outputs: Sequence[Detections], batch: Batch) -> None:
        for index, found, target in zip(batch.samples, outputs, batch.targets, strict=True):
            number = int(self._source.numbers()[index])
            entries = as_results(found, tuple(target["original"]), self._source.category_ids)
            self._found[index] = [{"image_id": number, **each} for each in entries]

    def compute(self, world: World) -> Evaluation:
        """Gathers the detections of all ranks; the main rank computes AP.

        Raises: DataError if no image was evaluated; ResourceError if the detections cannot be written.
        """
        gathered = {index: own for part in world.gather_objects(self._found) for index, own in part.items()}
        images = sorted(gathered)
        if not images:
            raise DataError("DATA.DATA_PATH", "no image could be evaluated", "check the images")
        found = [each for index in images for each in gathered[index]]
        computed = world.main_only(lambda: self._computed(found, images))
        metrics = {f"{kind}_{name}": value for kind, own in computed.items() for name, value in own.figures.items()}
        heads = [f"{kind} AP {own.figures['ap']:.2f} AP50 {own.figures['ap50']:.2f}" for kind, own in computed.items()]
        return Evaluation(
            {name: value for name, value in metrics.items() if value == value},
            f"{', '.join(heads)} on {len(images):,} images",
            samples=len(images),
            tables={"per_class": self._per_class(computed), "by_size": _by_size(computed)},
            pictures={
                "precision": lambda: precision_figure({kind: own.curves for kind, own in computed.items()}),
                "worst": lambda: self._worst(computed["box"], found),
            },
        )

    def _computed(self, found: Sequence[Mapping[str, Any]], images: Sequence[int]) -> dict[str, Precision]:
        """Returns the precision of boxes and masks on the evaluated images."""
        if self._target:
            with writing(Path(self._target), "TEST.DETECTIONS") as temporary:
                temporary.write_text(json.dumps(list(found)), encoding="utf-8")
        truth = truth_of(self._source)
        read = set(self._source.numbers()[images].tolist())
        truth["images"] = [each for each in truth["images"] if each["id"] in read]
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in read]
        kinds = _KINDS if self._info.masks and not self._source.unshaped() else {"box": "bbox"}
        return {name: average_precision(truth, found, kind, SCORE) for name, kind in kinds.items()}

    def _per_class(self, computed: Mapping[str, Precision]) -> Table:
        """Returns a row per class: objects, AP and AP50 in percent, missed objects and false detections."""
        counts, errors = self._source.counts, computed["box"].errors
        rows = []
        for label, name in enumerate(self._info.class_names):
            values = [value for own in computed.values() for value in own.per_class[label]]
            sums = [sum(pair[i] for (_, own), pair in errors.items() if own == label) for i in (0, 1)]
            rows.append([name, counts[label], *("" if v != v else f"{v:.2f}" for v in values), *sums])
        head = [f"{kind}_{name}" for kind in computed for name in ("ap", "ap50")]
        return Table(["class", "objects", *head, "missed", "false"], rows)

    def _worst(self, boxes: Precision, found: Sequence[Mapping[str, Any]]) -> Sheet:
        """Returns the images with the most missed objects and false detections, as annotated and as detected."""
        errors: dict[int, list[int]] = {}
        for (number, _), (missed, false) in boxes.errors.items():
            own = errors.setdefault(number, [0, 0])
            own[0], own[1] = own[0] + missed, own[1] + false
        places = {number: i for i, number in enumerate(self._source.numbers().tolist())}
        worst = sorted(errors, key=lambda number: -sum(errors[number]))[:WORST]
        labels = {category: label for label, category in enumerate(self._source.category_ids)}
        tiles: list[tuple[Image.Image, str]] = []
        for number in worst:
            record = self._source[places[number]]
            image = decode(record.data, record.name, self._info.upright)
            names = self._info.class_names
            truth = [Drawn(each.box, each.label, names[each.label]) for each in record.target.instances]
            detected = [
                Drawn(_corners(each["bbox"]), labels[each["category_id"]], self._caption(each, labels))
                for each in found
                if each["image_id"] == number and each["score"] >= SCORE
            ]
            missed, false = errors[number]
            tiles.append((tile(image, truth), f"{Path(record.name).name}: annotated"))
            tiles.append((tile(image, detected), f"{missed} missed, {false} false"))
        return Sheet(tiles, "Worst images", f"by missed objects and false detections with a score above {SCORE}")

    def _caption(self, entry: Mapping[str, Any], labels: Mapping[int, int]) -> str:
        return f"{self._info.class_names[labels[entry['category_id']]]} {entry['score']:.2f}"


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _by_size(computed: Mapping[str, Precision]) -> Table:
    """Returns a row per size of object: objects, AP and recall in percent, missed objects and false detections."""
    names = [f"{kind}_{name}" for kind in computed for name in ("ap", "ar")]
    rows = []
    for size in SIZES:
        values = [own.figures[f"{name}_{size}"] for own in computed.values() for name in ("ap", "ar")]
        objects, *errors = computed["box"].by_size[size]
        rows.append([size, objects, *("" if value != value else f"{value:.2f}" for value in values), *errors])
    return Table(["size", "objects", *names, "missed", "false"], rows)
