"""Training checkpoints of the original: groups, order, epoch."""

import pytest
import torch

from tasks.registry import new_task
from tests.tools.builders import CPU, batches, configured, objective, plan, shape, small, train_state
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import CheckpointError
from utils.precision import choose_precision
from utils.runs.original_checkpoints import is_original, newest_original, translate
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions


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
        "epoch": 1, "step": 0, "update": 10, "skipped": 0, "skipped_in_row": 0, "samples": 40, "evaluated_at": 10,
    }  # fmt: skip
    state.load_state_dict(saved, lambda *_: "", "x")
    train_epoch(state, batches(1), objective(), plan(), lambda update: None)
    assert all(p.isfinite().all() for p in state.model.parameters())


def restored(contents, state, origin):
    """Returns the first value of the first moment of every parameter, by name."""
    saved = translate(contents, state, plan(), origin)
    state.load_state_dict(saved, lambda *_: "", "x")
    return {name: state.optimizer.state[p]["exp_avg"].flatten()[0].item() for name, p in state.model.named_parameters()}


def theirs(model, groups):
    """A checkpoint whose optimizer has groups of names, after one update with the gradient 1, 2, ... of each tensor."""
    names = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": [names[name] for name in group]} for group in groups], lr=1e-3)
    for index, parameter in enumerate(names.values()):
        parameter.grad = torch.full_like(parameter, float(index + 1))
    optimizer.step()
    expected = {name: pytest.approx(0.1 * (index + 1)) for index, name in enumerate(names)}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": {}, "epoch": 0}, expected


@pytest.mark.parametrize("version", [1, 2])
def test_moments_of_a_pre_training(tmp_path, version):
    """The original does not decay the mask token there, but the tables and scales of the encoder."""

    def pre_training():
        torch.manual_seed(0)
        encoder = {"SWIN" if version == 1 else "SWINV2": {"EMBED_DIM": 16, "DEPTHS": [1, 1], "NUM_HEADS": [1, 2]}}
        overrides = {f"MODEL__{section}__{key}": v for section, keys in encoder.items() for key, v in keys.items()}
        kind = "swin" if version == 1 else "swinv2"
        cfg = configured(TASK="simmim", MODEL__TYPE=kind, DATA__IMG_SIZE=64, DATA__MASK_PATCH_SIZE=16, **overrides)
        return new_task(cfg, World()).new_model(None)

    model = pre_training()
    names = dict(model.named_parameters())
    plain = [n for n, p in names.items() if p.ndim == 1 or n.endswith(".bias") or n == "encoder.mask_token"]
    contents, expected = theirs(model, [[n for n in names if n not in plain], plain])
    assert restored(contents, train_state(pre_training()), tmp_path) == expected


@pytest.mark.parametrize("ape", [False, True])
@pytest.mark.parametrize("layer_decay", [0.8, 1.0])
def test_moments_of_a_fine_tuning_with_layer_wise_decay(tmp_path, layer_decay, ape):
    """A group per layer and kind, in the order in which the model's parameters lead to them."""
    options = OptimizerOptions(layer_decay=layer_decay)
    model, groups = small(ape=ape), {}
    for name, p in model.named_parameters():
        layer = name.split(".")
        kind = p.ndim == 1 or name.endswith((".bias", "relative_position_bias_table", "absolute_pos_embed"))
        number = {"patch_embed": 0, "layers": 1}.get(layer[0], 99)
        if number == 1:
            merging = layer[2] == "downsample"
            before = sum(len(stage.blocks) for stage in model.layers[: int(layer[1]) + merging])
            number = before + (0 if merging else int(layer[3]) + 1)
        groups.setdefault((number, kind), []).append(name)
    contents, expected = theirs(model, groups.values())
    assert len(groups) > 4 and restored(contents, train_state(small(ape=ape), optimizer=options), tmp_path) == expected


