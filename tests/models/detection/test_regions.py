"""Features of regions: their level, order and precision."""

import torch
from torch import tensor
from torchvision.ops import roi_align

from models.detection.regions import batch_regions, level_of, pool_regions


def test_regions_twice_as_large_use_the_next_level():
    sides = tensor([10.0, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert level_of(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert level_of(tensor([[0, 0, 0, 0], [0, 0, 111.99999, 112], [0, 0, 111.99, 112]])).tolist() == [0, 1, 0]


def test_each_region_is_pooled_from_its_level_and_image_in_order():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 512 // s, 512 // s) for s in (4, 8, 16, 32, 64)]
    boxes = [tensor([[3.0, 5, 500, 490], [7, 8, 20, 30]]), tensor([[1.0, 2, 200, 130], [0, 0, 9, 9], [5, 5, 400, 200]])]
    pooled = pool_regions(maps, boxes, 7)
    for region, own, level in zip(batch_regions(boxes), pooled, (3, 0, 1, 0, 2), strict=True):
        expected = roi_align(maps[level], region[None], 7, 1 / 2 ** (level + 2), sampling_ratio=0, aligned=True)
        torch.testing.assert_close(own, expected[0])


def test_half_precision_is_pooled_in_full():
    maps = [torch.randn(1, 2, 64 // s, 64 // s, dtype=torch.bfloat16) for s in (4, 8, 16, 32, 64)]
    pooled = pool_regions(maps, [tensor([[1.3, 2.7, 20.1, 33.3]])], 7)
    torch.testing.assert_close(pooled, pool_regions([x.float() for x in maps], [tensor([[1.3, 2.7, 20.1, 33.3]])], 7))


def test_no_regions_have_the_shape_of_regions():
    maps = [torch.randn(1, 2, 64 // s, 64 // s, requires_grad=True) for s in (4, 8, 16, 32, 64)]
    pooled = pool_regions(maps, [torch.zeros(0, 4)], 14)
    assert pooled.shape == (0, 2, 14, 14) and pooled.requires_grad
