"""Sets of files in the layout of the released Swin-MoE, made here, and what is wrong with sets."""

import errno
import os

import pytest
import torch

from tests.tools.errors import raises
from utils.checkpoints.files import read_checkpoint
from utils.checkpoints.rank_files import find_rank_files, read_rank_files
from utils.errors import CheckpointError

EXPERTS, CHANNELS, HIDDEN = 4, 5, 20
LAYER = "layers.0.blocks.1.mlp._moe_layer"


def model(cosine=False):
    """A model of one dense MLP and one mixture of experts, all values different."""
    torch.manual_seed(0)
    router = {"sim_matrix": torch.randn(7, EXPERTS)} if cosine else {"wg.weight": torch.randn(EXPERTS, CHANNELS)}
    experts = {
        "batched_fc1_w": torch.randn(EXPERTS, HIDDEN, CHANNELS),
        "batched_fc2_w": torch.randn(EXPERTS, HIDDEN, CHANNELS),
        "batched_fc1_bias": torch.randn(EXPERTS, HIDDEN),
        "batched_fc2_bias": torch.randn(EXPERTS, CHANNELS),
    }
    return {
        "layers.0.blocks.0.mlp.fc1.weight": torch.randn(HIDDEN, CHANNELS),
        **{f"{LAYER}.gates.0.{name}": value for name, value in router.items()},
        **{f"{LAYER}.experts.{name}": value for name, value in experts.items()},
    }


