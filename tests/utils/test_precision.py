"""Which type a device computes in, and how float16 is scaled."""

import pytest
import torch

from utils.precision import choose_precision, relative_speed

CPU = torch.device("cpu")


def test_off_is_float32():
    precision = choose_precision(CPU, False, "auto")
    assert str(precision) == "float32" and not precision.scaler().is_enabled()
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("found", "speed", "dtype"),
    [
        ({"avx512_bf16": True}, 1.5, torch.bfloat16),
        ({"amx_bf16": True}, 4.0, torch.bfloat16),
        ({"avx512_bf16": True}, 0.9, torch.float32),
        ({}, 1.5, torch.float32),  # a lucky measurement
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it_and_is_faster(monkeypatch, caplog, found, speed, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision(CPU, True, "auto", lambda _: speed).dtype == dtype
    assert not caplog.records


@pytest.mark.parametrize(("speed", "warned"), [(1 / 32, True), (1.5, False)])
def test_a_type_that_is_slower_is_used_with_a_warning(caplog, speed, warned):
    assert choose_precision(CPU, True, "bfloat16", lambda _: speed).dtype == torch.bfloat16
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert not warned or ("bfloat16" in caplog.text and " 32 times as long" in caplog.text)


def test_speeds_are_measured_once_and_relative_to_float32(monkeypatch):
    clock = iter([0.0, 9.0, 9.0, 10.0, *(t for n in range(5) for t in (0.0, 2.0, 3.0, 11.0))])  # the first is left out
    monkeypatch.setattr("utils.precision.time.perf_counter", lambda: next(clock))
    relative_speed.cache_clear()
    assert [relative_speed(torch.bfloat16) for _ in range(2)] == [0.25, 0.25]
    relative_speed.cache_clear()


@pytest.mark.parametrize(("name", "scaled"), [("bfloat16", False), ("float16", True)])
def test_a_named_type_is_taken(name, scaled):
    precision = choose_precision(CPU, True, name)
    assert str(precision) == f"mixed {name}" and precision.scaler().is_enabled() == scaled
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
