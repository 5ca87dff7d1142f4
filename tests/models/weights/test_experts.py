"""Released files of mixtures of experts are loaded; misfits are reported in one line."""

import pytest
import torch

from models.attention import log_coordinates
from models.moe.routing import RoutingOptions
from models.weights.checks import WrongModelError
from models.weights.load import load_contents
from tests.models.weights.conftest import filled
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.checkpoints.downloads import read_weights
from utils.errors import CheckpointError

EXPERTS = ".experts.batched_"


def write_slices(folder, model, ranks):
    """Writes the files of a model whose four experts are sliced over `ranks` ranks each, as tutel's older versions."""
    state = model.state_dict()
    layers = {name.partition(EXPERTS)[0] for name in state if EXPERTS in name}
    for rank in range(4 * ranks):
        expert, number = divmod(rank, ranks)
        own = {f"{layer}._num_global_experts": torch.tensor(4) for layer in layers}
        for name, value in state.items():
            if EXPERTS in name:
                value = value[expert : expert + 1]
                value = value if name.endswith("fc2_bias") else value.chunk(ranks, 1)[number]
                value = value[:, None] if value.ndim == 2 else value
            own[name] = value.clone()
        tables = {f"layers.{i}.blocks.0.attn.relative_coords_table": log_coordinates(4, 0) for i in (0, 1)}
        own |= {name: table.view(1, 7, 7, 2) for name, table in tables.items()}
        torch.save({"model": own}, folder / f"moe.pth.rank{rank}")
    return str(folder / "moe.pth")


@pytest.mark.parametrize("cosine", [False, True])
def test_files_of_every_rank_load_into_one_model(tmp_path, cosine):
    """8 files, whatever the number of ranks here: each builds the model whole."""
    options = {"routing": RoutingOptions(cosine=cosine, capacity_factor=0.0)}
    source, target = filled("swin_moe", **options).eval(), small("swin_moe", **options).eval()
    name = write_slices(tmp_path, source, 2)
    line = load_contents(target, read_weights(name), name)
    assert f"{len(source.state_dict())} tensors from {name}" in line
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(source(images), target(images))


def test_another_number_of_experts_is_rejected_with_both_and_the_key():
    for experts in (2, 8):
        with raises(
            CheckpointError, "x.pth", f"4 experts per layer, the model {experts}", "MODEL.SWIN_MOE.NUM_EXPERTS 4"
        ):
            load_contents(small("swin_moe", num_experts=experts), filled("swin_moe").state_dict(), "x.pth")


def test_another_router_is_rejected_with_the_key():
    cosine = filled("swin_moe", routing=RoutingOptions(cosine=True)).state_dict()
    with raises(CheckpointError, "x", "cosine", "linear", "MODEL.SWIN_MOE.COSINE_ROUTER True"):
        load_contents(small("swin_moe"), cosine, "x")


def test_dense_and_sparse_models_do_not_take_each_others_files():
    dense = filled("swin_moe", moe_blocks=()).state_dict()
    with raises(WrongModelError, "x", "the file has no experts, the model has them in 2 blocks", "--cfg"):
        load_contents(small("swin_moe"), dense, "x")
    with raises(WrongModelError, "x", "the model has no experts, the file has them in 2 blocks", "--cfg"):
        load_contents(small("swin_moe", moe_blocks=()), filled("swin_moe").state_dict(), "x")
    load_contents(small("swin_moe", moe_blocks=()), dense, "x")


@pytest.mark.parametrize(("family", "title"), [("swin", "Swin V1"), ("swinv2", "Swin V2")])
@pytest.mark.parametrize("pretraining", [False, True])
def test_a_dense_swin_and_a_simmim_encoder_are_rejected(family, title, pretraining):
    state = filled(family).state_dict()
    if pretraining:
        state = {f"encoder.{name}": value for name, value in state.items() if "head" not in name}
        state |= {"encoder.mask_token": torch.zeros(1, 1, 8), "decoder.0.weight": torch.zeros(3)}
    with raises(CheckpointError, "x.pth", f"contains a {title}", "is a Swin-MoE", f"MODEL.TYPE {family}") as error:
        load_contents(small("swin_moe"), {"model": state}, "x.pth")
    assert error.value.exit_code == 4


def test_fine_tuning_takes_everything_but_the_head():
    source, target = filled("swin_moe"), small("swin_moe", num_classes=3)
    line = load_contents(target, source.state_dict(), "x", head_for=list("abc"))
    assert "head re-initialised to zero for 3 classes" in line
    assert torch.equal(target.norm.weight, source.norm.weight)
