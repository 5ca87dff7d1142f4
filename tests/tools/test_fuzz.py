"""Mutated input never ends in a traceback, a hang or a lack of memory."""

import pytest

from tests.tools.fuzz import Findings, Fuzzer, Outcome
from tests.tools.fuzz_inputs import KINDS


@pytest.mark.slow
def test_mutated_input_ends_in_one_line(tmp_path):
    """Every kind in turn; `python tests/tools/fuzz.py --count 5000` runs more."""
    fuzzer = Fuzzer(tmp_path, jobs=1, limit=60)
    try:
        findings = fuzzer.run(100, seed=0, kinds=list(KINDS), seconds=400)
    finally:
        fuzzer.close()
    assert not findings.bad, str(findings)
    assert all(sum(codes.values()) >= 5 for codes in findings.codes.values()), str(findings)
    assert {code for codes in findings.codes.values() for code in codes} >= {0, 2, 3, 4}


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(2, "error: TAG: wrong", 1, 0), ""),
        (Outcome(2, "Traceback (most recent call last)\nValueError: x", 1, 0), "traceback: ValueError: x"),
        (Outcome(0, "trained", 1, 0), ""),
        (Outcome(2, "", 1, 0), "0 error lines, exit code 2"),
        (Outcome(2, "error: TAG: wrong\nerror: TAG: wrong", 1, 0), "2 error lines, exit code 2"),
        (Outcome(0, "error: TAG: wrong", 1, 0), "1 error lines, exit code 0"),
        (Outcome(1, "", 1, 0), "exit code 1"),
        (Outcome(-11, "", 1, 0), "exit code -11"),
        (Outcome(0, "", 21, 0), "took 21 s"),
        (Outcome(0, "", 1, 3 * 2**30), "took 2,048 MiB more"),
    ],
)
def test_what_counts_as_a_bad_end(outcome, problem):
    fuzzer = Fuzzer.__new__(Fuzzer)
    fuzzer._limit, fuzzer._plain = 20, {"yaml": 2**30}
    assert fuzzer._problem("yaml", outcome) == problem


def test_findings_are_summed_up():
    findings = Findings({"yaml": {0: 1, 2: 3}}, ["BAD yaml 1: exit code 1"], skipped=2)
    assert str(findings).splitlines() == [
        "yaml: 4 inputs, exit codes {0: 1, 2: 3}",
        "BAD yaml 1: exit code 1",
        "1 ended badly, 2 not run for lack of time",
    ]