def test_steps_that_are_counted_in_the_groups(tmp_path):
    """As apex's optimizers do."""
    contents, names = original()
    for values in contents["optimizer"]["state"].values():
        del values["step"]
    for group in contents["optimizer"]["param_groups"]:
        group["step"] = 7
    state = train_state(small(ape=True), optimizer=OptimizerOptions("fused_adam"))
    assert len(restored(contents, state, tmp_path)) == len(names)
    assert {int(values["step"]) for values in state.optimizer.state.values()} == {7}
    lamb = train_state(small(ape=True), optimizer=OptimizerOptions("fused_lamb"))
    restored(contents, lamb, tmp_path)
    assert {int(group["step"]) for group in lamb.optimizer.param_groups} == {7}


def test_another_kind_of_optimizer_is_refused(tmp_path):
    contents, _ = original()
    state = train_state(small(ape=True), optimizer=OptimizerOptions("sgd"))
    with raises(CheckpointError, tmp_path, "Adam,", "SGD", "TRAIN.OPTIMIZER.NAME to adamw"):
        translate(contents, state, plan(), tmp_path)
    for number in contents["optimizer"]["state"]:
        contents["optimizer"]["state"][number] = {"momentum_buffer": contents["optimizer"]["state"][number]["exp_avg"]}
    assert translate(contents, state, plan(), tmp_path)["optimizer_name"] == "SGD"
    with raises(CheckpointError, tmp_path, "SGD,", "AdamW", "TRAIN.OPTIMIZER.NAME to sgd"):
        translate(contents, train_state(small(ape=True)), plan(), tmp_path)


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    contents, _ = original()
    state = train_state(small(ape=True))
    contents["optimizer"]["param_groups"][0]["params"].pop()
    with raises(CheckpointError, tmp_path, "groups of", "--pretrained"):
        translate(contents, state, plan(), tmp_path)
    contents, _ = original()
    contents["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    with raises(CheckpointError, tmp_path, "exp_avg of ", "(3,)"):
        translate(contents, state, plan(), tmp_path)


def test_what_is_an_original_checkpoint_and_which_is_the_newest(tmp_path):
    contents, _ = original()
    assert is_original(contents) and not is_original({"model": {}}) and not is_original({**contents, "counters": {}})
    assert newest_original(tmp_path) is None
    for name in ("ckpt_epoch_9.pth", "ckpt_epoch_10.pth", "ckpt_epoch_11.pth.tmp", "best.pth"):
        (tmp_path / name).touch()
    assert newest_original(tmp_path).name == "ckpt_epoch_10.pth"


def test_names_of_wrapped_models_and_steps_that_are_plain_numbers(tmp_path):
    """As DistributedDataParallel and earlier versions of torch leave them; buffers have no moments."""
    contents, _ = original()
    state = train_state(small(ape=True))
    expected = translate(contents, state, plan(), tmp_path)["optimizer"]["state"]
    buffers = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    contents["model"] = {f"module.{name}": value for name, value in {**buffers, **contents["model"]}.items()}
    for values in contents["optimizer"]["state"].values():
        values["step"] = int(values["step"])
    found = translate(contents, state, plan(), tmp_path)["optimizer"]["state"]
    assert expected.keys() == found.keys()
    for index, values in expected.items():
        assert all(torch.equal(value, found[index][kind]) for kind, value in values.items())


def test_the_position_follows_from_the_epoch_and_the_scaler_is_kept_for_float16(tmp_path):
    contents, _ = original()
    contents |= {"epoch": 6, "scaler": {"scale": 4.0}}
    saved = translate(contents, train_state(small(ape=True)), plan(shape(43)), tmp_path)
    assert (saved["counters"]["epoch"], saved["counters"]["update"], saved["counters"]["samples"]) == (7, 77, 301)
    assert saved["best"] == {"value": None, "epoch": -1} and saved["scaler"] is None
    half = train_state(small(ape=True), choose_precision(CPU, True, "float16"))
    assert translate(contents, half, plan(), tmp_path)["scaler"] == {"scale": 4.0}
