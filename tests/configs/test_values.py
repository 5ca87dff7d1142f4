"""Conversion of every kind of value, and rejected values."""

import pytest

from configs.values import AUTO, BOOL, FLOAT, INT, SIZE, TEXT, auto_or, kind_of, list_of, optional

REFUSED = (TypeError, ValueError, SyntaxError, OverflowError)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (INT, "12", 12),
        (INT, " 7.0", 7),
        (INT, "1e3", 1000),
        (INT, -3, -3),
        (INT, 2**63 - 1, 2**63 - 1),  # not through a float, which would round it
        (FLOAT, "2e-05", 2e-5),
        (FLOAT, 3, 3.0),
        (BOOL, "False", False),
        (BOOL, "true", True),
        (BOOL, True, True),
        (TEXT, 5, "5"),
        (TEXT, "None", ""),
        (TEXT, None, ""),
        (list_of(INT), "[2, 2.0]", [2, 2]),
        (list_of(FLOAT), (1, "0.5"), [1.0, 0.5]),
        (list_of(list_of(INT)), [[1], "[2]"], [[1], [2]]),
        (optional(FLOAT), "None", None),
        (optional(FLOAT), "null", None),
        (optional(FLOAT), "", None),
        (optional(FLOAT), "0.5", 0.5),
        (auto_or(FLOAT), "auto", AUTO),
        (auto_or(list_of(FLOAT)), "[0.5]", [0.5]),
        (SIZE, "224", 224),
        (SIZE, "[224, 288]", [224, 288]),
        (SIZE, "(288, 224)", [288, 224]),
        (SIZE, [224, 224.0], 224),
    ],
)
def test_values_are_converted(kind, given, value):
    result = kind.convert(given)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *((INT, given) for given in (True, "x", 1.5, "nan", "inf", None, [1], 2**63, "9" * 400)),
        *((FLOAT, given) for given in (False, "x", "nan", "inf", None, [1.0], "9" * 400)),
        *((BOOL, given) for given in (1, "1", "yes", None)),
        *((TEXT, given) for given in (True, [1], {"a": 1})),
        *((list_of(INT), given) for given in ("2", 2, "[", "[x]", [1.5], "__import__('os')")),
        *((optional(FLOAT), given) for given in ("x", True)),
        *((auto_or(FLOAT), given) for given in ("Auto", None)),
        *((SIZE, given) for given in ("[224]", [1, 2, 3], 224.5, "x", True)),
    ],
)
def test_other_values_are_rejected(kind, given):
    with pytest.raises(REFUSED):
        kind.convert(given)


def test_the_kind_of_a_default_is_that_of_its_type():
    assert [kind_of(value) for value in (True, 1, 0.5, "x")] == [BOOL, INT, FLOAT, TEXT]
    assert kind_of([0.5, 1.0]).convert("[1, 2]") == [1.0, 2.0]
    assert kind_of([[-1]]).convert([[3]]) == [[3]]


def test_every_kind_describes_its_values():
    assert auto_or(FLOAT).wanted == "auto or a number" and optional(INT).wanted == INT.wanted
    assert "[2, 2, 6, 2]" in list_of(INT).wanted and "[[1]]" in kind_of([[1]]).wanted and "[224, 288]" in SIZE.wanted
