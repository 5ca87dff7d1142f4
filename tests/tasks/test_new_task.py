"""Two new tasks in one file, without a change to any other: a segmentation and a detection of made images.

The file is also the program: `python tests/tasks/test_new_task.py main --cfg ...`, `... predict ...`, `... report ...`
register the tasks and run main.py, scripts/predict.py and scripts/report.py.
"""

import csv
import hashlib
import io
import json
import os
import signal
import sys
import time
from functools import cached_property
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from configs.checks import at_least
from configs.values import Key, TaskKeys
from data.loaders import Pipeline
from data.pipeline.sample import Sample, as_lists
from data.sources.base import Record
from tasks.base import SHOWN, Row, Task, TaskData
from tasks.registry import register
from tests.conftest import run_program, start_ranks
from tests.tools.warm import members
from utils.pictures import restore, sheet, to_image
from utils.runs.provenance import DataInfo
from utils.training.objective import Best, Evaluation, Table

NAMES = ("ground", "red", "green")
COLOURS = np.array([[40, 40, 40], [220, 30, 30], [30, 220, 30]], np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


class Made:
    """Images with a rectangle, and its place. `boxes`: the target is its box, the sizes differ; else a label map."""

    def __init__(self, count, seed, boxes):
        self._count, self._seed, self._boxes = count, seed, boxes

    def __len__(self):
        return self._count

    def __getitem__(self, i):
        draw = np.random.default_rng([self._seed, i])
        height, width = draw.integers(36, 52, 2) if self._boxes else (40, 40)
        top, left = draw.integers(4, 14, 2)
        bottom, right = top + draw.integers(8, 20), left + draw.integers(8, 20)
        labels = np.zeros((height, width), np.uint8)
        labels[top:bottom, left:right] = 1 + i % 2
        noise = draw.integers(0, 30, (height, width, 3), dtype=np.uint8)
        target = np.array([[left, top, right, bottom]], np.float32) if self._boxes else png(labels)
        return Record(png(COLOURS[labels] + noise), target, self.name(i))

    def name(self, i):
        return f"made image {self._seed}-{i}"

    def fingerprint(self):
        return hashlib.sha256(f"{self._count} {self._seed} {self._boxes}".encode()).hexdigest()


class Toy(Task):
    """Shared by both tasks."""

    boxes = False

    def open_data(self, splits=("train", "val")):
        data = {"train": Made(24, 1, self.boxes), "val": Made(7, 2, self.boxes)}
        train = data["train"] if "train" in splits else None
        return TaskData(train, data["val"], DataInfo(data["train"].fingerprint()))

    def stored_info(self, origin):
        return DataInfo()

    def load(self, model, contents, origin, info=None):
        model.load_state_dict(contents["model"])
        return f"weights of {origin}"

    def show_batch(self, batch, info, limit=SHOWN):
        images = [restore(image[None], self.preprocessing)[0] for image in batch.images[:limit]]
        return sheet([(to_image(image), "") for image in images], "Training images", self.name)


def mirrored():
    return bool(torch.rand(()) < 0.5)


def cropped(record):
    """A random crop, mirrored at random: of the image and of its label map."""
    image, labels = pixels_of(record.data), pixels_of(record.target)
    top, left = torch.randint(0, 9, (2,)).tolist()
    image, labels = (each[top : top + 32, left : left + 32] for each in (image, labels))
    if mirrored():
        image, labels = image[:, ::-1], labels[:, ::-1]
    return Sample(np.ascontiguousarray(image.transpose(2, 0, 1)), labels.astype(np.int64))


def central(record):
    labels = pixels_of(record.target)[4:36, 4:36].astype(np.int64) if record.target else np.zeros((32, 32), np.int64)
    return Sample(np.ascontiguousarray(pixels_of(record.data)[4:36, 4:36].transpose(2, 0, 1)), labels)


class Segmentation(Toy):
    name = "toy_segmentation"
    best = Best("miou", title="mean IoU")

    def pipeline(self, info):
        return Pipeline(cropped, central, self.preprocessing)

    def new_model(self, info):
        width = self.cfg.TOY.WIDTH
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, len(NAMES), 1))

    def loss(self, model, batch):
        with self.precision.autocast():
            logits = model(batch.images)
        error = F.cross_entropy(logits.float(), batch.targets)
        return {"loss": error, "pixels": error.detach()}

    def forward(self, model, batch):
        return model(batch.images).argmax(1)

    def evaluator(self, val, info):
        return MeanIoU(val)

    def predictions(self, outputs, batch, info, limit):
        for index, labels in zip(batch.samples, outputs.cpu(), strict=True):
            counts = torch.bincount(labels.flatten(), minlength=len(NAMES))
            cells = {name: round(int(count) / labels.numel(), 4) for name, count in zip(NAMES, counts, strict=True)}
            yield Row(index, cells, picture=lambda labels=labels: Image.fromarray(COLOURS[labels.numpy()]))


