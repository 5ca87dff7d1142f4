"""What one update did, as it is read back."""

import torch

from utils.training.update import Readback, Update

NAN = float("nan")


def update(*norms, total=1.0, scale=1.0, names=()):
    return Update(3, {}, 0.1, Readback(torch.tensor([*norms, total, scale])), names)


def test_the_outcome_is_read_in_order():
    one = update(3.0, 4.0, total=5.0, scale=1024.0, names=("a", "b"))
    assert (one.grad_norm, one.loss_scale, one.applied) == (5.0, 1024.0, True)
    assert not update(total=NAN).applied and not update(total=float("inf")).applied


def test_norms_are_those_of_the_parts_of_the_model():
    names = ("patch_embed.proj.weight", "patch_embed.proj.bias", "layers.0.blocks.1.mlp.fc1.weight")
    more = ("layers.1.norm.weight", "layers.1.norm.bias", "head.weight")
    norms = update(3.0, 4.0, 2.0, NAN, 1.0, 7.0, names=(*names, *more)).stage_norms()
    assert list(norms) == ["patch_embed", "layers.0", "layers.1", "head"]
    assert (norms["patch_embed"], norms["layers.0"], norms["head"]) == (5.0, 2.0, 7.0)
    assert norms["layers.1"] != norms["layers.1"]
