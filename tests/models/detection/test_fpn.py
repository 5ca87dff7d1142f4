"""The feature pyramid against torchvision's, which computes the same under other names."""

import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from models.detection.fpn import FPN


def test_outputs_equal_those_of_torchvision():
    torch.manual_seed(0)
    ours = FPN((4, 8, 16), channels=6)
    theirs = FeaturePyramidNetwork([4, 8, 16], 6, LastLevelMaxPool())
    names = {"lateral_convs.": "inner_blocks.", "fpn_convs.": "layer_blocks.", ".conv.": ".0."}
    for name, value in ours.state_dict().items():
        for own, other in names.items():
            name = name.replace(own, other)
        theirs.state_dict()[name].copy_(value.normal_())
    maps = [torch.randn(2, 4, 13, 18), torch.randn(2, 8, 7, 9), torch.randn(2, 16, 4, 5)]
    expected = theirs({str(i): x for i, x in enumerate(maps)})
    outputs = ours(maps)
    assert [tuple(x.shape[2:]) for x in outputs] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    for own, other in zip(outputs, expected.values(), strict=True):
        torch.testing.assert_close(own, other)


def test_names_and_initial_weights():
    state = FPN((96, 192, 384, 768)).state_dict()
    assert tuple(state["lateral_convs.3.conv.weight"].shape) == (256, 768, 1, 1)
    assert tuple(state["fpn_convs.0.conv.weight"].shape) == (256, 256, 3, 3)
    assert not any(state[f"fpn_convs.{i}.conv.bias"].any() for i in range(4))
    bound = (6 / (2 * 256 * 9)) ** 0.5
    assert 0.99 * bound < state["fpn_convs.0.conv.weight"].abs().max() <= bound
