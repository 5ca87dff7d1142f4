"""Object detection and instance segmentation: Mask R-CNN and Cascade Mask R-CNN on a Swin (arXiv 2103.14030)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from configs.values import AUTO
from data.loaders import EvalLoader, Pipeline
from data.pipeline.boxed import DIVISOR, BoxedEval, BoxedOptions, BoxedTrain, collate_boxed
from data.pipeline.samplers import Groups, Order, grouped_order
from data.sources.base import opening
from data.sources.object_store import ObjectSource, ObjectStore, Trained
from data.sources.open import check_ranks
from models.backbone import PyramidOptions, SwinBackbone
from models.detection.box_head import DetectionOptions
from models.detection.detector import DETECTORS, Detector
from models.detection.instances import Detections, Frame, Objects
from models.detection.mask_head import paste
from models.registry import build
from models.weights.load import find_weights, load_contents
from tasks.base import SHOWN, CardText, Row, Task, TaskData, upright_line
from tasks.detection.average_precision import check_installed
from tasks.detection.classes import DetectionInfo, stored_classes
from tasks.detection.export import DetectorExport
from tasks.detection.metrics import SCORE, DetectionEvaluator
from tasks.detection.pictures import Drawn, draw_objects, tile
from tasks.detection.results import as_results
from tasks.export import Export
from tasks.named_classes import names_in, with_names
from utils.batches import Batch, stacked
from utils.errors import CheckpointError, ConfigError, DataError, count, listing
from utils.pictures import Pictures, restore, sheet, to_image
from utils.preprocessing import Size
from utils.training.evaluate import evaluating
from utils.training.objective import Best

log = logging.getLogger(__name__)
ON_SHEET = 4  # images in the picture of examples
MASK_HEAD = "roi_head.mask_head."  # begins the names of its weights
CLASSES_WITHOUT_DATA = 80  # COCO's, to measure throughput


class Detection(Task):
    """Object detection, with masks if the data have some."""

    name = "detection"
    best = Best("box_ap", title="validation box AP, %", beside=("box_ap50", "mask_ap"))
    layouts = ("original", "mmdetection")
    entries = 100

    @classmethod
    def best_of(cls, config: Mapping[str, Any]) -> Best | None:
        metric = config.get("TEST.BEST", AUTO)
        return cls.best if metric in (AUTO, "box_ap") else Best(metric, title=f"validation {metric}, %")

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        """Opens the splits; classes are matched by name, to the classes of the weights if only "val" is opened."""
        data, path = self.cfg.DATA, self.cfg.DATA.DATA_PATH
        with self.world.local_main_first(), opening(path):
            store = ObjectStore(Path(path))
            rule = Trained(data.SMALLEST_SIDE, data.KEEP_EMPTY)
            train = store.open("train", rule=rule) if "train" in splits else None
            names = names_in(self.contents) if train is None else train.class_names
            wanted = "val" in splits and (train is None or (self.cfg.TEST.VALIDATE and store.has("val")))
            val = store.open("val", names or None) if wanted else None
        opened = {"training": train, "validation": val}
        check_ranks(self.world, opened)
        for split, source in opened.items():
            if source is not None:
                log.info("%s data: %s images, layout %s: %s", split, f"{len(source):,}", store.layout, source.origin)
                for line in source.omitted:
                    log.warning("left out of the %s data: %s", split, line)
        first = train if train is not None else val
        assert first is not None
        own = [f"{name} {number:,}" for name, number in zip(first.class_names, first.counts, strict=True)]
        log.info("objects by class: %s", listing(own, 20))
        masks = self._masks(first)
        if val is not None:
            self._check_evaluation(val, masks)
        info = DetectionInfo(first.fingerprint(), first.class_names, first.category_ids, masks, upright=self.turns())
        log.info("EXIF orientation: %s", "applied" if info.upright else "ignored")
        return TaskData(train, val, info)

    def _masks(self, source: ObjectSource) -> bool:
        """Returns whether masks are predicted: as configured, else as in the weights to evaluate or the data.

        Raises: ConfigError if masks are to be learned and objects lack them.
        """
        asked, total, unshaped = self.cfg.MODEL.DETECTOR.MASKS, sum(source.counts), source.unshaped()
        own = self.contents.get("model") if self.cfg.EVAL_MODE else None
        if asked == AUTO and isinstance(own, Mapping):
            return any(name.startswith(MASK_HEAD) for name in own)
        if asked is False or (asked == AUTO and unshaped == total):
            return False
        if unshaped and not self.cfg.EVAL_MODE:
            problem = f"{unshaped:,} of {count(total, 'training object')} have no mask"
            raise ConfigError("MODEL.DETECTOR.MASKS", problem, "set it to false, or add masks")
        return True

    def _check_evaluation(self, val: ObjectSource, masks: bool) -> None:
        """Raises: ConfigError, DataError if the validation data cannot give the metric that is asked for."""
        check_installed()
        if not sum(val.counts):
            remedy = "annotate validation images, or set TEST.VALIDATE to false"
            raise DataError(str(val.origin), "has no objects to find", remedy)
        if masks and val.unshaped():
            log.warning("mask AP is not computed: %s have no mask", count(val.unshaped(), "validation object"))
        if self.best is not None and self.best.metric.startswith("mask") and (not masks or val.unshaped()):
            raise ConfigError("TEST.BEST", f"{self.best.metric}, but there are no masks to compare", "set it to box_ap")

    def stored_info(self, origin: str) -> DetectionInfo:
        if self.contents.get("exported"):
            classes, masks = len(names_in(self.contents)), "masks" in self.contents.get("outputs", ())
            return replace(stored_classes(self.contents, classes, masks), upright=self.turns())
        others = find_weights(self.contents, origin, Detector.encoder_name).others
        classifier = next((value for name, value in others.items() if name.endswith("fc_cls.weight")), None)
        if classifier is None:
            raise CheckpointError(origin, "has no detection heads", "use a trained detector")
        masks = any(name.startswith(MASK_HEAD) for name in others)
        return replace(stored_classes(self.contents, len(classifier) - 1, masks), upright=self.turns())

    def pipeline(self, info: DetectionInfo) -> Pipeline:  # type: ignore[override]
        aug, channels = self.cfg.AUG, self.options.in_chans
        options = BoxedOptions(
            short=tuple(aug.SHORT_SIDES),
            long=aug.LONG_SIDE,
            test=self._test_sides,
            crop_rate=aug.CROP_RATE,
            crop_short=tuple(aug.CROP_SHORT_SIDES),
            crop=(aug.CROP_RANGE[0], aug.CROP_RANGE[1]),
            flip=aug.HFLIP,
            masks=info.masks,
            channels=channels,
            upright=info.upright,
        )
        return Pipeline(
            train=None if self.cfg.EVAL_MODE else BoxedTrain(options),
            val=BoxedEval(options),
            preprocessing=self.preprocessing,
            collate=collate_boxed,
            erase_mode="const",
            sample_bytes=(channels + 8 * info.masks) * max(aug.SHORT_SIDES) * aug.LONG_SIDE,
            order=self._order,
        )

    def _order(self, source: ObjectSource) -> Order:
        sizes = torch.from_numpy(source.sizes())
        groups = Groups((sizes[:, 0] > sizes[:, 1]).long(), self.cfg.DATA.ASPECT_UNIT)
        return lambda seed: grouped_order(groups, seed)

    def new_model(self, info: DetectionInfo | None) -> nn.Module:  # type: ignore[override]
        if not isinstance(self.options, PyramidOptions):
            raise ConfigError("MODEL.TYPE", "detection needs a Swin", "set it to swin or swinv2")
        backbone = build(replace(self.options, dense=True, num_classes=0))
        assert isinstance(backbone, SwinBackbone)
        if len(backbone.feature_info) != 4:
            raise ConfigError("MODEL.SWIN.DEPTHS", "detection needs four stages", "list four depths")
        if self.options.patch_size != 4:
            key = f"MODEL.{self.options.SECTION}.PATCH_SIZE"
            raise ConfigError(key, f"{self.options.patch_size}, but detection needs maps of stride 4", "set it to 4")
        own, test = self.cfg.MODEL.DETECTOR, self.cfg.TEST
        options, selected = DETECTORS[own.NAME], DetectionOptions(test.SCORE, test.NMS, test.MAX_DETECTIONS)
        roi = replace(options.roi, detection=selected, head=replace(options.roi.head, width=own.WIDTH))
        masks = own.MASKS is not False if info is None else info.masks
        classes = CLASSES_WITHOUT_DATA if info is None else len(info.class_names)
        return Detector(backbone, classes, replace(options, roi=roi, masks=masks, channels=own.CHANNELS))

    def load(
        self,
        model: nn.Module,
        contents: Mapping[str, Any],
        origin: str,
        info: DetectionInfo | None = None,  # type: ignore[override]
    ) -> str:
        """Loads weights; with `info`, a classifier gives the backbone, and layers for other classes are new."""
        head_for = None if info is None else info.class_names
        return load_contents(model, with_names(contents), origin, head_for, self.cfg.MODEL.TABLE_INTERPOLATION)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the sum of the losses of proposals and heads, and each of them."""
        frames = [Frame(tuple(each["size"]), tuple(each["size"])) for each in batch.targets]
        objects = [Objects(each["boxes"], each["labels"], each.get("masks")) for each in batch.targets]
        with self.precision.autocast():
            losses: dict[str, Tensor] = model(stacked(batch), frames, objects)
        total = torch.stack(list(losses.values())).sum()
        return {"loss": total, **{name: value.detach() for name, value in losses.items()}}

    def forward(self, model: nn.Module, batch: Batch) -> list[Detections]:
        """Returns the detections of each image; images are padded and evaluated one at a time, as released."""
        found = []
        for i, image in enumerate(batch.images):
            size = image.shape[1], image.shape[2]
            original = tuple(batch.targets[i]["original"]) if batch.targets else size
            right, below = (-side % DIVISOR for side in size[::-1])
            if self.contents.get("exported"):
                found.append(self._run_exported(model, image, Frame(size, original)))
                continue
            padded = F.pad(image, (0, right, 0, below))
            with self.precision.autocast():
                found += model(padded[None], [Frame(size, original)])
        return found

    def _run_exported(self, model: nn.Module, image: Tensor, frame: Frame) -> Detections:
        (height, width), side = frame.size, self._square
        outputs = model(F.pad(image, (0, side - width, 0, side - height))[None], torch.tensor(frame.size))
        found = Detections(*outputs)
        found = found.first(int((found.scores > self.cfg.TEST.SCORE).sum()))
        return found._replace(boxes=frame.to_original(found.boxes))

    def evaluator(self, val: EvalLoader, info: DetectionInfo) -> DetectionEvaluator:  # type: ignore[override]
        return DetectionEvaluator(val, info, self.cfg.TEST.DETECTIONS if self.cfg.EVAL_MODE else "")

    def epoch_pictures(self, model: nn.Module, shown: EvalLoader) -> Pictures:
        """Returns a picture of evenly spaced samples: annotated, and detected."""
        source = shown.source
        assert isinstance(source, ObjectSource)
        samples, count = len(source), min(ON_SHEET, len(source))
        batch = shown.batch([i * samples // count for i in range(count)])
        if batch is None:
            return {}
        with torch.no_grad(), evaluating(model):
            found = self.forward(model, batch)
        tiles = []
        for index, image, target, own in zip(batch.samples, batch.images, batch.targets, found, strict=True):
            pixels = to_image(restore(image[None], self.preprocessing)[0])
            scale = pixels.height / target["original"][0]
            truth = [
                Drawn([side * scale for side in each.box], each.label, source.class_names[each.label])
                for each in source.image(index).instances
            ]
            tiles.append((tile(pixels, truth), Path(source.name(index)).name))
            tiles.append(
                (
                    tile(
                        pixels,
                        _drawn(own.first(int((own.scores >= SCORE).sum())), pixels.size, scale, source.class_names),
                    ),
                    "detected",
                )
            )
        return {"examples": lambda: sheet(tiles, "Detections", "annotated, and detected", columns=2)}

    def show_batch(self, batch: Batch, info: DetectionInfo, limit: int = SHOWN) -> Image.Image:  # type: ignore[override]
        images = restore(stacked(batch)[:limit], self.preprocessing)
        tiles = []
        for pixels, target in zip(images, batch.targets[:limit], strict=True):
            masks = target.get("masks")
            height, width = target["size"]
            drawn = [
                Drawn(box, label, info.class_names[label], None if masks is None else masks[i].cpu().numpy())
                for i, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))
            ]
            tiles.append((tile(to_image(pixels[:, :height, :width]), drawn), ""))
        return sheet(tiles, "Training images", "as the model sees them, with their objects")

    def predictions(
        self,
        outputs: Sequence[Detections],
        batch: Batch,
        info: DetectionInfo,  # type: ignore[override]
        limit: int,
    ) -> Iterator[Row]:
        """Yields the objects of each image, highest score first: a line of the table for each."""
        least = self.cfg.TEST.THRESHOLD or SCORE
        for index, image, target, found in zip(batch.samples, batch.images, batch.targets, outputs, strict=True):
            own = found.first(min(limit, int((found.scores >= least).sum())))
            size: Size = tuple(target["original"])
            entries = as_results(own, size, info.category_ids)
            names = [info.class_names[label] for label in own.labels.tolist()]
            boxes = own.boxes.tolist()
            lines: list[dict[str, Any]] = [
                {"class": name, "score": each["score"], **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
                for name, each, box in zip(names, entries, boxes, strict=True)
            ]
            objects = [{"class": name, **each} for name, each in zip(names, entries, strict=True)]

            def picture(image: Tensor = image, own: Detections = own, height: int = size[0]) -> Image.Image:
                pixels = to_image(restore(image[None], self.preprocessing)[0])
                return draw_objects(pixels, _drawn(own, pixels.size, pixels.height / height, info.class_names))

            first, *others = lines or [dict.fromkeys(("class", "score", "x1", "y1", "x2", "y2"), "")]
            yield Row(index, first, {"objects": objects}, picture, others=others)

    def card(self, info: DetectionInfo) -> CardText:  # type: ignore[override]
        return CardText("object-detection", [upright_line(info), self._prepared()])

    @property
    def _test_sides(self) -> Size:
        """Limits of the short and the long side of an image in evaluation: TEST.IMG_SIZE, or the former alone, to which
        the latter is in proportion."""
        short, long = self.cfg.TEST.SHORT_SIDE, self.cfg.AUG.LONG_SIDE
        asked = self.cfg.TEST.IMG_SIZE
        if not isinstance(asked, int):
            short, long = min(asked), max(asked)
        elif asked:
            short, long = asked, round(long * asked / short)
        return min(short, long), long

    @property
    def input_size(self) -> Size:
        """Height and width of a wide image, padded."""
        short, long = (-(-side // DIVISOR) * DIVISOR for side in self._test_sides)
        return short, long

    @property
    def _square(self) -> int:
        """The side of an exported model's input, which any image fits in."""
        return max(self.input_size)

    def export(self, model: nn.Module, batch: int) -> Export:
        if batch > 1:
            raise ConfigError("--batch", f"{batch}, but a detector is exported for single images", "leave it out")
        assert isinstance(model, Detector)
        return DetectorExport(model, (self.options.in_chans, self._square, self._square))

    def describe(self) -> str:
        return f"images {self._prepared()}"

    def _prepared(self) -> str:
        short, long = self._test_sides
        sides = f"a short side of {short} and a long side of {long} pixels at most"
        return f"resized to {sides}; {self.preprocessing.normalised}"


def _drawn(found: Detections, size: tuple[int, int], scale: float, names: Sequence[str]) -> list[Drawn]:
    """Returns detections for a picture. Args: size: width and height of the picture; scale: of its pixels."""
    drawn = []
    for i, (score, label) in enumerate(zip(found.scores.tolist(), found.labels.tolist(), strict=True)):
        box = found.boxes[i] * scale
        mask = None if found.masks is None else np.asarray(paste(found.masks[i], box, size[::-1]).cpu())
        drawn.append(Drawn(box.tolist(), label, f"{names[label]} {score:.2f}", mask))
    return drawn


TASK = Detection