class MeanIoU:
    def __init__(self, val):
        self._confusion, self._val = torch.zeros(len(NAMES) ** 2, dtype=torch.int64), val

    def update(self, outputs, batch):
        self._confusion += torch.bincount((batch.targets * len(NAMES) + outputs).flatten().cpu(), minlength=9)

    def compute(self, world):
        matrix = world.gather(self._confusion.to(world.device)).sum(0).view(3, 3)
        iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).clamp(min=1)
        miou = 100 * iou.mean().item()
        rows = [(name, f"{100 * value:.2f}") for name, value in zip(NAMES, iou.tolist(), strict=True)]
        picture = {"first_image": lambda: to_image(torch.from_numpy(self._val.sample(0).image))}
        count = int(matrix.sum()) // 32**2
        return Evaluation(
            {"miou": miou},
            f"mIoU {miou:.3f}",
            samples=count,
            tables={"per_class": Table(("class", "iou"), rows)},
            pictures=picture,
        )


def with_boxes(record):
    """Mirrored at random: the image and its boxes."""
    image, boxes = pixels_of(record.data), record.target.copy()
    if mirrored():
        image, boxes[:, [0, 2]] = image[:, ::-1], image.shape[1] - boxes[:, [2, 0]]
    return Sample(np.ascontiguousarray(image.transpose(2, 0, 1)), torch.from_numpy(boxes))


def as_stored(record):
    boxes = None if record.target is None else torch.from_numpy(record.target)
    return Sample(np.ascontiguousarray(pixels_of(record.data).transpose(2, 0, 1)), boxes)


class Boxes(nn.Module):
    """One box for every image of a list; `average` follows the bias of the last layer, as a momentum encoder would."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 5, 2), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * width, 4)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, images):
        return torch.cat([self.head(self.body(image[None])) * max(image.shape[1:]) for image in images])


class Detection(Toy):
    name, boxes = "toy_detection", True
    best = Best("distance", higher_is_better=False)

    def pipeline(self, info):
        return Pipeline(with_boxes, as_stored, self.preprocessing, collate=as_lists)

    def new_model(self, info):
        return Boxes(self.cfg.TOY.WIDTH)

    def loss(self, model, batch):
        return {"loss": F.l1_loss(model(batch.images), torch.cat(batch.targets))}

    def after_update(self, model, done, planned):
        assert 0 < done <= planned
        model.average.lerp_(model.head.bias.detach(), 0.1)

    def forward(self, model, batch):
        return model(batch.images)

    def evaluator(self, val, info):
        return Distance()

    def predictions(self, outputs, batch, info, limit):
        for index, box in zip(batch.samples, outputs.tolist(), strict=True):
            cells = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
            yield Row(index, cells, {"boxes": [box][:limit]}, picture=lambda box=box: outlined(box))


def outlined(box):
    picture = Image.new("RGB", (48, 48))
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline="red")
    return picture


class Distance:
    def __init__(self):
        self._sums = torch.zeros(2, dtype=torch.float64)

    def update(self, outputs, batch):
        distances = (outputs - torch.cat(batch.targets)).abs().mean(1)
        self._sums += torch.tensor([distances.double().sum().item(), len(distances)])

    def compute(self, world):
        total, count = world.gather(self._sums).sum(0).tolist()
        return Evaluation({"distance": total / count}, f"distance {total / count:.4f}", samples=int(count))


KEYS = TaskKeys({"TOY": {"WIDTH": Key(8, "channels", at_least(1))}})
PROGRAM = Path(__file__)


def become(argv):
    """Registers the tasks and runs one of the programs."""
    register(Segmentation, KEYS)
    register(Detection, KEYS)
    if argv[0] == "main":
        from main import interrupt, main

        interrupt.install()
    elif argv[0] == "predict":
        from scripts.predict import main
    else:
        from scripts.report import main
    return main(argv[1:])


TINY = """
TASK: {task}
DATA: {{BATCH_SIZE: 4, NUM_WORKERS: 0}}
MODEL: {{NAME: toy}}
TRAIN: {{EPOCHS: 3, WARMUP_EPOCHS: 0, BASE_LR: 0.5, GLOBAL_BATCH_SIZE: 4, SAVE_EVERY_UPDATES: 2}}
PRINT_FREQ: 2
"""


class Runs:
    """Runs of a task in a separate folder."""

    def __init__(self, task, folder):
        self.task, self.folder = task, folder
        self.recipe = folder / "toy.yaml"
        self.recipe.write_text(TINY.format(task=task.name))

    def arguments(self, tag, *more):
        return ["main", "--cfg", self.recipe, "--output", self.folder, "--tag", tag, *more]

    def run(self, tag, *more, processes=0, **env):
        done = run_program(*self.arguments(tag, *more), processes=processes, program=PROGRAM, **env)
        assert done.code == 0, done.err
        return done.out

    def tool(self, *arguments):
        done = run_program(*arguments, program=PROGRAM)
        assert done.code == 0, done.err
        return done.out

    def killed(self, tag, line, processes, *more):
        """Starts a run, and kills all its ranks as soon as its log has a line."""
        jobs, log = start_ranks(*self.arguments(tag, *more), processes=processes, program=PROGRAM), self.log(tag)
        deadline = time.monotonic() + 120
        while not log.exists() or line not in log.read_text():
            assert not any(job.poll() for job in jobs) and time.monotonic() < deadline
            time.sleep(0.005)
        for pid in [pid for job in jobs for pid in members(job.pid)]:
            os.kill(pid, signal.SIGKILL)
        for job in jobs:
            job.wait()

    def log(self, tag):
        return self.at(tag) / "log.txt"

    def at(self, tag):
        return self.folder / "toy" / tag

    @cached_property
    def whole(self):
        return self.run("whole")

    def state(self, tag):
        return torch.load(self.at(tag) / "checkpoints/last.pth", weights_only=True)


@pytest.fixture(scope="module", params=[Segmentation, Detection], ids=lambda task: task.name)
def runs(request, tmp_path_factory):
    made = Runs(request.param, tmp_path_factory.mktemp(request.param.name))
    assert made.whole
    return made


def equal(one, other):
    """Compares nested checkpoints bit by bit, without what names the run."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one if k != "config")
    return one == other


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(runs, processes):
    whole = f"whole on {processes}"
    if processes == 1:
        whole = "whole"
    else:
        runs.run(whole, processes=processes)
    tag, workers = f"killed on {processes}", ["--opts", "DATA.NUM_WORKERS", processes - 1]
    runs.killed(tag, "saved", processes, *workers)
    assert 0 < runs.state(tag)["counters"]["update"] < 18
    runs.run(tag, *workers, processes=processes)
    assert (runs.at(whole) / "metrics.jsonl").read_bytes() == (runs.at(tag) / "metrics.jsonl").read_bytes()
    assert equal(runs.state(whole), runs.state(tag))
    if runs.task is Detection:
        assert runs.state(whole)["model"]["average"].abs().sum() > 0


