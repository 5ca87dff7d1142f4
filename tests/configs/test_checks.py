"""Every check, by value."""

import pytest

from configs import checks


@pytest.mark.parametrize(
    ("check", "good", "bad", "complaint"),
    [
        (checks.at_least(1), [1, 2.5], [0, -1], "must be at least 1"),
        (checks.above(0), [1e-9], [0, -1], "must be above 0"),
        (checks.within(0, 1), [0, 0.5, 1], [-0.1, 1.1], "must be between 0 and 1"),
        (checks.below_one, [0, 0.999], [1, -0.1], "must be at least 0 and below 1"),
        (checks.one_of("a", "b"), ["a", "b"], ["c", ""], "must be one of a, b"),
        (checks.pair(1), [[0.1, 1.0], [0.5, 0.5]], [[0.5, 0.1], [0, 1], [0.1, 1.1], [0.1]], "the smaller first, above"),
        (checks.two_below_one, [[0.9, 0.999], [0, 0]], [[0.9], [0.9, 1.0], [-0.1, 0.9]], "two numbers, at least 0"),
        (checks.sides(1), [224, [224, 1]], [0, [224, 0]], "must be at least 1"),
        (checks.numbers, [[0.5], "auto"], [[]], "a number for each channel"),
        (checks.positives, [[0.5, 1.0], "auto"], [[], [0.0], [1.0, -1.0], "x"], "a number above 0 for each channel"),
        (checks.unless_auto(checks.portion), ["auto", 0.9, 1], [0, 1.1], "above 0 and at most 1"),
        (
            checks.policy,
            ["", "none", "rand-m9-mstd0.5-inc1", "original", "originalr-mstd0.5", "augmix-m5-w4-d2", "v0", "3a"],
            ["rand-mX", "nonsense", "rand_m9", "none-m1"],
            "a timm policy",
        ),
        (checks.frozen, ["none", "all", "0", "3"], ["head", "-1", "1.5", ""], "none, all or a number of stages"),
        (checks.hexadecimal, ["", "aF" * 32], ["aF" * 31, "g" * 64], "64 hexadecimal digits"),
        (checks.portion, [0.1, 1.0], [0.0, 1.1], "above 0 and at most 1"),
        (checks.odd, [3, 47], [1, 46], "odd, at least 3"),
        (checks.positive_list, [[2, 2]], [[], [2, 0]], "a list of numbers above 0"),
    ],
    ids=lambda value: getattr(value, "__qualname__", "").split(".")[0] or None,
)
def test_checks_accept_the_good_and_explain_the_bad(check, good, bad, complaint):
    assert [check(value) for value in good] == [None] * len(good)
    assert all(complaint in (check(value) or "") for value in bad), [check(value) for value in bad]
