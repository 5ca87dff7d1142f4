"""Checks name the tensor, the file and the remedy."""

import pickle

import pytest
import torch

from models.weights.checks import (
    WrongModelError,
    check_finite,
    check_kinds,
    check_names,
    check_shapes,
    misfits,
    trained_as,
)
from tests.tools.errors import raises
from utils.errors import CheckpointError


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fault_21_the_first_weight_that_is_not_finite_is_named(bad, dtype):
    tensors = {"good": torch.ones(2), "count": torch.ones(2, dtype=torch.long), "bad": torch.ones(3, dtype=dtype)}
    check_finite(tensors, "x.pth")
    tensors["bad"][1] = bad
    tensors["worse"] = tensors["bad"]
    with raises(CheckpointError, "x.pth", "bad is not finite"):
        check_finite(tensors, "x.pth")


def test_weights_of_one_byte_are_compared_too():
    value = torch.ones(3).to(torch.float8_e4m3fn)
    check_finite({"a": value}, "x.pth")
    value.view(torch.uint8)[1] = 0x7F  # NaN
    with raises(CheckpointError, "x.pth", "a is not finite"):
        check_finite({"a": value}, "x.pth")


def test_complex_and_integer_weights_are_named():
    with raises(CheckpointError, "x.pth", "a is complex"):
        check_finite({"a": torch.ones(2, dtype=torch.complex64)}, "x.pth")
    wanted = {"weight": torch.ones(2), "num_batches_tracked": torch.tensor(1)}
    check_kinds({"weight": torch.ones(2).half(), "num_batches_tracked": torch.tensor(7)}, wanted, "x.pth")
    check_kinds({}, wanted, "x.pth")  # missing names are checked by check_names
    with raises(CheckpointError, "x.pth", "weight ", "int32"):
        check_kinds({"weight": torch.ones(2, dtype=torch.int32)}, wanted, "x.pth")


def test_missing_and_unexpected_names_are_counted_and_the_first_ten_named():
    check_names(["a", "b"], ["b", "a"], "x.pth")
    with raises(WrongModelError, "x.pth", "1 missing: c; 2 unexpected: b, d", "--cfg"):
        check_names(["a", "b", "d"], ["a", "c"], "x.pth")
    with raises(WrongModelError, "x.pth", "12 missing: layer0, ", "layer9, ...") as caught:
        check_names([], [f"layer{i}" for i in range(12)], "x.pth")
    assert "unexpected" not in caught.value.problem


def test_tensors_of_another_shape_are_listed():
    given = {"same": torch.ones(2), "other": torch.ones(2, 1), "unexpected": torch.ones(3)}
    wanted = {"same": torch.zeros(2), "other": torch.ones(2), "missing": torch.ones(4)}
    assert misfits(given, wanted) == ["other"]
    check_shapes(given, wanted, [], "x.pth")
    with raises(WrongModelError, "x.pth", "1 of a different shape: other (2, 1) for (2,)"):
        check_shapes(given, wanted, ["other"], "x.pth")


def test_the_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(WrongModelError("x.pth", "a problem")))
    assert type(error) is WrongModelError and error.args == WrongModelError("x.pth", "a problem").args
    assert (error.subject, error.problem) == ("x.pth", "a problem") and "--cfg" in error.remedy


def test_the_model_of_a_file_is_recognised_by_its_configuration_or_name():
    config = "MODEL: {NAME: mine, TYPE: swin, SWIN: {EMBED_DIM: 48, DEPTHS: [2, 2]}}"
    assert trained_as({"config": config}, "last.pth") == ("mine (swin, EMBED_DIM 48, DEPTHS [2, 2])", "its --cfg")
    name = "swin_small_patch4_window7_224"
    assert trained_as({}, f"/cache/{name}.pth") == (name, f"--cfg {name}")


@pytest.mark.parametrize("contents", [{}, {"config": 3}, {"config": "a: ["}, {"config": "MODEL: 3"}, {"config": ""}])
def test_other_files_are_not_recognised(contents):
    assert trained_as(contents, "last.pth") is None
