"""Image classification: smoothed cross-entropy, optionally with a teacher, evaluated by top-1 accuracy."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from configs.values import AUTO
from data.loaders import EvalLoader, Pipeline, keep
from data.sources.open import SourceOptions
from models.registry import build, default_classes, preprocessing_of
from models.weights.class_maps import known_classes, real_labels
from models.weights.load import find_weights, load_contents
from tasks.base import SHOWN, CardText, Row, Task, TaskData, upright_line
from tasks.classification.class_names import in_words
from tasks.classification.distillation import DistillationOptions, distilled
from tasks.classification.expert_load import RoutingMeter, load_picture
from tasks.classification.imbalance import class_order, sample_weights, warn_of_imbalance
from tasks.classification.keys import LOWER_IS_BETTER, NEEDS_ALL
from tasks.classification.labels import (
    ClassInfo,
    chosen_classes,
    class_names_of,
    division_of,
    open_train,
    open_val,
)
from tasks.classification.losses import ClassificationLoss, LossOptions
from tasks.classification.metrics import ClassificationEvaluator
from tasks.classification.mixing import Mixing, MixingOptions, build_mixing
from tasks.classification.pictures import batch_sheet
from tasks.classification.teacher import Teacher, open_teacher
from utils.batches import Batch, stacked
from utils.distributed.world import World
from utils.errors import CheckpointError
from utils.pictures import Pictures
from utils.preprocessing import image_size
from utils.training.objective import Best

log = logging.getLogger(__name__)
UNKNOWN = "unknown"
EXAMPLE = """\
from scripts.predictor import Predictor

