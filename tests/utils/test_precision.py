"""Which type a device computes in, and how float16 is scaled."""

import pytest
import torch

from utils.precision import choose_precision, relative_speed, warn_if_slower

CPU = torch.device("cpu")


def test_off_is_float32():
    precision = choose_precision(CPU, False, "auto")
    assert str(precision) == "float32" and not precision.scaler().is_enabled()
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("found", [{"avx512_bf16": True}, {"amx_bf16": True}, {}])
def test_auto_follows_the_hardware(monkeypatch, caplog, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision(CPU, True, "auto").dtype == (torch.bfloat16 if found else torch.float32)
    assert not caplog.records


@pytest.mark.parametrize(("speed", "warned"), [(1 / 32, True), (1.5, False)])
def test_a_dtype_that_is_slower_is_used_with_one_warning(monkeypatch, caplog, speed, warned):
    monkeypatch.setattr("utils.precision.relative_speed", lambda dtype: speed)
    warn_if_slower.cache_clear()
    assert {choose_precision(CPU, True, "bfloat16").dtype for _ in range(2)} == {torch.bfloat16}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert not warned or ("bfloat16" in caplog.text and " 32 times as long" in caplog.text)
    warn_if_slower.cache_clear()


def test_the_speed_is_the_ratio_of_medians(monkeypatch):
    clock = iter([0.0, 9.0, 9.0, 10.0, *(t for n in range(5) for t in (0.0, 2.0, 3.0, 11.0))])  # the first is left out
    monkeypatch.setattr("utils.precision.time.perf_counter", lambda: next(clock))
    assert relative_speed(torch.bfloat16) == 0.25


@pytest.mark.parametrize(("name", "scaled"), [("bfloat16", False), ("float16", True)])
def test_a_named_type_is_taken(name, scaled):
    precision = choose_precision(CPU, True, name)
    assert str(precision) == f"mixed {name}" and precision.scaler().is_enabled() == scaled
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
