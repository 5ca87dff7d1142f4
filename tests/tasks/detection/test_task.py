"""The program trains, resumes, evaluates and predicts a tiny detector of made images."""

import csv
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.pipeline.boxed import collate_boxed
from models.detection.detector import Detector
from scripts import predict
from scripts.export import export
from scripts.export import main as export_main
from scripts.open_model import open_model
from scripts.predictor import Predictor
from tasks.registry import new_task
from tasks.show import draw_samples
from tests.conftest import ROOT, run_program
from tests.data.sources.object_sets import WRITERS, write_coco, write_voc
from tests.tasks.parts import same_bits_in_two_parts
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError, DataError

pytest.importorskip("pycocotools", reason="computes AP")

TINY = """
TASK: detection
DATA: {BATCH_SIZE: 2, NUM_WORKERS: 0, IMG_SIZE: 64, KEEP_EMPTY: true}
MODEL: {NAME: det, DROP_PATH_RATE: 0.1, DETECTOR: {CHANNELS: 16, WIDTH: 32},
        SWIN: {EMBED_DIM: 8, DEPTHS: [1, 1, 1, 1], NUM_HEADS: [1, 1, 2, 2], WINDOW_SIZE: 4}}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 0, GLOBAL_BATCH_SIZE: 4, LR: 0.002, BASE_LR: 0.002, MIN_LR: 0.0, WARMUP_LR: 0.0}
AUG: {SHORT_SIDES: [48, 64], LONG_SIDE: 100, CROP_SHORT_SIDES: [64], CROP_RANGE: [40, 60]}
TEST: {SHORT_SIDE: 64, SCORE: 0.01}
PRINT_FREQ: 1
AMP_ENABLE: false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_coco(tmp_path_factory.mktemp("rectangles"), {"train": 10, "val": 5}, empty=1)
    (root / "tiny.yaml").write_text(TINY)
    return root


def task_of(folder, data=None, **more):
    return new_task(configured(folder / "tiny.yaml", DATA__DATA_PATH=str(data or folder), **more), World())


def run(folder, *arguments, **more):
    done = run_program("--cfg", folder / "tiny.yaml", "--data-path", folder, "--output", folder, *arguments, **more)
    assert done.code == 0, done.err
    return done.out


@pytest.fixture(scope="module")
def trained(folder):
    run(folder, "--tag", "whole")
    return folder / "det/whole"


def batch_of(task, data, indices):
    transform = task.pipeline(data.info).train
    collated = collate_boxed([transform(data.train[i]) for i in indices])
    return Batch(collated.images.float() / 255, collated.targets, tuple(indices))


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_the_loss_is_the_sum_of_named_terms_with_and_without_objects(folder, name):
    task = task_of(folder, MODEL__DETECTOR__NAME=name)
    data = task.open_data()
    model = task.new_model(data.info).train()
    some, none = (task.loss(model, batch_of(task, data, indices)) for indices in ([1, 2], [0, 0]))
    assert some.keys() == none.keys() and len(some) == (6 if name == "mask_rcnn" else 12)
    for losses in (some, none):
        total = sum(value for key, value in losses.items() if key != "loss")
        torch.testing.assert_close(losses["loss"].detach(), total)
    none["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())  # every rank takes part in every reduction
    assert none["loss_bbox" if name == "mask_rcnn" else "s0.loss_bbox"] == 0


def test_one_class_is_enough(tmp_path, folder):
    write_coco(tmp_path, {"train": 3})
    file = tmp_path / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["categories"] = [{"id": 7, "name": "person"}]  # not p, e, r, s, o, n
    for each in contents["annotations"]:
        each["category_id"] = 7
    file.write_text(json.dumps(contents))
    task = task_of(folder, tmp_path)
    data = task.open_data()
    assert data.info.class_names == ("person",) and data.info.category_ids == (7,)
    model = task.new_model(data.info).train()
    assert task.loss(model, batch_of(task, data, [0, 1]))["loss"].isfinite()
    assert model.roi_head.bbox_head.fc_cls.out_features == 2


@pytest.mark.parametrize("layout", WRITERS)
def test_masks_are_predicted_if_the_data_have_some(tmp_path, folder, layout):
    WRITERS[layout](tmp_path, {"train": 3})
    task = task_of(folder, tmp_path)
    data = task.open_data()
    assert data.val is None and data.info.masks == (layout == "coco")
    assert isinstance(model := task.new_model(data.info), Detector)
    assert (model.roi_head.mask_head is not None) == data.info.masks
    if layout != "coco":
        with raises(ConfigError, "MODEL.DETECTOR.MASKS", "objects have no mask"):
            task_of(folder, tmp_path, MODEL__DETECTOR__MASKS=True).open_data()


def test_wide_and_high_images_come_in_pairs(folder):
    task = task_of(folder)
    data = task.open_data()
    order = task.pipeline(data.info).order(data.train)(7)
    high = data.train.sizes()[:, 0] > data.train.sizes()[:, 1]
    pairs = high[order[: 2 * (high.sum() // 2 + (~high).sum() // 2)]].reshape(-1, 2)
    assert sorted(order.tolist()) == list(range(10)) and (pairs[:, 0] == pairs[:, 1]).all()


def annotated(root, counts, change):
    """A dataset of `write_coco` whose validation annotations are changed."""
    write_coco(root, counts)
    file = root / "annotations/instances_val2017.json"
    contents = json.loads(file.read_text())
    for each in contents["annotations"]:
        change(each)
    file.write_text(json.dumps(contents))
    return root


def test_what_cannot_be_evaluated_is_said_before_training(tmp_path, folder):
    counts = {"train": 3, "val": 2}
    crowds = annotated(tmp_path / "crowds", counts, lambda each: each.update(iscrowd=1))
    with raises(DataError, crowds / "annotations/instances_val2017.json", "no objects to find"):
        task_of(folder, crowds).open_data()
    boxes = annotated(tmp_path / "boxes", counts, lambda each: each.pop("segmentation"))
    assert task_of(folder, boxes).open_data().info.masks
    with raises(ConfigError, "TEST.BEST", "mask_ap"):
        task_of(folder, boxes, TEST__BEST="mask_ap").open_data()
    with raises(ConfigError, "TEST.BEST", "mask_ap"):
        task_of(folder, TEST__BEST="mask_ap", MODEL__DETECTOR__MASKS=False).open_data()


def test_masks_that_some_objects_lack_are_an_error_at_the_start(tmp_path, folder):
    write_coco(tmp_path, {"train": 4})
    file = tmp_path / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    del contents["annotations"][0]["segmentation"]
    file.write_text(json.dumps(contents))
    total = len(contents["annotations"])
    with raises(ConfigError, "MODEL.DETECTOR.MASKS", f"1 of {total} training objects"):
        task_of(folder, tmp_path).open_data()
    contents["annotations"][0]["iscrowd"] = 1  # crowds are not trained
    file.write_text(json.dumps(contents))
    assert task_of(folder, tmp_path).open_data().info.masks


def test_classes_of_the_weights_are_matched_by_name(folder):
    theirs = {"model": {}, "meta": {"dataset_meta": {"classes": ["blue", "green", "red"]}}}
    cfg = configured(folder / "tiny.yaml", DATA__DATA_PATH=str(folder), EVAL_MODE=True, MODEL__RESUME="x.pth")
    data = new_task(cfg, World(), theirs).open_data(("val",))
    assert data.info.class_names == ("blue", "green", "red") and data.info.category_ids == (2, 46, 44)
    theirs["meta"]["dataset_meta"]["classes"] = ["cat", "dog"]
    with raises(DataError, folder / "annotations/instances_val2017.json", "class 'red'"):
        new_task(cfg, World(), theirs).open_data(("val",))


def test_images_are_padded_with_zeros_one_at_a_time(folder):
    seen = []

    def model(images, frames):
        seen.append((tuple(images.shape), frames[0], images[0, :, frames[0].size[0] :].abs().sum().item()))
        return ["found"]

    images = [torch.ones(3, 64, 70), torch.ones(3, 33, 96)]
    targets = [{"original": (128, 140)}, {"original": (33, 96)}]
    assert task_of(folder).forward(model, Batch(images, targets, (0, 1))) == ["found", "found"]
    assert [shape for shape, *_ in seen] == [(1, 3, 64, 96), (1, 3, 64, 96)]
    assert [frame for _, frame, _ in seen] == [((64, 70), (128, 140)), ((33, 96), (33, 96))]
    assert not any(padding for *_, padding in seen)


def test_layers_for_classes_of_mmdetections_files_are_new(folder):
    task = task_of(folder)
    info = task.open_data().info
    model, weights = task.new_model(info), task.new_model(info).state_dict()
    line = task.load(model, {"state_dict": weights, "meta": {"CLASSES": ("cat", "dog")}}, "x", info)
    assert "new: roi_head.bbox_head, roi_head.mask_head" in line
    assert "new: nothing" in task.load(model, {"state_dict": weights, "meta": {"CLASSES": ("red", "blue")}}, "x", info)


def test_maps_of_another_stride_are_refused(folder):
    with raises(ConfigError, "MODEL.SWIN.PATCH_SIZE", "stride 4"):
        task_of(folder, MODEL__SWIN__PATCH_SIZE=2).new_model(None)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (64, 128)),
        ({"TEST__IMG_SIZE": 96}, (96, 160)),  # the long side in proportion: 150
        ({"TEST__IMG_SIZE": [96, 64]}, (64, 96)),
        ({"TEST__SHORT_SIDE": 128, "AUG__LONG_SIDE": 64}, (64, 64)),
    ],
)
def test_both_sides_in_evaluation_are_limited(folder, more, expected):
    assert task_of(folder, **more).input_size == expected


def test_four_stages_and_a_swin_are_needed(folder):
    with raises(ConfigError, "MODEL.SWIN.DEPTHS", "four"):
        task_of(folder, MODEL__SWIN__DEPTHS=[1, 1], MODEL__SWIN__NUM_HEADS=[1, 1]).new_model(None)


def test_samples_are_drawn_with_their_objects(folder, tmp_path):
    assert draw_samples(task_of(folder), tmp_path / "sheet.png", 6, seed=0) == 6
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).std() > 20


@pytest.mark.seconds
def test_it_learns_and_its_metrics_are_recorded(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    values = [line for line in lines if line["kind"] == "val"]
    assert len(values) == 2 and {"box_ap", "box_ap50", "mask_ap", "box_ar100"} <= values[-1].keys()
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    contents = torch.load(trained / "checkpoints/last.pth", weights_only=True)
    assert contents["class_names"] == ["red", "blue"] and contents["category_ids"] == [44, 2]
    assert {"backbone.norm0.weight", "roi_head.bbox_head.fc_cls.weight"} <= contents["model"].keys()
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert any("examples" in tag for tag in board.Tags()["images"])


@pytest.mark.seconds
def test_a_run_in_two_parts_ends_with_the_same_bits(folder, trained):
    """With loader workers, which the whole run had none of."""
    assert same_bits_in_two_parts(partial(run, folder), folder / "det", last_epoch=1)


@pytest.mark.seconds
@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_ranks_evaluates_the_same(folder, trained, processes):
    table, classes, found = (folder / f"{processes}{name}" for name in ("r.csv", "c.csv", "d.json"))
    given = ["--opts", "TEST.RESULTS", table, "TEST.PER_CLASS", classes, "TEST.DETECTIONS", found]
    out = run(folder, "--eval", "--resume", trained / "checkpoints/last.pth", *given, processes=processes)
    (row,) = csv.DictReader(table.open())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "val"][-1]
    for name in ("box_ap", "mask_ap", "box_ar100"):
        assert float(row[name]) == pytest.approx(last[name], rel=1e-4)
    assert row["samples"] == "5" and "box AP" in out
    assert [row["class"] for row in csv.DictReader(classes.open())] == ["red", "blue"]
    entries = json.loads(found.read_text())
    assert entries and {each["image_id"] for each in entries} <= set(range(10, 15)) and "segmentation" in entries[0]


@pytest.mark.slow
def test_sharded_training_is_the_same(folder):
    """The first loss is equal to rounding, after which rounding may decide which of two boxes is suppressed."""
    losses = {}
    for kind in ("ddp", "fsdp"):
        run(folder, "--tag", kind, "--epochs", 1, "--opts", "TRAIN.PARALLEL", kind, processes=2)
        lines = [json.loads(line) for line in (folder / f"det/{kind}/metrics.jsonl").read_text().splitlines()]
        losses[kind] = [line["loss"] for line in lines if line["kind"] == "train"]
        assert any(line["kind"] == "val" for line in lines)
    assert losses["fsdp"][0] == pytest.approx(losses["ddp"][0], rel=1e-4)
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=0.05)


@pytest.mark.seconds
def test_objects_are_predicted_drawn_and_written(folder, trained, tmp_path):
    model, images = trained / "checkpoints/last.pth", folder / "val2017"
    command = [images, "--model", model, "--threshold", "0.011", "--batch-size", "2"]
    for target in ("out.csv", "out.json", "out.jsonl"):
        done = run_program(*command, "--output", tmp_path / target, program=ROOT / "scripts/predict.py")
        assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    entries = json.loads((tmp_path / "out.json").read_text())
    found = [row for row in rows if row["class"]]
    assert len(found) == len(entries) > 5 and {row["class"] for row in found} <= {"red", "blue"}
    for row, entry in zip(found, entries, strict=True):
        x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
        assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
        assert entry["file_name"] == row["path"] and entry["category_id"] == {"red": 44, "blue": 2}[row["class"]]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and sum(len(line["objects"]) for line in lines) == len(entries)
    done = run_program(*command, "--pictures", tmp_path / "drawn", program=ROOT / "scripts/predict.py")
    assert done.code == 0 and len(list((tmp_path / "drawn").iterdir())) == 5
    number = next(
        i for i, line in enumerate(lines) if line["objects"]
    )  # scores below the usual 0.3 are drawn, as asked
    (path,) = (tmp_path / "drawn").glob(f"{number}_*.png")
    drawn = Image.open(path).convert("RGB")
    plain = Image.open(images / f"{path.stem.partition('_')[2]}.png").convert("RGB").resize(drawn.size)
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).max() > 100


@pytest.mark.seconds
def test_images_without_objects_and_unreadable_ones_differ(folder, trained, tmp_path):
    (tmp_path / "a.png").write_bytes((folder / "val2017/val_1.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no image")
    command = [tmp_path, "--model", trained / "checkpoints/last.pth", "--threshold", "0.999"]
    for target in ("out.csv", "out.jsonl"):
        run_program(*command, "--output", tmp_path / target, program=ROOT / "scripts/predict.py")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "path,class,score,x1,y1,x2,y2"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["objects"] for line in lines] == [[], None]


@pytest.mark.seconds
def test_a_detector_of_other_classes_is_fine_tuned(folder, trained, tmp_path):
    write_voc(tmp_path, {"train": 4, "val": 2})
    done = run_program(
        *("--cfg", folder / "tiny.yaml", "--data-path", tmp_path, "--output", tmp_path, "--epochs", 1),
        *("--pretrained", trained / "checkpoints/last.pth"),
    )
    assert done.code == 0, done.err
    assert "new: roi_head.bbox_head" in done.out and "box AP" in done.out and "mask AP" not in done.out


def test_a_classifier_detects_nothing(folder):
    task = task_of(folder)
    task.contents = {"model": {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}}
    with raises(CheckpointError, "x.pth", "no detection heads"):
        task.stored_info("x.pth")


@pytest.mark.seconds
def test_what_a_detector_cannot_do_is_one_line(folder, trained, tmp_path):
    best, image = trained / "checkpoints/best.pth", folder / "val2017/val_0.png"
    for program, given, subject in (
        ("export", [best, tmp_path / "x.onnx", "--batch", "2"], "--batch"),
        ("predict", [image, "--model", best, "--features", "pooled", "--output", tmp_path / "x.npz"], "--features"),
        ("predict", [image, "--model", best, "--explain", tmp_path / "x"], "--explain"),
    ):
        done = run_program(*given, program=ROOT / f"scripts/{program}.py")
        assert done.code == 2 and done.err.startswith(f"error: {subject}: ") and done.err.count("\n") == 1


@pytest.mark.seconds
def test_a_predictor_of_classes_is_none_of_objects(trained):
    with raises(ConfigError, trained / "checkpoints/best.pth", "scripts/predict.py"):
        Predictor(str(trained / "checkpoints/best.pth"))


@pytest.mark.seconds
def test_it_is_published_with_its_classes(folder, trained, tmp_path):
    best = trained / "checkpoints/best.pth"
    done = run_program(best, "me/mine", "--folder", tmp_path / "hub", program=ROOT / "scripts/push_to_hub.py")
    assert done.code == 0 and "verified: same weights in this program" in done.out, done.err
    card = (tmp_path / "hub/README.md").read_text()
    assert "pipeline_tag: object-detection" in card and "predict.py photo.jpg --model hf:me/mine" in card
    assert str(folder) not in card and "from scripts.predictor" not in card
    read, own = open_model(str(tmp_path / "hub/model.safetensors")), open_model(str(best))
    assert replace(read.info, fingerprint="") == replace(own.info, fingerprint="")


@pytest.mark.seconds
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_it_is_exported_and_predicts_without_its_checkpoint(folder, trained, tmp_path, capsys, ending):
    best, target = str(trained / "checkpoints/best.pth"), tmp_path / f"m.{ending}"
    assert export_main([best, str(target)]) == 0
    out = capsys.readouterr().out
    assert "1 image of 128x128" in out and "boxes, scores, labels, masks differ by at most" in out
    tables = {}
    for model in (best, str(target)):
        table = tmp_path / "out.csv"
        given = [str(folder / "val2017"), "--model", model, "--threshold", "0.011", "--output", str(table)]
        assert predict.main(given) == 0
        tables[model] = list(csv.DictReader(table.open()))
    own, exported = tables.values()
    assert {row["class"] for row in exported} == {row["class"] for row in own} and len(exported) > 5
    assert abs(len(own) - len(exported)) <= len(own) / 4  # other padding, so other values near the border
    capsys.readouterr()
    given = [str(folder / "val2017"), "--model", str(target), "--size", "128"]
    assert predict.main(given) == 2 and "the size of training (64x128)" in capsys.readouterr().err
    assert export_main([str(target), str(tmp_path / "again.onnx")]) == 2
    assert "is an exported file already" in capsys.readouterr().err
    info, stored = open_model(str(target)).info, open_model(best).info
    assert (info.class_names, info.category_ids, info.masks) == (stored.class_names, stored.category_ids, stored.masks)


@pytest.mark.seconds
def test_exports_of_several_images_a_call_and_wrong_ones_are_refused(trained, tmp_path, monkeypatch):
    opened = open_model(str(trained / "checkpoints/best.pth"))
    with raises(ConfigError, "--batch", "single images"):
        export(opened, tmp_path / "m.pt2", 4)
    monkeypatch.setattr("tasks.detection.export.DetectorExport.difference", lambda self, run: 0.1)
    with raises(CheckpointError, tmp_path / "m.pt2", "boxes, scores"):
        export(opened, tmp_path / "m.pt2", 0)
    assert not list(tmp_path.iterdir())
