"""Which type a device computes in, and how float16 is scaled."""

import pytest
import torch

from utils.precision import choose_precision

CPU = torch.device("cpu")


def test_off_is_float32():
    precision = choose_precision(CPU, False, "auto")
    assert str(precision) == "float32" and not precision.scaler().is_enabled()
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("found", [{"avx512_bf16": True}, {"amx_bf16": True}, {}])
def test_auto_follows_the_hardware(monkeypatch, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision(CPU, True, "auto").dtype == (torch.bfloat16 if found else torch.float32)


@pytest.mark.parametrize(("name", "scaled"), [("bfloat16", False), ("float16", True)])
def test_a_named_type_is_taken(name, scaled):
    precision = choose_precision(CPU, True, name)
    assert str(precision) == f"mixed {name}" and precision.scaler().is_enabled() == scaled
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