def part_of(name, value, rank, local, older):
    """What a rank's file has of an expert tensor: experts r * n to r * n + n - 1, or one slice of an expert."""
    if local > 0:
        own = value[rank * local : (rank + 1) * local]
    else:
        expert, number = divmod(rank, -local)
        own = value[expert : expert + 1]
        if name.endswith("fc2_bias"):
            width = -(-CHANNELS // -local)
            padded = torch.cat([own, torch.full((1, -local), 99.0)], 1)  # what is beyond the channels has no meaning
            own = own if older else padded[:, number * width : (number + 1) * width]
        else:
            own = own.chunk(-local, 1)[number]
    return own[:, None] if older and "bias" in name else own


def write(folder, state, local, *, master=False, older=False):
    """Writes the set m.pth as the original would."""
    ranks = EXPERTS // local if local > 0 else -local * EXPERTS
    shared = {name: value for name, value in state.items() if ".experts." not in name}
    for rank in range(ranks):
        own = {n: part_of(n, v, rank, local, older).clone() for n, v in state.items() if ".experts." in n}
        own |= {f"{LAYER}._num_global_experts": torch.tensor(EXPERTS)} | ({} if master else shared)
        torch.save({"model": own, "optimizer": {"state": {}}, "epoch": 3}, folder / f"m.pth.rank{rank}")
    if master:
        torch.save({"model": shared}, folder / "m.pth.master")
    return folder / "m.pth"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("local", [1, 2, 4, -2, -4])
def test_a_set_is_read_as_one_model(tmp_path, local, master, older):
    state = model(cosine=master)
    path = write(tmp_path, state, local, master=master, older=older)
    contents = read_checkpoint(path)
    read = {name: value.flatten(1) if "bias" in name else value for name, value in contents["model"].items()}
    read.pop(f"{LAYER}._num_global_experts", None)
    assert set(contents) == {"model"} and read.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(read[name], value), name


def test_more_than_ten_ranks_are_taken_in_order(tmp_path):
    state = model()
    path = write(tmp_path, state, -5)
    assert len(find_rank_files(path).ranks) == 20
    read = read_checkpoint(tmp_path / "m.pth.rank7")["model"]  # one of them stands for all
    assert torch.equal(read[f"{LAYER}.experts.batched_fc1_w"], state[f"{LAYER}.experts.batched_fc1_w"])


def test_a_single_file_of_the_whole_model(tmp_path):
    torch.save({"model": model()}, tmp_path / "m.pth.global")
    assert read_checkpoint(tmp_path / "m.pth")["model"].keys() == model().keys()
    assert read_checkpoint(tmp_path / "m.pth.global")["model"].keys() == model().keys()


def test_an_ordinary_file_and_nothing_are_no_set(tmp_path):
    write(tmp_path, model(), 1)
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    assert find_rank_files(tmp_path / "m.pth") is None and "a" in read_checkpoint(tmp_path / "m.pth")
    assert find_rank_files(tmp_path / "n.pth") is None and find_rank_files(tmp_path / "p.pth") is None
    with raises(CheckpointError, tmp_path / "n.pth", os.strerror(errno.ENOENT)):
        read_checkpoint(tmp_path / "n.pth")
    (tmp_path / "[m].pth.rank0").write_bytes((tmp_path / "m.pth.rank0").read_bytes())
    assert list(find_rank_files(tmp_path / "[m].pth").ranks) == [0]


@pytest.mark.parametrize(
    ("local", "gone", "named"),
    [
        (1, [2], "rank2"),
        (1, [0], "rank0"),
        (1, [3], "rank3"),
        (2, [1], "rank1"),
        (-2, [7], "rank7"),
        (-2, [4, 5, 6, 7], "rank4"),
    ],
)
def test_a_missing_file_is_named(tmp_path, local, gone, named):
    path = write(tmp_path, model(), local, master=True)
    for rank in gone:
        (tmp_path / f"m.pth.rank{rank}").unlink()
    with raises(CheckpointError, tmp_path / f"m.pth.{named}", "missing"):
        read_checkpoint(path)


def test_what_all_ranks_share_alone_is_not_enough(tmp_path):
    torch.save({"model": model()}, tmp_path / "m.pth.master")
    for name in ("m.pth", "m.pth.master"):
        with raises(CheckpointError, tmp_path / "m.pth.rank0", "missing"):
            read_checkpoint(tmp_path / name)


def test_too_many_files_and_files_of_another_model_are_refused(tmp_path):
    path = write(tmp_path, model(), 2)
    torch.save(torch.load(tmp_path / "m.pth.rank1"), tmp_path / "m.pth.rank2")
    with raises(CheckpointError, tmp_path / "m.pth.rank*", "3 files for 4 experts", "2 expected"):
        read_checkpoint(path)
    (tmp_path / "m.pth.rank2").unlink()
    other = torch.load(tmp_path / "m.pth.rank1")
    other["model"][f"{LAYER}.experts.batched_fc2_w"] = torch.zeros(2, HIDDEN, 9)
    torch.save(other, tmp_path / "m.pth.rank1")
    with raises(CheckpointError, tmp_path / "m.pth.rank*", "Sizes of tensors"):
        read_checkpoint(path)
    torch.save({"model": 3}, tmp_path / "m.pth.rank1")
    with raises(CheckpointError, tmp_path / "m.pth.rank1"):
        read_checkpoint(path)


@pytest.mark.parametrize("leaf", ["fc1_w", "fc2_w", "fc1_bias", "fc2_bias"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 5, 7)])
def test_experts_of_any_shape_are_read_or_refused(tmp_path, leaf, shape):
    path = write(tmp_path, model(), 2)
    for rank in range(2):
        other = torch.load(tmp_path / f"m.pth.rank{rank}")
        other["model"][f"{LAYER}.experts.batched_{leaf}"] = torch.zeros(shape)
        torch.save(other, tmp_path / f"m.pth.rank{rank}")
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert error.subject == str(tmp_path / "m.pth.rank*")


def test_without_a_dense_mlp_slices_follow_from_the_number_of_files(tmp_path):
    state = {name: value for name, value in model().items() if "fc1.weight" not in name}
    read = read_rank_files(find_rank_files(write(tmp_path, state, -2)))["model"]
    assert torch.equal(read[f"{LAYER}.experts.batched_fc2_bias"], state[f"{LAYER}.experts.batched_fc2_bias"])
