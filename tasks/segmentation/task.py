"""Semantic segmentation: a Swin with UPerNet, trained by cross-entropy and evaluated by mIoU (arXiv 2103.14030)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from configs.values import AUTO
from data.loaders import EvalLoader, Pipeline
from data.pipeline.dense import DenseEval, DenseOptions, DenseTrain, collate_dense
from data.pipeline.label_maps import IGNORED, Colour
from data.sources.base import opening
from data.sources.class_tables import class_table
from data.sources.label_coding import CodingOptions
from data.sources.open import check_ranks
from data.sources.pairs import PairStore
from models.backbone import PyramidOptions, SwinBackbone
from models.heads.upernet import resize
from models.registry import build
from models.weights.load import find_weights, load_contents
from models.weights.parts import parts_to_original
from tasks.base import SHOWN, CardText, Row, Task, TaskData, upright_line
from tasks.named_classes import with_names
from tasks.segmentation.classes import SegmentationInfo, read_classes, stored_classes
from tasks.segmentation.inference import InferenceOptions, class_map
from tasks.segmentation.metrics import SegmentationEvaluator
from tasks.segmentation.model import Segmenter
from tasks.segmentation.pictures import label_image, overlay, overlay_sheet
from utils.batches import Batch, stacked
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.pictures import Pictures, restore, sheet, to_image
from utils.preprocessing import image_size
from utils.training.evaluate import evaluating
from utils.training.objective import Best

log = logging.getLogger(__name__)
ON_SHEET = 4  # images in the picture of examples
CLASSES_WITHOUT_DATA = 150  # ADE20K's, to measure throughput


class Segmentation(Task):
    """Semantic segmentation."""

    name = "segmentation"
    best = Best("miou", title="validation mIoU, %", beside=("macc", "aacc"))
    layouts = ("original", "mmdetection", "transformers")

    def __init__(self, cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> None:
        super().__init__(cfg, world, contents)
        self._inference = InferenceOptions.from_config(cfg, bool(self.contents.get("exported")))
        self._colours: tuple[Colour, ...] = ()

    @classmethod
    def best_of(cls, config: Mapping[str, Any]) -> Best | None:
        metric = config.get("TEST.BEST", AUTO)
        return cls.best if metric in (AUTO, "miou") else Best(metric, title=f"validation {metric}, %")

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        """Opens the splits; the values of their label maps are counted on the main rank, unless the weights store their
        classes and only "val" is opened."""
        data, path = self.cfg.DATA, self.cfg.DATA.DATA_PATH
        with self.world.local_main_first(), opening(path):
            store = PairStore(Path(path))
            wanted = [s for s in splits if s == splits[0] or (self.cfg.TEST.VALIDATE and store.has(s))]
            opened = {split: store.open(split) for split in wanted}
        train, val = opened.get("train"), opened.get("val")
        check_ranks(self.world, {"training": train, "validation": val})
        log.info(
            "data: %s, layout %s", " and ".join(f"{len(s):,} {n} samples" for n, s in opened.items()), store.layout
        )
        if train is None and self.contents.get("label_values"):
            info = stored_classes(self.contents, len(self.contents.get("class_names") or ()))
        else:
            options = CodingOptions(
                store.layout,
                None if data.REDUCE_ZERO_LABEL == AUTO else data.REDUCE_ZERO_LABEL,
                None if data.IGNORE_LABEL == AUTO else data.IGNORE_LABEL,
            )
            table = class_table(store.root, store.layout, data.CLASSES)
            info = self.world.main_only(lambda: read_classes(list(opened.values()), table, options))
        info = replace(info, upright=self.turns())
        log.info("EXIF orientation: %s", "applied" if info.upright else "ignored")
        return TaskData(train, val, info)

    def stored_info(self, origin: str) -> SegmentationInfo:
        classes = len(self.contents.get("class_names") or ())
        if not self.contents.get("exported"):
            found = find_weights(self.contents, origin, Segmenter.encoder_name)
            classifier = parts_to_original(found.others, found.layout).get("decode_head.conv_seg.weight")
            if classifier is None:
                raise CheckpointError(origin, "has no segmentation head", "use a trained segmenter")
            classes = len(classifier)
        return replace(stored_classes(self.contents, classes), upright=self.turns())

    def pipeline(self, info: SegmentationInfo) -> Pipeline:  # type: ignore[override]
        aug, test = self.cfg.AUG, self.cfg.TEST
        crop = image_size(self.cfg.DATA.IMG_SIZE)
        base = (aug.BASE_SIZE[0], aug.BASE_SIZE[1])
        options = DenseOptions(
            base=base,
            ratios=(aug.RATIO_RANGE[0], aug.RATIO_RANGE[1]),
            crop=crop,
            max_share=aug.MAX_CLASS_SHARE,
            flip=aug.HFLIP,
            photometric=aug.PHOTOMETRIC,
            scales=tuple(test.SCALES),
            channels=self.options.in_chans,
            upright=info.upright,
        )
        short = min(image_size(test.IMG_SIZE))
        evaluated = replace(options, base=(base[0] * short // base[1], short)) if short else options
        return Pipeline(
            train=None if self.cfg.EVAL_MODE else DenseTrain(options, info.coding),
            val=DenseEval(evaluated, info.coding),
            preprocessing=self.preprocessing,
            collate=collate_dense,
            erase_mode="const",
            sample_bytes=(self.options.in_chans + 1) * crop[0] * crop[1],
        )

    def new_model(self, info: SegmentationInfo | None) -> nn.Module:  # type: ignore[override]
        if not isinstance(self.options, PyramidOptions):
            raise ConfigError("MODEL.TYPE", "segmentation needs a Swin", "set it to swin or swinv2")
        backbone = build(replace(self.options, dense=True, num_classes=0))
        assert isinstance(backbone, SwinBackbone)
        head = self.cfg.MODEL.UPERNET
        classes = CLASSES_WITHOUT_DATA if info is None else len(info.class_names)
        return Segmenter(backbone, classes, head.CHANNELS, head.AUXILIARY_CHANNELS, head.DROPOUT)

    def build_model(self, info: SegmentationInfo | None) -> nn.Module:  # type: ignore[override]
        """Builds the model; on several GPUs with torch's SyncBatchNorm, which is faster there than ours."""
        self._colours = () if info is None else info.colours
        model = super().build_model(info)
        several = self.world.size > 1 and self.world.device.type == "cuda"
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if several else model

    def load(
        self,
        model: nn.Module,
        contents: Mapping[str, Any],
        origin: str,
        info: SegmentationInfo | None = None,  # type: ignore[override]
    ) -> str:
        """Loads weights; with `info`, a classifier gives the backbone, and classifiers for other classes are new."""
        head_for = None if info is None else info.class_names
        return load_contents(model, with_names(contents), origin, head_for, self.cfg.MODEL.TABLE_INTERPOLATION)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy of the decode head plus the weighted one of the auxiliary head."""
        with self.precision.autocast():
            decoded, auxiliary = model(stacked(batch))
        own, other = (self._cross_entropy(logits, batch.targets) for logits in (decoded, auxiliary))
        return {"loss": own + self.cfg.LOSS.AUXILIARY * other, "decode": own.detach(), "auxiliary": other.detach()}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean over the pixels, in float32. Args: logits (B, classes, h, w); labels uint8 (B, H, W)."""
        logits = resize(logits.float(), (labels.shape[1], labels.shape[2]))
        total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
        if self.cfg.LOSS.AVERAGE == "all":
            return total / labels.numel()
        return total / (labels != IGNORED).sum().clamp(min=1)

    def forward(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Returns the class of every pixel of each image, uint8 (H, W), at the size of the stored image."""
        count = len(batch.samples)
        views = len(batch.images) // count
        targets = batch.targets or [{"size": image.shape[1:]} for image in batch.images]

        def logits_of(images: Tensor) -> Tensor:
            with self.precision.autocast():
                return model(images)

        maps = []
        for i, target in enumerate(targets[:count]):
            own = list(batch.images[i * views : (i + 1) * views])
            maps.append(class_map(logits_of, own, tuple(target["size"]), self._inference))
        return maps

    def evaluator(self, val: EvalLoader, info: SegmentationInfo) -> SegmentationEvaluator:  # type: ignore[override]
        return SegmentationEvaluator(val, info.class_names, info.colours, self.preprocessing)

    def epoch_pictures(self, model: nn.Module, shown: EvalLoader) -> Pictures:
        """Returns a picture of evenly spaced samples: image, labels, prediction."""
        samples, count = len(shown.source), min(ON_SHEET, len(shown.source))
        batch = shown.batch([i * samples // count for i in range(count)])
        if batch is None:
            return {}
        with torch.no_grad(), evaluating(model):
            predicted = self.forward(model, batch)
        views = len(batch.images) // len(predicted)
        pixels = [restore(image[None], self.preprocessing)[0].cpu() for image in batch.images[::views]]
        names = [shown.source.name(index) for index in batch.samples]
        labels = [target["labels"].cpu() for target in batch.targets]
        drawn = list(zip(pixels, labels, [each.cpu() for each in predicted], names, strict=True))
        return {"examples": lambda: overlay_sheet(drawn, self._colours)}

    def show_batch(self, batch: Batch, info: SegmentationInfo, limit: int = SHOWN) -> Image.Image:  # type: ignore[override]
        pixels = restore(stacked(batch)[:limit], self.preprocessing)
        tiles = [
            (overlay(to_image(image), labels.numpy(), info.colours), "")
            for image, labels in zip(pixels, batch.targets[:limit].cpu(), strict=True)
        ]
        return sheet(tiles, "Training images", "as the model sees them, with their labels in colour")

    def predictions(self, outputs: Sequence[Tensor], batch: Batch, info: SegmentationInfo, limit: int) -> Iterator[Row]:  # type: ignore[override]
        """Yields the classes with the most pixels of each image, in percent; the picture is an overlay."""
        views = len(batch.images) // len(outputs)
        for i, (index, labels) in enumerate(zip(batch.samples, outputs, strict=True)):
            counts = torch.bincount(labels.flatten().cpu().long(), minlength=len(info.class_names))
            values, classes = (100 * counts / labels.numel()).topk(min(limit, len(info.class_names)))
            pairs = zip(values.tolist(), classes.tolist(), strict=True)
            found = [(info.class_names[label], round(value, 2)) for value, label in pairs if value]
            cells: dict[str, Any] = {}
            for place, (name, share) in enumerate(found, 1):
                cells |= {f"class_{place}": name, f"percent_{place}": share}
            record = {"classes": [name for name, _ in found], "percent": [share for _, share in found]}
            image, array = batch.images[i * views], labels.cpu().numpy()
            pixels = partial(restore, image[None], self.preprocessing)
            yield Row(
                index,
                cells,
                record,
                picture=lambda pixels=pixels, array=array: overlay(to_image(pixels()[0]), array, info.colours),
                label_map=partial(label_image, array, info.colours),
            )

    def card(self, info: SegmentationInfo) -> CardText:  # type: ignore[override]
        return CardText("image-segmentation", [upright_line(info), self._prepared()])

    def describe(self) -> str:
        return f"images {self._prepared()}"

    def _prepared(self) -> str:
        mode = "whole" if self._inference.window is None else "by a sliding window"
        return f"resized to {self.cfg.AUG.BASE_SIZE} pixels at most, evaluated {mode}; {self.preprocessing.normalised}"


TASK = Segmentation
