"""AP equals that of COCO's own tools on annotations with crowds, whatever the order of the detections."""

import builtins
import contextlib
import io
import json

import numpy as np
import pytest

from data.pipeline.object_masks import object_mask
from data.sources.object_store import ObjectStore
from data.sources.object_truth import truth_of
from data.sources.run_lengths import RunLengths
from tasks.detection.average_precision import FIGURES, average_precision, check_installed
from tasks.detection.results import encoded
from tests.conftest import ROOT
from tests.data.sources.object_sets import write_coco
from tests.tools.errors import raises
from utils.errors import ConfigError

pytest.importorskip("pycocotools", reason="computes AP")


COCO_TINY = ROOT.parent / "shared/data/coco_tiny"  # real images of COCO, 11 crowds among 815 objects


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve images; one object of them is a crowd, one is small, and one image is empty."""
    root = write_coco(tmp_path_factory.mktemp("coco"), {"val": 12}, empty=1)
    path = root / "annotations/instances_val2017.json"
    contents = json.loads(path.read_text())
    crowd, small = contents["annotations"][2:4]
    crowd |= {"iscrowd": 1, "segmentation": crowd_shape(contents, crowd)}
    small |= {"area": 9}
    path.write_text(json.dumps(contents))
    return ObjectStore(root).open("val")


def crowd_shape(contents, crowd):
    image = next(each for each in contents["images"] if each["id"] == crowd["image_id"])
    x, y, width, height = map(int, crowd["bbox"])
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    mask[y : y + height, x : x + width] = 1
    runs = RunLengths.of(mask)
    return {"size": list(runs.size), "counts": list(runs.counts)}


def jittered(source, seed=0):
    """Detections near the objects, with their masks; some have another class, some are doubled, some are missing."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(len(source)):
        image = source.image(i)
        for one in image.instances:
            for _ in range(draw.integers(0, 3)):
                shift = draw.normal(0, 3, 4)
                x1, y1, x2, y2 = np.array(one.box) + shift
                label = one.label if draw.random() < 0.8 else (one.label + 1) % len(source.class_names)
                box = [x1, y1, max(1.0, x2 - x1), max(1.0, y2 - y1)]
                moved = np.roll(object_mask(one.shape, image.size), int(shift[0]), 1).astype(bool)
                found.append({"image_id": image.number, "category_id": source.category_ids[label], "bbox": box,
                              "score": float(draw.random()), "segmentation": encoded(moved)})  # fmt: skip
    return found


def reference(source, found, kind):
    """The twelve figures as a user of COCO's tools gets them from the two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(source.origin))
        own = [{k: v for k, v in each.items() if kind == "bbox" or k != "bbox"} for each in found]
        evaluation = COCOeval(truth, truth.loadRes(own), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2, "coco_tiny"])
def test_the_figures_equal_those_of_cocos_tools(source, kind, seed):
    if seed == "coco_tiny":
        if not COCO_TINY.is_dir():
            pytest.skip(f"needs {COCO_TINY}")
        source, seed = ObjectStore(COCO_TINY).open("val"), 0
    found = jittered(source, seed)
    own = average_precision(truth_of(source), found, kind)
    expected = np.where(reference(source, found, kind) > -1, 100 * reference(source, found, kind), np.nan)
    np.testing.assert_allclose([own.figures[name] for name in FIGURES], expected, rtol=0, atol=1e-10)
    assert 5 < own.figures["ap"] < 95
    assert np.nanmean(own.per_class[:, 0]) == pytest.approx(own.figures["ap"])
    assert np.nanmean(own.per_class[:, 1]) == pytest.approx(own.figures["ap50"])
    assert own.curves.shape == (2, 101) and (own.curves[0] >= own.curves[1]).all()
    assert own.curves[0].mean() * 100 == pytest.approx(own.figures["ap50"])


def test_each_class_has_its_own_row(source):
    """Ids need not ascend with the labels: 44 and 2 here."""
    truth = truth_of(source)
    perfect = [each | {"score": 1.0} for each in truth["annotations"] if each["category_id"] == 44]
    rows = average_precision(truth, perfect, "bbox").per_class
    assert rows[0].min() > 99 and rows[1].max() == 0


def test_the_size_of_a_mask_is_its_own_not_that_of_its_box():
    """A false mask of 900 pixels counts among small objects, whatever its box."""
    inside, aside = np.zeros((120, 120), bool), np.zeros((120, 120), bool)
    inside[:30, :30] = aside[60:90, 60:90] = True
    image = {"image_id": 1, "category_id": 1}
    truth = {
        "images": [{"id": 1, "height": 120, "width": 120}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            image | {"id": 1, "bbox": [0, 0, 30, 30], "area": 900, "iscrowd": 0, "segmentation": encoded(inside)}
        ],
    }
    found = [
        image | {"bbox": [0, 0, 30, 30], "score": 0.5, "segmentation": encoded(inside)},
        image | {"bbox": [10, 10, 110, 110], "score": 0.9, "segmentation": encoded(aside)},
    ]
    assert average_precision(truth, found, "segm").figures["ap_small"] == pytest.approx(50)
    assert average_precision(truth, found, "bbox").figures["ap_small"] == pytest.approx(100)


def test_perfect_detections_and_none(source):
    truth = truth_of(source)
    perfect = [
        {"image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "score": 1.0}
        for each in truth["annotations"]
        if not each["iscrowd"]
    ]
    right, nothing = average_precision(truth, perfect, "bbox"), average_precision(truth, [], "bbox")
    assert right.figures["ap"] == pytest.approx(100) and set(right.errors.values()) == {(0, 0)}
    assert nothing.figures["ap"] == 0 and sum(missed for missed, _ in nothing.errors.values()) == len(perfect)


def test_errors_are_counted_by_image_and_class(source):
    truth = truth_of(source)
    first = truth["annotations"][0]
    other = {44: 2, 2: 44}[first["category_id"]]
    box = {"image_id": first["image_id"], "bbox": [0, 0, 2, 2]}
    found = [box | {"category_id": first["category_id"], "score": 0.9}, box | {"category_id": other, "score": 0.1}]
    computed = average_precision(truth, found, "bbox", score=0.3)
    errors = computed.errors
    label = source.category_ids.index(first["category_id"])
    assert errors[first["image_id"], label][1] == 1 and errors[first["image_id"], label][0] >= 1
    assert errors[first["image_id"], 1 - label][1] == 0  # its score is below
    assert computed.by_size["small"][2] == 1 and computed.by_size["large"] == (0, 0, 0)
    objects, missed, _ = zip(*computed.by_size.values(), strict=True)
    assert objects == missed and sum(objects) == sum(not each["iscrowd"] for each in truth["annotations"])


def test_without_cocos_tools_the_remedy_is_named(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with raises(ConfigError, "TEST.VALIDATE", "pip install pycocotools"):
        check_installed()