predict = Predictor("{model}")
for name, probability in predict("photo.jpg", topk=3):
    print(name, f"{probability:.1%}")"""


class Outputs(NamedTuple):
    """`logits` (B, classes); `routing`: statistics of a mixture of experts, else empty."""

    logits: Tensor
    routing: dict[str, Tensor]


class Classification(Task):
    """Image classification, as in the Swin papers."""

    name = "classification"
    best = Best("top1", title="validation accuracy, %", beside=("topk", "balanced_accuracy", "macro_f1"))
    remedies = (  # for imbalanced classes
        "DATA.SAMPLER, LOSS.CLASS_WEIGHTS, LOSS.LOGIT_ADJUSTMENT and, to select the best checkpoint, TEST.BEST macro_f1"
    )
    several: ClassVar[bool] = False  # whether images have any number of labels
    mixing: type[Mixing] = Mixing

    def __init__(self, cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> None:
        super().__init__(cfg, world, contents)
        self._sample_weights: Tensor | None = None
        self._loss = self.new_loss(None)
        self._distillation = DistillationOptions.from_config(cfg)
        self._teacher: Teacher | None = None
        self._meter = RoutingMeter()

    @classmethod
    def best_of(cls, config: Mapping[str, Any]) -> Best | None:
        metric = config.get("TEST.BEST", AUTO)
        if cls.best is None or metric in (AUTO, cls.best.metric):
            return cls.best
        return Best(
            metric, higher_is_better=metric not in LOWER_IS_BETTER, title=f"validation {metric.replace('_', ' ')}"
        )

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        """Opens the splits; without "train", the class map comes from the weights if they store or imply one."""
        options = SourceOptions.from_config(self.cfg, self.several)
        if "train" not in splits:
            held_out = dict.fromkeys(self.contents.get("held_out") or (), "val")
            alone = open_val(options, self.world, *known_classes(self.contents), known=held_out)
            names = tuple(alone.class_names)
            return TaskData(None, alone, ClassInfo(upright=self.turns(names), class_names=names))
        options = replace(options, validate=options.validate and "val" in splits)
        opened = open_train(options, self.world, division_of(self.cfg, self.world))
        train, names = opened.train, opened.train.class_names
        info = ClassInfo.of(train, opened.splits, upright=self.turns(names))
        log.info("EXIF orientation: %s", "applied" if info.upright else "ignored")
        self._sample_weights = sample_weights(train)
        if self.cfg.DATA.SAMPLER == "uniform" and self._sample_weights is None and not self.balances:
            warn_of_imbalance(names, info.counts, self.remedies)
        return TaskData(train, opened.val, info)

    def stored_info(self, origin: str) -> ClassInfo:
        stored = self.contents.get("class_names") or ()
        classes = 0
        if self.cfg.MODEL.TYPE != "timm" and not self.contents.get("exported"):
            classes = find_weights(self.contents, origin).classes
            if not classes:
                raise CheckpointError(origin, "has no head, so it cannot classify", "use a trained classifier")
        names = class_names_of(self.contents, classes or len(stored) or default_classes(self.cfg))
        return ClassInfo(upright=self.turns(), class_names=names)

    def pipeline(self, info: ClassInfo) -> Pipeline:  # type: ignore[override]
        cfg = self.cfg
        expected = preprocessing_of(self.options).interpolation
        if expected not in ("", cfg.DATA.INTERPOLATION):
            given = cfg.DATA.INTERPOLATION
            log.warning("the published weights expect %s resizing, but DATA.INTERPOLATION is %s", expected, given)
        size = image_size(cfg.DATA.IMG_SIZE)
        mixing = build_mixing(len(info.class_names), MixingOptions.from_config(cfg), size, self.mixing)
        order = partial(class_order, rule=cfg.DATA.SAMPLER)
        return replace(self.image_pipeline(mixing or keep, info), order=order)

    def new_model(self, info: ClassInfo | None) -> nn.Module:  # type: ignore[override]
        return build(self.options, default_classes(self.cfg) if info is None else len(info.class_names))

    def build_model(self, info: ClassInfo | None) -> nn.Module:  # type: ignore[override]
        """Builds the model and, for a training run, its teacher."""
        model = super().build_model(info)
        if info is not None and not self.cfg.EVAL_MODE:
            self._loss = self.new_loss(info)
        if info is not None and self._distillation.kind != "none" and not self.cfg.EVAL_MODE:
            world = self.world

            def new_task(cfg: CfgNode, contents: Mapping[str, Any]) -> Classification:
                return Classification(cfg, world, contents)

            self._teacher = open_teacher(self.cfg, new_task, self.preprocessing, world, info.class_names)
        return model

    @property
    def balances(self) -> bool:
        """Whether the loss weights rare classes more."""
        return LossOptions.from_config(self.cfg).balances

    def new_loss(self, info: ClassInfo | None) -> Callable[[Tensor, Tensor, Sequence[int]], Tensor]:
        """Returns the mean loss of a batch, given logits (B, classes), targets and indices in the training set.

        Args: info: of the training data, None outside training.
        """
        if info is None:
            return ClassificationLoss(LossOptions(smoothing=self.cfg.MODEL.LABEL_SMOOTHING))
        options, device = LossOptions.from_config(self.cfg), self.world.device
        return ClassificationLoss(options, info.class_names, info.counts, self._sample_weights, device)

    def load(
        self,
        model: nn.Module,
        contents: Mapping[str, Any],
        origin: str,
        info: ClassInfo | None = None,  # type: ignore[override]
    ) -> str:
        """Loads weights; with `info`, a head for other classes is re-initialised."""
        head_for = None if info is None else info.class_names
        return load_contents(model, contents, origin, head_for, self.cfg.MODEL.TABLE_INTERPOLATION)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean cross-entropy in float32 or, with a teacher, the weighted "base" and "distillation" losses;
        with experts also the "balance" loss, which is added, the fraction of tokens "dropped", and the load of the
        "busiest" expert, 1 if even. The teacher sees mixed images, too."""
        with self.precision.autocast():
            # the teacher first, before the student's activations take memory
            taught = None if self._teacher is None else self._teacher(stacked(batch))
            logits = model(batch.images)
        loss = self._loss(logits, batch.targets, batch.samples)
        losses = {"loss": loss} if taught is None else distilled(loss, logits, taught, self._distillation)
        routing = self._meter.add(routing_statistics(model))
        if not routing:
            return losses
        balance = getattr(model, "module", model).balance_loss()  # type: ignore[operator]
        return {**losses, "loss": losses["loss"] + balance, "balance": balance, **routing}

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        with self.precision.autocast():
            return Outputs(model(batch.images), routing_statistics(model))

    def evaluator(self, val: EvalLoader, info: ClassInfo) -> ClassificationEvaluator:  # type: ignore[override]
        """Returns an evaluator; TEST.CLASSES and TEST.REAL apply only to --eval."""
        test, source = self.cfg.TEST, val.source
        if not self.cfg.EVAL_MODE:
            return ClassificationEvaluator(val, info.class_names, keeps_all=test.BEST in NEEDS_ALL)
        real = real_labels(info.class_names) if test.REAL else None
        chosen = chosen_classes(test.CLASSES, source)  # type: ignore[arg-type]
        return ClassificationEvaluator(val, info.class_names, chosen, real, test.INTERVALS, bool(test.PROBABILITIES))

    def epoch_pictures(self, model: nn.Module, shown: EvalLoader) -> Pictures:
        """Returns the expert load since the last evaluation."""
        routing = self._meter.result(self.world)
        return {} if routing is None else {"expert_load": lambda: load_picture(routing)}

    def show_batch(self, batch: Batch, info: ClassInfo, limit: int = SHOWN) -> Image.Image:  # type: ignore[override]
        return batch_sheet(batch, self.preprocessing, info.class_names, limit, self.cfg.MODEL.LABEL_SMOOTHING)

    def predictions(self, outputs: Outputs, batch: Batch, info: ClassInfo, limit: int) -> Iterator[Row]:  # type: ignore[override]
        """Yields the most probable classes of each image, with their calibrated probabilities and, given
        TEST.THRESHOLD, the answer: "unknown" below it."""
        threshold = self.cfg.TEST.THRESHOLD
        names = in_words(info.class_names)
        temperature = (self.contents.get("calibration") or {}).get("temperature", 1.0)
        probabilities, classes = (outputs.logits.float() / temperature).softmax(1).topk(min(limit, len(names)))
        for index, own, labels in zip(batch.samples, probabilities.tolist(), classes.tolist(), strict=True):
            words = [names[label] for label in labels]
            if math.isnan(own[0]):  # NaN logits: no class is more probable than another
                words, own = [""] * len(words), [None] * len(own)
            cells: dict[str, Any] = {}
            if threshold:
                cells["answer"] = words[0] if (own[0] or 0) >= threshold else UNKNOWN
            for place, (word, probability) in enumerate(zip(words, own, strict=True), 1):
                cells |= {f"class_{place}": word, f"probability_{place}": probability}
            record = {"classes": words, "probabilities": own}
            yield Row(index, cells, {"answer": cells["answer"], **record} if threshold else record)

    def card(self, info: ClassInfo) -> CardText:  # type: ignore[override]
        cfg, own = self.cfg, self.preprocessing
        size = image_size(cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE)
        sides, resized = ("x".join(map(str, each)) for each in (size, [int(side / own.crop_pct) for side in size]))
        cut = f"resized to cover {resized} pixels, of which the centre {sides} is kept"
        images = [
            upright_line(info),
            cut if cfg.TEST.CROP else f"resized to {sides} pixels (squashed, no crop)",
            str(own).replace("pixels normalised", "normalised"),
        ]
        return CardText("image-classification", images, EXAMPLE)

    def describe(self) -> str:
        crop = f"crop {self.preprocessing.crop_pct:.4g}" if self.cfg.TEST.CROP else "squashed, no crop"
        return f"{self.preprocessing}, {crop}"


def routing_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Returns the routing of the last forward pass of a mixture of experts; empty for other models."""
    bare: Any = getattr(model, "module", model)  # unwraps DistributedDataParallel
    return bare.routing_statistics() if hasattr(bare, "routing_statistics") else {}


TASK = Classification
