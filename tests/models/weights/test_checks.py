"""Checks name the tensor, the file and the remedy."""

import pytest
import torch

from models.weights.checks import WrongModelError, check_finite, check_kinds, check_names, misfits, trained_as
from utils.errors import CheckpointError


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fault_21_the_first_weight_that_is_not_finite_is_named(bad, dtype):
    tensors = {"good": torch.ones(2), "count": torch.ones(2, dtype=torch.long), "bad": torch.ones(3, dtype=dtype)}
    check_finite(tensors, "x.pth")
    tensors["bad"][1] = bad
    tensors["worse"] = tensors["bad"]
    with pytest.raises(CheckpointError, match=r"not finite: bad of x\.pth: the file is corrupt or its training"):
        check_finite(tensors, "x.pth")


def test_complex_and_integer_weights_are_named():
    with pytest.raises(CheckpointError, match=r"is complex: a of x\.pth"):
        check_finite({"a": torch.ones(2, dtype=torch.complex64)}, "x.pth")
    wanted = {"weight": torch.ones(2), "num_batches_tracked": torch.tensor(1)}
    check_kinds({"weight": torch.ones(2).half(), "num_batches_tracked": torch.tensor(7)}, wanted, "x.pth")
    check_kinds({}, wanted, "x.pth")  # missing names are check_names' business
    with pytest.raises(CheckpointError, match=r"an integer weight \(int32\): weight of x\.pth: save it as floating"):
        check_kinds({"weight": torch.ones(2, dtype=torch.int32)}, wanted, "x.pth")


def test_missing_and_unexpected_names_are_counted_and_the_first_ten_named():
    check_names(["a", "b"], ["b", "a"], "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: 1 missing: c; 2 unexpected: b, d: use the --cfg"):
        check_names(["a", "b", "d"], ["a", "c"], "x.pth")
    with pytest.raises(CheckpointError) as caught:
        check_names([], [f"layer{i}" for i in range(12)], "x.pth")
    assert "12 missing: layer0, " in str(caught.value) and "layer9, ...:" in str(caught.value)
    assert "unexpected" not in str(caught.value)


def test_tensors_of_another_shape_are_listed():
    given = {"same": torch.ones(2), "other": torch.ones(2, 1), "unexpected": torch.ones(3)}
    wanted = {"same": torch.zeros(2), "other": torch.ones(2), "missing": torch.ones(4)}
    assert misfits(given, wanted) == ["other"]


def test_the_message_names_what_the_file_and_the_remedy():
    assert str(WrongModelError("x.pth", "a reason")) == (
        "the weights do not belong to this model: x.pth: a reason: use the --cfg they were trained with"
    )


def test_a_file_knows_whose_weights_it_has():
    config = "MODEL: {NAME: mine, TYPE: swin, SWIN: {EMBED_DIM: 48, DEPTHS: [2, 2]}}"
    assert trained_as({"config": config}, "last.pth") == ("mine (swin, EMBED_DIM 48, DEPTHS [2, 2])", "its --cfg")
    name = "swin_small_patch4_window7_224"
    assert trained_as({}, f"/cache/{name}.pth") == (name, f"--cfg {name}")


@pytest.mark.parametrize("contents", [{}, {"config": 3}, {"config": "a: ["}, {"config": "MODEL: 3"}, {"config": ""}])
def test_other_files_do_not(contents):
    assert trained_as(contents, "last.pth") is None
