"""The SimMIM loss against a plain computation."""

import pytest
import torch

from tasks.simmim.reconstruction import masked_error, neighbourhood

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
