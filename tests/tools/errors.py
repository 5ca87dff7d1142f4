"""Checks errors by what they blame, not by their wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from utils.errors import RunError


@contextmanager
def raises(kind: type[RunError], subject: str | Path, *names: object) -> Iterator[Any]:
    """Expects an error of exactly this class that blames `subject` and states what is wrong with it.

    Args: subject: the key, option or file at fault; names: values, keys or files that the problem or the remedy must
        mention. They are data; a test that repeats a sentence breaks whenever the English improves.
    Yields: what `pytest.raises` yields.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    assert error.subject == str(subject), f"blames {error.subject!r}, not {str(subject)!r}: {error}"
    assert error.problem, error
    missing = [name for name in names if str(name) not in f"{error.problem} ({error.remedy})"]
    assert not missing, f"does not mention {missing}: {error}"
