"""Names of devices."""

import pytest

from utils.devices import parse_device


def test_a_number_is_that_of_a_gpu():
    assert [parse_device(name) for name in ("0", "cuda:1", "cuda", "mps", "cpu", "auto")] == [
        *("cuda:0", "cuda:1", "cuda", "mps", "cpu", "auto")
    ]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "0,1", "-1", ""])
def test_anything_else_is_refused(name):
    with pytest.raises(ValueError, match="one of auto"):
        parse_device(name)
