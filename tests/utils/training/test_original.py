"""Training checkpoints of the original: groups, order, epoch."""

import pytest
import torch

from tests.builders import batches, objective, plan, small, train_state
from utils.errors import CheckpointError
from utils.training.loop import train_epoch
from utils.training.original import is_original, newest_original, translate


def original(family="swin"):
    """A checkpoint in the original's form, made by torch's optimizer with the original's two groups."""
    model = small(family, ape=family == "swin")
    names = dict(model.named_parameters())
    plain = ("relative_position_bias_table", "cpb_mlp", "logit_scale", "absolute_pos_embed")
    decayed = [n for n, p in names.items() if p.ndim > 1 and not any(word in n for word in plain)]
    rest = [n for n in names if n not in decayed]
    optimizer = torch.optim.AdamW([{"params": [names[n] for n in group]} for group in (decayed, rest)], lr=1e-3)
    for index, name in enumerate(names):
        names[name].grad = torch.full_like(names[name], float(index + 1))
    optimizer.step()
    contents = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {},
        "max_accuracy": 1.0,
        "scaler": {},
        "epoch": 0,
        "config": {},
    }
    return contents, list(names)


@pytest.mark.parametrize("family", ["swin", "swinv2", "swin_mlp"])
def test_moments_reach_their_own_parameters(family, tmp_path):
    contents, names = original(family)
    state = train_state(small(family, ape=family == "swin"))
    saved = translate(contents, state, plan(), tmp_path)
    by_id = {id(p): name for name, p in state.model.named_parameters()}
    members = [by_id[id(p)] for group in state.optimizer.param_groups for p in group["params"]]
    for index, name in enumerate(members):
        moment = saved["optimizer"]["state"][index]["exp_avg"]
        assert moment.flatten()[0].item() == pytest.approx(0.1 * (names.index(name) + 1)), name
    assert saved["counters"] == {
        "epoch": 1, "step": 0, "update": 10, "skipped": 0, "skipped_in_row": 0, "samples": 40,
    }  # fmt: skip
    state.load_state_dict(saved, lambda *_: "", "x")
    train_epoch(state, batches(1), objective(), plan(), lambda update: None)
    assert all(p.isfinite().all() for p in state.model.parameters())


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    contents, _ = original()
    state = train_state(small(ape=True))
    contents["optimizer"]["param_groups"][0]["params"].pop()
    with pytest.raises(CheckpointError, match="its optimizer has groups of .* pass it to --pretrained"):
        translate(contents, state, plan(), tmp_path)
    contents, _ = original()
    contents["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"exp_avg of .* has shape \(3,\)"):
        translate(contents, state, plan(), tmp_path)


def test_what_is_an_original_checkpoint_and_which_is_the_newest(tmp_path):
    contents, _ = original()
    assert is_original(contents) and not is_original({"model": {}}) and not is_original({**contents, "counters": {}})
    assert newest_original(tmp_path) is None
    for name in ("ckpt_epoch_9.pth", "ckpt_epoch_10.pth", "ckpt_epoch_11.pth.tmp", "best.pth"):
        (tmp_path / name).touch()
    assert newest_original(tmp_path).name == "ckpt_epoch_10.pth"
