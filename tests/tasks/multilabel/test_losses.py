"""Losses of images with several labels equal torch's and timm's."""

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel

from tasks.multilabel.losses import LossOptions, MultiLabelLoss, positive_weights
from tests.tasks.multilabel.drawn import COUNT, drawn


def test_losses_are_those_of_torch_and_timm():
    logits, targets = drawn()
    torch.testing.assert_close(
        MultiLabelLoss(LossOptions())(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    )
    smooth = MultiLabelLoss(LossOptions(smoothing=0.2))(logits, targets)
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1))
    own = MultiLabelLoss(LossOptions("asymmetric", 3.0, 0.5, 0.1))(logits.bfloat16(), targets)
    torch.testing.assert_close(own, AsymmetricLossMultiLabel(3.0, 0.5, 0.1)(logits.bfloat16(), targets))


def test_rare_labels_weigh_more_up_to_a_limit():
    assert positive_weights((50, 10, 0, 90), 100, 8.0).tolist() == [1.0, 8.0, 8.0, 1.0]
    logits, targets = drawn()
    weights = torch.tensor([1.0, 2.0, 5.0, 5.0])
    counts = (30, 20, 5, 0)
    for name in ("bce", "asymmetric"):
        own = MultiLabelLoss(LossOptions(name, most=5.0), counts, COUNT)(logits, targets)
        expected = {
            "bce": F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights),
            "asymmetric": AsymmetricLossMultiLabel(pos_weight=weights)(logits, targets),
        }[name]
        torch.testing.assert_close(own, expected)
    samples = torch.linspace(0, 2, COUNT)
    own = MultiLabelLoss(LossOptions(), sample_weights=samples)(logits, targets, range(COUNT))
    terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    torch.testing.assert_close(own, (terms * samples).mean())
