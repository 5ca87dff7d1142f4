"""What several test files build: small models, plans, states, batches, loaders, image folders, child processes."""

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from configs.loading import load_config
from data.loaders import Pipeline
from data.pipeline.sample import Sample
from data.pipeline.transforms import EvalTransform, EvalTransformOptions, TrainTransform, TrainTransformOptions
from data.pipeline.workers import LoaderOptions
from data.sources.open import SourceOptions
from models.moe.routing import RoutingOptions
from models.registry import build_model
from models.weights.layouts import DERIVED
from models.weights.load import find_weights, load_weights
from tasks.classification.labels import ClassInfo, open_train, open_val
from tasks.classification.task import Classification
from utils.batches import Batch, EpochShape
from utils.distributed.signals import Interrupt
from utils.distributed.world import World
from utils.logs import curves
from utils.precision import Precision
from utils.preprocessing import Preprocessing
from utils.runs.folder import RunFolder
from utils.runs.provenance import Provenance
from utils.runs.session import Session
from utils.runs.session_options import SessionOptions
from utils.training.evaluate import evaluate
from utils.training.objective import Best, Evaluation
from utils.training.optim import OptimizerOptions
from utils.training.plan import RunPlan
from utils.training.state import StateOptions, TrainState

# a Swin of two stages that runs in a moment
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
# experts in one block of each stage, as many tokens for each as choose it
MOE: dict[str, Any] = {
    "moe_blocks": ((1,), (0,)),
    "num_experts": 4,
    "routing": RoutingOptions(top_k=2, capacity_factor=0.0, prioritized=False),
}
# the published sizes
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
RECIPES = Path(__file__).parents[2] / "configs"
CPU = torch.device("cpu")
FLOAT32 = Precision("cpu", torch.float32)


def configured(recipe: str | Path = "swin_tiny.yaml", **overrides: Any) -> CfgNode:
    """Args: recipe: a file, or its name in configs/; overrides: KEY__NAME=value for KEY.NAME."""
    given = [(key.replace("__", "."), value, "test") for key, value in overrides.items()]
    return load_config(RECIPES / recipe, given)


def small(family: str = "swin", **more: Any) -> Any:
    """A small model of five classes, initialised from seed 0, without stochastic depth."""
    torch.manual_seed(0)
    experts = MOE if family == "swin_moe" else {}
    return build_model(family, **{**SMALL, **experts, "num_classes": 5, "drop_path_rate": 0.0, **more})


def randomize(model: nn.Module) -> nn.Module:
    """Gives a model weights large enough that every part of it affects the output."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(p, std=0.5)
        elif p.ndim == 1:
            torch.nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.1)
    return model.eval()


def take(model: Any, peer: nn.Module) -> Any:
    """Loads a peer's weights through the layouts, and checks that they convert back bit for bit."""
    found = find_weights(peer.state_dict(), "peer")
    load_weights(model, found)
    back = found.layout.from_original(model.state_dict())
    theirs = {name: value for name, value in peer.state_dict().items() if name.rsplit(".", 1)[-1] not in DERIVED}
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], value) for name, value in theirs.items())
    return model


def shape(train_size: int = 40, batch_size: int = 4, accumulation: int = 1, world_size: int = 1) -> EpochShape:
    return EpochShape(train_size, batch_size, accumulation, world_size)


def plan(epoch_shape: EpochShape | None = None, **more: Any) -> RunPlan:
    """Two epochs of ten updates of four samples, the first one warm-up."""
    own = epoch_shape or shape()
    if "warmup_epochs" in more:
        more["warmup_updates"] = more.pop("warmup_epochs") * own.updates
    fields: dict[str, Any] = {
        "shape": own,
        "epochs": 2,
        "warmup_updates": own.updates,
        "base_lr": 0.1,
        "peak_lr": 1e-3,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "scheduler": "cosine",
        "warmup_prefix": True,
        "decay_epochs": 1,
        "decay_rate": 0.1,
        "milestones": (),
        "gamma": 0.1,
        "clip_grad": 5.0,
        "max_skipped": 3,
    }
    return RunPlan(**{**fields, **more})


def train_state(
    model: nn.Module,
    precision: Precision = FLOAT32,
    ema_decay: float | None = None,
    optimizer: OptimizerOptions | None = None,
) -> TrainState:
    options = StateOptions(optimizer or OptimizerOptions(), ema_decay)
    return TrainState.build(model, options, precision, World())


def objective(smoothing: float = 0.1, precision: Precision = FLOAT32, **overrides: Any) -> Classification:
    """The task of classification. Args: overrides: KEY__NAME=value for KEY.NAME."""
    task = Classification(configured(MODEL__LABEL_SMOOTHING=smoothing, **overrides), World())
    task.precision = precision
    return task


class HeldOut:
    """Batches as validation data, numbered in their order."""

    def __init__(self, val: Sequence[Batch]):
        self._val, self.source = list(val), self

    def __len__(self) -> int:
        return len(self._val)

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for batch in self._val:
            yield replace(batch, samples=tuple(range(first, first + len(batch))))
            first += len(batch)

    def name(self, index: int) -> str:
        return f"photo_{index}"

    def sample(self, index: int) -> Sample:
        images = torch.cat([batch.images for batch in self._val])
        return Sample((images[index].clamp(0, 1) * 255).byte().numpy(), None)


def classes_of(count: int = 5) -> ClassInfo:
    return ClassInfo(class_names=tuple(f"class {i}" for i in range(count)))


def evaluation_of(task: Any, model: nn.Module, val: Sequence[Batch], world: World | None = None) -> Evaluation:
    """Evaluates a model on batches, as a run does after an epoch."""
    held: Any = HeldOut(val)
    return evaluate(model, held, task.evaluator(held, classes_of()), task.forward, world or World())


