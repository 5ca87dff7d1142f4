"""Proposals and their losses beyond what the comparison with mmdetection covers."""

import pytest
import torch

from models.detection.instances import Frame, Objects
from models.detection.rpn import ProposalOptions, RPNHead, RPNOptions
from tests.models.detection.cases import objects, seeded

FRAME = Frame((60, 90), (60, 90))


def pyramid(images=1, channels=4):
    torch.manual_seed(0)
    return [torch.randn(images, channels, -(-64 // s), -(-96 // s), requires_grad=True) for s in (4, 8, 16, 32, 64)]


def head(**options):
    return seeded(RPNHead(4, RPNOptions(**options)))


def test_predictions_are_ordered_like_the_anchors():
    model, maps = head(), pyramid(2)
    predicted = model(maps)
    assert [len(a) for a in predicted.anchors] == [x.shape[1] for x in predicted.logits]
    hidden = torch.relu(model.rpn_conv(maps[1]))
    row, column, ratio = 3, 5, 2
    index = (row * predicted.sizes[1][1] + column) * 3 + ratio
    torch.testing.assert_close(predicted.logits[1][1, index], model.rpn_cls(hidden)[1, ratio, row, column])
    wanted = model.rpn_reg(hidden)[1, 4 * ratio : 4 * ratio + 4, row, column]
    torch.testing.assert_close(predicted.deltas[1][1, index], wanted)


def test_proposals_are_valid_boxes_of_the_image_by_score():
    model = head(evaluation=ProposalOptions(50, 20)).eval()
    predicted = model(pyramid(2))
    for boxes in model.proposals(predicted, [FRAME, Frame((30, 50), (30, 50))]):
        assert 0 < len(boxes) <= 20 and (boxes[:, 2:] > boxes[:, :2]).all() and not boxes.requires_grad
    height, width = boxes[:, 3].max(), boxes[:, 2].max()
    assert height <= 30 and width <= 50
    assert len(model.train().proposals(predicted, [FRAME] * 2)[0]) > 20


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("count", [0, 3])
def test_losses_have_gradients_with_and_without_objects(inside, count):
    model, maps = head(inside=inside, beta=1 / 9), pyramid()
    losses = model.losses(model(maps), [FRAME], [objects(FRAME.size, count, (64, 96))])
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox"] and (losses["loss_rpn_bbox"] > 0) == (count > 0)
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert p.grad.any() or "rpn_reg" in name, name
    assert model.rpn_reg.weight.grad.any() == (count > 0)


def test_no_anchor_inside_the_image_gives_zeros_with_gradients():
    model, maps = head(inside=True), pyramid()
    tiny = Frame((5, 5), (5, 5))
    losses = model.losses(model(maps), [tiny], [Objects.none()])
    assert [x.item() for x in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_losses_are_normalised_over_the_batch():
    model, maps = head(), pyramid()
    truth = [objects(FRAME.size, 2, (64, 96))]
    one = model.losses(model(maps), [FRAME], truth, torch.Generator().manual_seed(1))
    twice = [torch.cat([x, x]) for x in maps]
    two = model.losses(model(twice), [FRAME] * 2, truth * 2, torch.Generator().manual_seed(1))
    assert two["loss_rpn_bbox"].item() == pytest.approx(one["loss_rpn_bbox"].item(), rel=0.1)


def test_names_of_the_released_weights():
    shapes = {name: tuple(value.shape) for name, value in RPNHead().state_dict().items()}
    assert shapes == {
        "rpn_conv.weight": (256, 256, 3, 3), "rpn_conv.bias": (256,),
        "rpn_cls.weight": (3, 256, 1, 1), "rpn_cls.bias": (3,),
        "rpn_reg.weight": (12, 256, 1, 1), "rpn_reg.bias": (12,),
    }  # fmt: skip
