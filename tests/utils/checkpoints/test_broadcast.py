"""What the main rank read, on all ranks. tests/utils/distributed/test_world.py does it with two processes."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.tools.errors import raises
from utils.checkpoints.broadcast import read_once
from utils.distributed.world import World
from utils.errors import CheckpointError

CONTENTS: dict[str, Any] = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"params": [0], "betas": (0.9, 0.99)}]},
    "counters": {"epoch": 3},
    "empty": [torch.empty(0, 2), None, {}, ()],
}


@dataclass(frozen=True)
class Wire(World):
    """A rank of two; what the main rank sends, the other one receives in the same order."""

    size: int = 2
    sent: deque = field(default_factory=deque)

    def main_only(self, produce: Callable[[], Any]) -> Any:
        if self.is_main:
            self.sent.append(produce())
            return self.sent[-1]
        return self.sent.popleft()

    def broadcast_tensor(self, tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        if self.is_main:
            self.sent.append(tensor.clone())
        else:
            got = self.sent.popleft()
            assert (got.shape, got.dtype) == (tensor.shape, tensor.dtype)
            tensor.copy_(got)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_a_single_process_reads_for_itself():
    assert read_once(World(), lambda: CONTENTS) is CONTENTS


def test_nested_contents_arrive_as_they_were_read():
    main = Wire()
    assert same(read_once(main, lambda: CONTENTS), CONTENTS)
    assert same(read_once(Wire(1, sent=main.sent), lambda: pytest.fail("another rank reads")), CONTENTS)
    assert not main.sent


def test_tensors_are_sent_one_by_one_and_not_with_the_outline():
    main = Wire()
    read_once(main, lambda: {"a": torch.zeros(1000), "b": [torch.zeros(1000)]})
    outline, *tensors = main.sent
    assert [tuple(each.shape) for each in tensors] == [(1000,), (1000,)]
    assert not any(isinstance(each, torch.Tensor) for each in (outline["a"], *outline["b"]))


def test_a_view_is_sent_without_what_it_is_a_view_of():
    main, whole = Wire(), torch.arange(12.0).reshape(3, 4)
    ours = read_once(main, lambda: {"row": whole[1], "column": whole[:, 1], "turned": whole.T})
    theirs = read_once(Wire(1, sent=main.sent), lambda: None)
    assert same(ours, theirs) and theirs["column"].tolist() == [1.0, 5.0, 9.0]


def test_plain_values_need_no_tensor():
    main = Wire()
    for value in (("why", None, {}), "text", None):
        assert read_once(main, lambda value=value: value) == value
        assert read_once(Wire(1, sent=main.sent), lambda: 1 / 0) == value


def test_an_error_of_the_main_rank_is_raised_there():
    def fail():
        raise CheckpointError("a.pth", "the file is corrupt")

    with raises(CheckpointError, "a.pth"):
        read_once(Wire(), fail)