def batches(count: int, size: int = 4, classes: int = 5, pixels: int = 32) -> list[Batch]:
    """Random images with labels, one micro-batch per update."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, pixels, pixels, generator=generator)
    targets = torch.randint(classes, (count, size), generator=generator)
    return [Batch(i, t) for i, t in zip(images, targets, strict=True)]


def provenance(**more: Any) -> Provenance:
    return Provenance(**{"config": "TAG: x\n", "global_batch": 4, **more})


@dataclass
class Subject:
    """What a session is told of its task and data."""

    best: Best | None = Classification.best
    predicts: bool = False
    evaluate: Callable[[nn.Module], Evaluation | None] = lambda model: None

    def show_batch(self, batch: Batch) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def name_of(self, index: int) -> str:
        return f"photo_{index}"


class JudgedSession(Session):
    """A session whose evaluations are given by a test."""

    subject: Subject

    def end_epoch(self, outcome: Any = None) -> None:
        """Args: outcome: has a method `evaluate`."""
        if outcome is not None:
            self.subject.evaluate = outcome.evaluate
        super().end_epoch()


@contextmanager
def session(
    folder: Path,
    state: TrainState,
    run_plan: RunPlan,
    interrupt: Interrupt | None = None,
    world: World | None = None,
    subject: Subject | None = None,
    **options: Any,
) -> Iterator[JudgedSession]:
    """A session that owns `folder` until it is left; its curves are not drawn, which takes longest."""
    run_folder = RunFolder(folder, world or World())
    run_folder.acquire("TAG: x\n", lambda text: [])
    subject = subject or Subject()
    try:
        run = JudgedSession(
            state,
            run_plan,
            run_folder,
            subject,
            provenance=provenance(global_batch=run_plan.shape.global_batch),
            interrupt=interrupt or Interrupt(),
            options=SessionOptions(**{"print_freq": 5, "keep": 0, **options}),
        )
        run.subject = subject
        with mock.patch.object(curves, "draw_curves"), run:
            yield run
    finally:
        run_folder.release()


# what the loaders' tests compare: no randomness but the order, or everything on
PLAIN = TrainTransformOptions(
    size=(32, 32), auto_augment="none", color_jitter=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, re_prob=0.0
)
AUGMENTED = replace(
    PLAIN, auto_augment="rand-m9-mstd0.5-inc1", scale=(0.1, 1.0), ratio=(0.75, 1.33), hflip=0.5, re_prob=0.5
)


def pipeline(
    train: TrainTransformOptions = AUGMENTED, val: EvalTransformOptions | None = None, **more: Any
) -> Pipeline:
    """Args: more: fields of Pipeline."""
    own = EvalTransform(val or EvalTransformOptions(size=(32, 32)))
    sample_bytes = train.channels * train.size[0] * train.size[1]
    fields: dict[str, Any] = {"preprocessing": Preprocessing(), "sample_bytes": sample_bytes}
    return Pipeline(TrainTransform(train), own, **{**fields, **more})


def loading(**more: Any) -> LoaderOptions:
    """Batches of 4, no workers. Args: more: fields of LoaderOptions."""
    return LoaderOptions(**{"batch_size": 4, "seed": 7, **more})


class Splits(NamedTuple):
    """Both splits of a labelled dataset."""

    train: Any
    val: Any

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def identity(self) -> ClassInfo:
        return ClassInfo.of(self.train)


def open_folder(root: object, **more: Any) -> Splits:
    """Opens both splits of an image folder."""
    return open_data("imagenet", root, **more)


def labels_of(source: Any) -> list[int]:
    return [source.label(i) for i in range(len(source))]


def write_photos(root: Path, classes: int, train: int, val: int, size: int = 96) -> Path:
    """Writes train/ and val/ with `classes` folders of JPEG crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    number = 0
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                left, top = 37 * number % (640 - size), 23 * number % (427 - size)
                crop = photos[label % 2].crop((left, top, left + size, top + size))
                crop.save(folder / f"photo_{i}.jpg", quality=92)
    return root


def open_data(dataset: str, path: object, **more: Any) -> Splits:
    """Opens both splits of a dataset. Args: more: fields of SourceOptions."""
    opened = open_train(SourceOptions(dataset, str(path), **more), World())
    return Splits(opened.train, opened.val)


def open_validation(path: object, dataset: str = "imagenet", names: Any = None, likely: Any = None, **more: Any) -> Any:
    """Opens the validation split of an image folder alone, as an evaluation does."""
    return open_val(SourceOptions(dataset, str(path), **more), World(), names, likely)


class LostStore:
    """What a store is when the rank that hosted it is gone."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operation(*_: Any) -> Any:
            raise torch.distributed.DistNetworkError(f"{name}: connection reset by peer")

        return operation


def in_child(run: Callable[[], object]) -> tuple[int, str]:
    """Calls `run` in a forked process; returns its exit code (minus the signal that killed it) and its errors.

    The code is 0 if `run` returns, and 99 if it raises.
    """
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(errors.fileno(), 2)
                sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
                logging.getLogger().handlers = [logging.StreamHandler(sys.stderr)]
                torch.set_num_threads(1)  # threads of the parent are not inherited
                run()
                code = 0
            except BaseException as e:
                print(repr(e), file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        return code, errors.read().decode()


def fork_ranks(run: Callable[[int], object], size: int) -> NoReturn:
    """Calls run(rank) in a forked process for every rank and ends this one, a program of a test, with the largest exit
    code: 99 if one raised."""
    torch.set_num_threads(1)
    children = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            code = 99
            try:
                torch.set_num_threads(1)  # replaces the parent's pool before two threads of autograd do it at once
                run(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
