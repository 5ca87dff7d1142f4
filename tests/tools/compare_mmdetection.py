"""Compares the detectors with mmdetection 3's: anchors, proposals, detections, masks, losses and gradients.

    python -m tests.tools.compare_mmdetection                 # prints the largest differences
    python -m tests.tools.compare_mmdetection --write         # and stores mmdetection's numbers for the tests

Needs mmdet 3.3.0, mmengine 0.10.7, mmcv-lite 2.1.0, terminaltables, shapely and pycocotools. mmcv-lite has no compiled
operators; torchvision's nms and roi_align stand in for the two that are used.
"""

import argparse
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torchvision
from torch import Tensor

from models.detection.anchors import anchors_of
from models.detection.detector import DETECTORS, Detector
from models.detection.instances import Frame, Objects
from models.detection.mask_head import paste
from models.weights.layouts import LAYOUTS
from models.weights.parts import whole_from_original
from tests.models.detection.cases import BACKBONE, BATCHES, CHANNELS, CLASSES, FRAMES, WIDTH, batch, detector, padded

GOLDEN = Path(__file__).parents[1] / "models/detection/golden.json"
TABLES = Path(__file__).parents[1] / "models/weights/detectors.json"
SEED = 5  # of the draws
SHOWN = 20  # rows stored of each result


class Mode(NamedTuple):
    """`shared`: both detectors work on our maps, so that only the heads can differ."""

    title: str
    dtype: torch.dtype
    shared: bool = False


# rounding of the maps decides which of two boxes is suppressed, and then which are drawn, so float32 alone says little
MODES = (
    Mode("float32", torch.float32),
    Mode("float32, same maps", torch.float32, shared=True),
    Mode("float64", torch.float64),
)


class Operators(types.ModuleType):
    """Stands in for mmcv's compiled operators."""

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(x: Tensor, rois: Tensor, output: Tensor, *_: Any, **options: Any) -> None:
        side = options["aligned_height"], options["aligned_width"]
        scale, ratio, aligned = (options[key] for key in ("spatial_scale", "sampling_ratio", "aligned"))
        output.copy_(torchvision.ops.roi_align(x, rois, side, scale, ratio, aligned))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: sys.exit(f"{name}: no stand-in for this operator")


def peer(name: str, small: bool = True) -> Any:
    """Returns mmdetection's model of its published configuration, Swin-T. Args: small: narrowed like `cases`."""
    try:
        import mmdet.models
        from mmdet.registry import MODELS
        from mmengine.config import Config
        from mmengine.registry import init_default_scope
    except ImportError as error:
        sys.exit(f"{error}: install what the first lines of this file list")
    init_default_scope("mmdet")
    configs = Path(mmdet.__file__).parent / ".mim/configs"
    cfg = Config.fromfile(str(configs / "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py")).model
    if name.startswith("cascade"):
        base = Config.fromfile(str(configs / "_base_/models/cascade-mask-rcnn_r50_fpn.py")).model
        cfg = Config({**base, "backbone": cfg.backbone, "data_preprocessor": cfg.data_preprocessor})
    cfg.backbone.init_cfg = None
    cfg.neck.in_channels = [96, 192, 384, 768]
    roi = cfg.roi_head
    heads = roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]
    for head in heads if name.startswith("cascade") else []:  # as the authors configure it
        del head["loss_bbox"]
        head.update(
            type="ConvFCBBoxHead", num_shared_convs=4, num_shared_fcs=1, num_cls_convs=0, num_cls_fcs=0,
            num_reg_convs=0, num_reg_fcs=0, conv_out_channels=256, reg_class_agnostic=False,
            reg_decoded_bbox=True, norm_cfg={"type": "BN"}, loss_bbox={"type": "GIoULoss", "loss_weight": 10.0},
        )  # fmt: skip
    if small:
        narrow(cfg, heads)
    return MODELS.build(cfg).eval()


def narrow(cfg: Any, heads: list[Any]) -> None:
    options = {key: BACKBONE[key] for key in ("depths", "num_heads", "window_size", "drop_path_rate")}
    cfg.backbone.update(embed_dims=BACKBONE["embed_dim"], **options)
    cfg.neck.update(in_channels=[BACKBONE["embed_dim"] * 2**i for i in range(4)], out_channels=CHANNELS)
    cfg.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    roi = cfg.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.update(out_channels=CHANNELS)
        extractor.roi_layer.update(use_torchvision=True)  # the stand-in has no gradient
    roi.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_classes=CLASSES)
    for head in heads:
        head.update(in_channels=CHANNELS, fc_out_channels=WIDTH, num_classes=CLASSES)
        if "conv_out_channels" in head:
            head.conv_out_channels = CHANNELS


def tables() -> dict[str, Any]:
    """Returns names and shapes of the heads at the published size, and the number of the backbone's tensors."""
    found = {}
    for name in DETECTORS:
        state = peer(name, small=False).state_dict()
        backbone = [key for key in state if key.startswith("backbone.")]
        found[name] = {
            "backbone": len(backbone),
            "indices": sum(key.endswith("relative_position_index") for key in backbone),
            "heads": {key: list(value.shape) for key, value in state.items() if key not in set(backbone)},
        }
    return found


def same_weights(name: str, mode: Mode) -> tuple[Detector, Any]:
    """Returns our detector and mmdetection's with its weights, translated by the layouts."""
    ours, theirs = detector(name), peer(name)
    stored = whole_from_original(ours.state_dict(), LAYOUTS["mmdetection"], "backbone.")
    missing, unexpected = theirs.load_state_dict(stored, strict=False)
    assert not unexpected and all(each.endswith("relative_position_index") for each in missing), (missing, unexpected)
    generator = theirs.rpn_head.prior_generator  # in training it is asked for float32
    anchors = generator.grid_priors
    generator.grid_priors = lambda sizes, *_, device="cpu", **__: anchors(sizes, mode.dtype, device)
    if mode.shared:
        theirs.extract_feat = ours.pyramid
    return ours.to(mode.dtype), theirs.to(mode.dtype)


def paste_in_float32() -> None:
    """Lets mmdetection's paste, which converts masks to float32, take boxes of float64."""
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    original = fcn_mask_head._do_paste_mask
    fcn_mask_head._do_paste_mask = lambda masks, boxes, *a, **k: original(masks, boxes.float(), *a, **k)


def samples(images: Tensor, frames: list[Frame], objects: list[Objects] | None = None) -> list[Any]:
    """Returns images' sizes and objects as mmdetection's data samples."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = images.shape[2:]
    listed = []
    for i, frame in enumerate(frames):
        sample = DetDataSample()
        scale = frame.size[1] / frame.original[1], frame.size[0] / frame.original[0]
        sample.set_metainfo(
            {"img_shape": frame.size, "ori_shape": frame.original, "pad_shape": frame.padded(32),
             "batch_input_shape": (height, width), "scale_factor": scale}
        )  # fmt: skip
        if objects is not None:
            boxes, labels, masks = objects[i]
            sample.gt_instances = InstanceData(
                bboxes=boxes, labels=labels, masks=BitmapMasks(masks.numpy(), height, width)
            )
        listed.append(sample)
    return listed


def difference(first: Tensor, second: Tensor) -> float:
    """Returns the largest difference, infinite between other shapes."""
    if first.numel() != second.numel():
        return float("inf")
    return float((first.detach().flatten() - second.detach().flatten()).abs().max()) if first.numel() else 0.0


def rows(values: Tensor) -> Any:
    return [[round(x, 4) for x in row] if isinstance(row, list) else row for row in values[:SHOWN].tolist()]


@torch.no_grad()
def compare_detections(name: str, frame: Frame, mode: Mode) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the largest differences on one image, and mmdetection's numbers."""
    ours, theirs = same_weights(name, mode)
    images = padded(frame.size).to(mode.dtype)
    sample = samples(images, [frame])
    maps, their_maps = ours.pyramid(images), theirs.extract_feat(images)
    sizes = [(x.shape[2], x.shape[3]) for x in maps]
    anchors = theirs.rpn_head.prior_generator.grid_priors(sizes)
    proposals = theirs.rpn_head.predict(their_maps, sample, rescale=False)[0].bboxes
    own = ours.rpn_head.proposals(ours.rpn_head(maps), [frame])[0]
    found, theirs = ours.detect(images, [frame])[0], theirs.predict(images, sample)[0].pred_instances
    masks = torch.stack([paste(*each, frame.original) for each in zip(found.masks, found.boxes, strict=True)])
    differences = {
        "maps": max(difference(*each) for each in zip(maps, their_maps, strict=True)),
        "anchors": max(difference(*each) for each in zip(anchors_of(sizes, images), anchors, strict=True)),
        "proposals": difference(own, proposals),
        "boxes": difference(found.boxes, theirs.bboxes),
        "scores": difference(found.scores, theirs.scores),
        "labels": difference(found.labels, theirs.labels),
        "mask pixels": float((masks != theirs.masks).sum()),
        "detections": float(len(masks)),
    }
    numbers = {
        "proposals": [len(proposals), rows(proposals)],
        "boxes": [len(theirs.bboxes), rows(theirs.bboxes)],
        "scores": [round(x, 6) for x in theirs.scores[:SHOWN].tolist()],
        "labels": rows(theirs.labels),
        "mask_areas": rows(theirs.masks.sum((1, 2))),
        "mask_positions": [int(x) for x in theirs.masks.nonzero().sum(0)],
    }
    return differences, numbers


