"""The documentation says what is there."""

import re

from tests.conftest import ROOT

ROWS = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)


def all_fault_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_fault_\d+_\w+)", file.read_text(), re.MULTILINE)}


def test_the_table_of_faults_lists_every_test_in_its_row():
    assert [int(number) for number, _ in ROWS] == list(range(1, 61))
    listed = {name: int(number) for number, cell in ROWS for name in re.findall(r"`(\w+)`", cell)}
    assert set(listed) == all_fault_tests(), "run: python -m tests.list_faults"
    assert all(name.startswith(f"test_fault_{number:02d}_") for name, number in listed.items())


def test_the_files_that_the_architecture_names_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"\b((?:configs|models|data|utils|tests|scripts)/[\w/]+\.(?:py|json|yaml))\b", text))
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == []
