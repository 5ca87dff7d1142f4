"""Images with any number of labels: binary cross-entropy or asymmetric loss, evaluated by mAP and F1."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from yacs.config import CfgNode

from data.loaders import EvalLoader, Pipeline
from tasks.base import SHOWN, Row, TaskData
from tasks.classification.class_names import in_words
from tasks.classification.labels import ClassInfo
from tasks.classification.mixing import Mixing
from tasks.classification.pictures import batch_sheet
from tasks.classification.task import Classification, Outputs
from tasks.multilabel.labels import SetMixing, StackSets
from tasks.multilabel.losses import LossOptions, MultiLabelLoss
from tasks.multilabel.metrics import MultiLabelEvaluator
from utils.batches import Batch
from utils.distributed.world import World
from utils.training.objective import Best


class MultiLabel(Classification):
    """Multi-label classification."""

    name = "multilabel"
    best = Best("map", title="validation, %", beside=("f1_macro", "f1_micro"))
    remedies = (
        "DATA.SAMPLER, LOSS.POSITIVE_WEIGHTS, LOSS.MULTILABEL asymmetric and, to select the best checkpoint,"
        " TEST.BEST f1_macro"
    )
    several = True
    mixing: type[Mixing] = SetMixing

    def __init__(self, cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> None:
        self._train_size = 0
        super().__init__(cfg, world, contents)

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        data = super().open_data(splits)
        self._train_size = data.train_size
        return data

    def pipeline(self, info: ClassInfo) -> Pipeline:  # type: ignore[override]
        return replace(super().pipeline(info), collate=StackSets(len(info.class_names)))

    @property
    def balances(self) -> bool:
        return LossOptions.from_config(self.cfg).balances

    def new_loss(self, info: ClassInfo | None) -> MultiLabelLoss:
        options, counts = LossOptions.from_config(self.cfg), () if info is None else info.counts
        return MultiLabelLoss(options, counts, self._train_size, self._sample_weights, self.world.device)

    def show_batch(self, batch: Batch, info: ClassInfo, limit: int = SHOWN) -> Image.Image:  # type: ignore[override]
        return batch_sheet(batch, self.preprocessing, info.class_names, limit, smoothing=0.0)  # sets are not smoothed

    def evaluator(self, val: EvalLoader, info: ClassInfo) -> MultiLabelEvaluator:  # type: ignore[override]
        stored = self.contents.get("thresholds") if self.cfg.EVAL_MODE else None
        return MultiLabelEvaluator(val, info.class_names, stored)

    def predictions(self, outputs: Outputs, batch: Batch, info: ClassInfo, limit: int) -> Iterator[Row]:  # type: ignore[override]
        """Yields the labels of each image and the most probable classes. A label is predicted from TEST.THRESHOLD on,
        else from the stored threshold of its class, else from 0.5."""
        names = in_words(info.class_names)
        stored = self.contents.get("thresholds") or ()
        given = self.cfg.TEST.THRESHOLD
        fits = len(stored) == len(names) and not given
        thresholds = torch.tensor(stored if fits else [given or 0.5] * len(names))
        probabilities = outputs.logits.float().sigmoid().cpu()
        for index, own in zip(batch.samples, probabilities, strict=True):
            chosen = [names[label] for label in (own >= thresholds).nonzero().flatten().tolist()]
            values, labels = own.topk(min(limit, len(names)))
            words = [names[label] for label in labels.tolist()]
            cells: dict[str, Any] = {"labels": "; ".join(chosen)}
            for place, (word, probability) in enumerate(zip(words, values.tolist(), strict=True), 1):
                cells |= {f"class_{place}": word, f"probability_{place}": probability}
            yield Row(index, cells, {"labels": chosen, "classes": words, "probabilities": values.tolist()})


TASK = MultiLabel