def compare_losses(name: str, case: str, mode: Mode) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the largest differences of losses and gradients with the same draws, and mmdetection's losses."""
    ours, theirs = same_weights(name, mode)
    images, frames, objects = batch(case)
    images = images.to(mode.dtype)
    objects = [each._replace(boxes=each.boxes.to(mode.dtype)) for each in objects]
    for model in (ours, theirs):
        model.train()
    torch.manual_seed(SEED)
    with mock.patch.object(torch.Tensor, "float", lambda x: x.to(mode.dtype)):  # it encodes boxes in float32
        losses = theirs.loss(images, samples(images, frames, objects))
    expected = {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}
    expected = {key: value for key, value in expected.items() if "loss" in key}
    own = ours.losses(images, frames, objects, torch.Generator().manual_seed(SEED))
    assert own.keys() == expected.keys(), (own.keys(), expected.keys())
    differences = {key: difference(own[key], expected[key]) for key in own}
    if not mode.shared:
        differences["gradients, relative"] = compare_gradients(ours, sum(own.values()), theirs, sum(expected.values()))
    return differences, {key: round(float(value), 8) for key, value in expected.items()}


def compare_gradients(ours: Detector, loss: Any, theirs: Any, expected: Any) -> float:
    """Returns the largest difference over a parameter's largest gradient."""
    expected.backward()
    loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    wanted = LAYOUTS["mmdetection"].to_original(
        {key.removeprefix("backbone."): value for key, value in gradients.items() if key.startswith("backbone.")}
    )
    wanted = {f"backbone.{key}": value for key, value in wanted.items()} | gradients
    # the layout gives the last map's norm a classifier's name
    wanted["backbone.norm3.weight"], wanted["backbone.norm3.bias"] = (
        gradients[f"backbone.norm3.{leaf}"] for leaf in ("weight", "bias")
    )
    ratios = []
    for key, p in ours.named_parameters():
        assert p.grad is not None and wanted[key] is not None, key
        ratios.append(difference(p.grad, wanted[key]) / max(1e-3, float(wanted[key].abs().max())))
    return max(ratios)


def report(case: tuple[Any, ...], differences: dict[str, float]) -> None:
    print(*case, *(f"{key} {value:.2g}" for key, value in differences.items()), sep="  ", flush=True)


def main() -> None:
    sys.modules["mmcv._ext"] = Operators("mmcv._ext")
    parser = argparse.ArgumentParser(description="Compare the detectors with mmdetection 3's.")
    parser.add_argument("--write", action="store_true", help=f"store its numbers in {GOLDEN.name} and {TABLES.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    golden: dict[str, Any] = {}
    paste_in_float32()
    for name, mode in itertools.product(DETECTORS, MODES):
        golden[name] = {"detections": [], "losses": {}}  # the last mode's remain
        for frame in FRAMES:
            differences, numbers = compare_detections(name, frame, mode)
            golden[name]["detections"].append(numbers)
            report((name, mode.title, frame.size), differences)
        for case in BATCHES:
            differences, golden[name]["losses"][case] = compare_losses(name, case, mode)
            report((name, mode.title, case), differences)
    if args.write:
        TABLES.write_text(json.dumps(tables(), separators=(",", ":")).replace('"heads"', '\n"heads"') + "\n")
        GOLDEN.write_text(json.dumps(golden, separators=(",", ":")).replace('"losses"', '\n"losses"') + "\n")


if __name__ == "__main__":
    main()