@pytest.mark.seconds
def test_it_learns_and_is_logged_under_its_names(runs):
    metric, best = runs.task.best.metric, runs.task.best
    lines = [json.loads(line) for line in (runs.at("whole") / "metrics.jsonl").read_text().splitlines()]
    values = [line[metric] for line in lines if line["kind"] == "val"]
    assert len(values) == 3 and best.improves(values[-1], values[0])
    kept = runs.state("whole")["best"]
    assert kept["value"] == (max if best.higher_is_better else min)(values)
    board = EventAccumulator(str(runs.at("whole") / "tensorboard")).Reload()
    assert f"val/{metric}" in board.Tags()["scalars"] and "train/first_batch" in board.Tags()["images"]
    assert ("train/pixels" in board.Tags()["scalars"]) == (runs.task is Segmentation)
    assert (runs.at("whole") / "summary.csv").read_text().splitlines()[
        0
    ] == f"epoch,train_loss,lr,eval_{metric},seconds,images_per_s"


@pytest.mark.seconds
@pytest.mark.parametrize("processes", [1, 2])
def test_it_is_evaluated_on_any_number_of_ranks(runs, processes):
    best = runs.at("whole") / "checkpoints/best.pth"
    results = runs.folder / f"{processes}.csv"
    out = runs.run("x", "--eval", "--resume", best, "--opts", "TEST.RESULTS", results, processes=processes)
    (row,) = csv.DictReader(results.open())
    value = runs.state("whole")["best"]["value"]
    assert float(row[runs.task.best.metric]) == pytest.approx(value, rel=1e-4) and row["samples"] == "7"
    assert f"{value:.3f}" in out and not (runs.at("x")).exists()


@pytest.mark.seconds
def test_a_dry_run_estimates_its_cost(runs):
    out = runs.run("dry", "--dry-run")
    assert "an epoch  about" in out and "evaluation 0:00:0" in out and not runs.at("dry").exists()


@pytest.mark.seconds
def test_its_results_are_predicted_and_reported(runs):
    folder = runs.folder / "images"
    folder.mkdir()
    source = Made(3, 3, runs.task.boxes)
    for i in range(3):
        (folder / f"{i}.png").write_bytes(source[i].data)
    table, drawn = runs.folder / "predictions.csv", runs.folder / "drawn"
    model = ["--model", runs.at("whole")]
    runs.tool("predict", folder, *model, "--output", table, "--pictures", drawn, "--batch-size", 2)
    rows = list(csv.DictReader(table.open()))
    names = NAMES if runs.task is Segmentation else ("left", "top", "right", "bottom")
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png"] and list(rows[0]) == ["path", *names]
    assert len(list(drawn.glob("*.png"))) == 3
    out = runs.tool("report", runs.at("whole"), "--device", "cpu")
    page, metric = (runs.at("whole") / "report.html").read_text(), runs.task.best.metric
    assert f"best {metric}" in page and runs.task.name in page and f"{runs.state('whole')['best']['value']:.2f}" in page
    assert ("<h2>Results per class</h2>" in page) == ("First image" in page) == (runs.task is Segmentation), out


def test_a_key_of_its_own_is_checked(runs):
    done = run_program(*runs.arguments("y", "--opts", "TOY.WIDTH", 0), program=PROGRAM)
    assert done.code == 2 and done.error.startswith("error: TOY.WIDTH: ")


if __name__ == "__main__":
    sys.exit(become(sys.argv[1:]))
