"""The loss of SimMIM beside a plain computation, its evaluation, and its pictures."""

import math

import pytest
import torch
from torch import nn

from models.simmim import SimMIM
from tests.tools.builders import FLOAT32, small
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.preprocessing import Preprocessing
from utils.training.reconstruction import Reconstruction, ReconstructionOptions, masked_error, neighbourhood

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MASK = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.6


def plain_target(image, side):
    """Normalises pixel by pixel (V2's recipe)."""
    target = torch.zeros_like(image)
    half = side // 2
    for y in range(16):
        for x in range(16):
            around = image[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1].flatten(1)
            variance = around.var(1, unbiased=True)
            target[:, y, x] = (image[:, y, x] - around.mean(1)) / (variance + 1e-6).sqrt()
    return target


def plain_loss(predicted, masks, side):
    """Sums over pixels, one after the other (the formula of the issue: a mean over all masked pixels)."""
    total, masked = torch.zeros(()), 0
    for b in range(3):
        target = plain_target(IMAGES[b], side) if side else IMAGES[b]
        for y in range(16):
            for x in range(16):
                if masks[b, y // 4, x // 4]:
                    masked += 1
                    total = total + (target[:, y, x] - predicted[b, :, y, x]).abs().sum()
    return total / (masked + 1e-5) / 3


@pytest.mark.parametrize("side", [0, 5, 47])
def test_loss_and_gradient_equal_a_plain_computation(side):
    masks = torch.stack([MASK[0]] * 3)  # as many squares in every image, as the recipe has
    predicted = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(9)).requires_grad_()
    loss = masked_error(predicted, IMAGES, masks, side).mean()
    (gradient,) = torch.autograd.grad(loss, predicted)
    wanted = plain_loss(predicted, masks, side)
    (expected,) = torch.autograd.grad(wanted, predicted)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (gradient - expected).abs().max() < 1e-6
    assert (gradient != 0).any(1).equal(masks.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_a_flat_neighbourhood_has_the_smallest_deviation():
    mean, deviation = neighbourhood(torch.full((1, 3, 8, 8), 2.0), 3)
    assert torch.allclose(mean, torch.full_like(mean, 2.0)) and torch.allclose(deviation, torch.full_like(mean, 1e-3))


class Held:
    """Five validation images for `size` ranks in batches of two; sample `bad` could not be read."""

    samples, preprocessing = 5, Preprocessing()

    def __init__(self, rank=0, size=1, bad=()):
        self._own, self._bad = range(rank, 5, size), bad
        self._images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(4))

    def __len__(self):
        return -(-len(self._own) // 2)

    def __iter__(self):
        for start in range(0, len(self._own), 2):
            part = list(self._own[start : start + 2])
            yield self._images[part], torch.tensor([-1 if i in self._bad else 0 for i in part])

    def normalized(self, numbers):
        return self._images[list(numbers)]

    def masks(self, numbers):
        return torch.stack([(torch.arange(16) + i) % 5 < 2 for i in numbers]).view(-1, 4, 4)


def objective(val, shown=None, side=0, world=None):
    options = ReconstructionOptions(side)
    return Reconstruction(options, val=val, shown=shown or val, precision=FLOAT32, world=world or World())


def model():
    return SimMIM(small(), 8)


def test_validation_loss_is_a_mean_over_samples_of_all_ranks_and_leaves_out_unreadable_ones(monkeypatch):
    net, held = model().eval(), Held()
    each = masked_error(
        net(held.normalized(range(5)), held.masks(range(5))), held.normalized(range(5)), held.masks(range(5))
    )
    assert objective(held).evaluate(net).metrics["loss"] == pytest.approx(each.mean().item(), rel=1e-5)
    kept = [0, 1, 2, 4]
    assert objective(Held(bad=(3,))).evaluate(net).metrics["loss"] == pytest.approx(each[kept].mean().item(), rel=1e-5)

    sums = []
    monkeypatch.setattr(World, "gather", lambda self, values: sums.append(values) or torch.stack(sums))
    for rank in range(2):
        evaluation = objective(Held(rank, 2), world=World(rank, 2)).evaluate(net)
    assert evaluation.metrics["loss"] == pytest.approx(each.mean().item(), rel=1e-5)
    with pytest.raises(DataError, match="no sample was evaluated"):
        sums.clear()
        objective(Held(bad=range(5))).evaluate(net)


def test_evaluation_restores_the_mode_and_draws_nothing():
    net = model().train()
    before = torch.get_rng_state()
    evaluation = objective(Held()).evaluate(net)
    assert net.training and torch.equal(before, torch.get_rng_state())
    assert "validation loss" in evaluation.line


def test_the_sheet_shows_three_rows_and_the_prediction_only_where_masked():
    evaluation = objective(None, Held(), side=5).evaluate(model())
    assert evaluation.metrics == {} and objective(None, Held()).best is None
    picture = evaluation.each_epoch["reconstruction"]()
    assert picture.width > 4 * picture.height / 3 and picture.height > 3 * 176
    tile = [picture.crop((14 + 190 * c, 64 + 212 * r, 190 + 190 * c, 240 + 212 * r)) for r in range(3) for c in (0, 1)]
    assert tile[0].tobytes() != tile[2].tobytes() != tile[4].tobytes()
    corner = [t.getpixel((170, 5)) for t in tile]  # square 3 of sample 0 is not masked
    assert corner[0] == corner[2] == corner[4] and corner[2] != (128, 128, 128)


def test_the_loss_of_a_batch_has_one_name_and_uses_its_masks():
    net, held = model(), Held()
    batch = Batch(held.normalized([0, 1]), held.masks([0, 1]), 1.0, True)
    losses = objective(None, held).loss(net, batch)
    assert set(losses) == {"loss"} and math.isfinite(losses["loss"].item())
    other = Batch(batch.images, ~batch.targets, 1.0, True)
    assert losses["loss"] != objective(None, held).loss(net, other)["loss"]
    assert isinstance(net, nn.Module)
