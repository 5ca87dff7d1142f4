"""Enforces the shape described in docs/architecture.md: layered imports, small files and functions, inert modules."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("configs", "models", "data", "utils")
FILES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
ENTRY_POINTS = [
    ROOT / "main.py",
    *(p for p in [ROOT / "hubconf.py"] if p.exists()),
    *sorted((ROOT / "scripts").rglob("*.py")),
]
SOURCES = [*ENTRY_POINTS, *FILES]


OURS = {*PACKAGES, "main", "hubconf", "scripts", "tests"}


def all_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(str(node.module))
    return names


def imports(path: Path) -> set[str]:
    return {name for name in all_imports(path) if name.split(".")[0] in OURS}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(module: str) -> str:
    """The room a module belongs to; "ground" for the flat files of utils."""
    parts = module.split(".")
    if parts[0] != "utils":
        return parts[0]
    return "ground" if not (ROOT / "utils" / parts[1]).is_dir() else ".".join(parts[:2])


_LOW = {"ground", "utils.distributed", "utils.checkpoints"}
ALLOWED = {
    "ground": {"ground"},
    "utils.distributed": {"ground", "utils.distributed"},
    "utils.checkpoints": _LOW,
    "configs": {"ground", "configs"},
    "models": _LOW | {"models"},
    "data": _LOW | {"data"},
    "utils.evaluation": _LOW | {"utils.evaluation"},
    "utils.training": _LOW | {"utils.evaluation", "utils.training"},
    "utils.logs": _LOW | {"utils.evaluation", "utils.training", "utils.logs"},
    "utils.runs": _LOW | {"utils.evaluation", "utils.training", "utils.logs", "utils.runs"},
}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down_the_layers(path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    used = {room(module) for module in imports(path)}
    assert used <= ALLOWED[own], f"{own} may import {sorted(ALLOWED[own])}"


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=name)
def test_entry_points_do_not_import_tests(path):
    assert not any(module.split(".")[0] == "tests" for module in imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_every_package_that_is_imported_is_required():
    lines = [line for name in ("requirements.txt", "requirements-optional.txt") for line in (ROOT / name).open()]
    required = {normal(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
    required.add("triton")  # comes with torch, where there are GPUs
    distributions = packages_distributions()
    undeclared = {}
    for path in SOURCES:
        for module in {each.split(".")[0] for each in all_imports(path)} - OURS - sys.stdlib_module_names:
            if required.isdisjoint(map(normal, distributions.get(module, [module]))):
                undeclared[module] = name(path)
    assert not undeclared


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_main_reads_like_the_recipe():
    assert len((ROOT / "main.py").read_text().splitlines()) < 124  # until train() is rewritten


# loaded by the fork server of the loader workers, by name
ACTS_WHEN_IMPORTED = [ROOT / "data/pipeline/worker_group.py"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_importing_does_nothing(path):
    """Only imports, definitions, constants and the entry point at module level.

    A script run by its path first makes the program's packages importable. One file exists to act when it is imported:
    a fork server offers no other way to run code before it forks.
    """
    if path in ACTS_WHEN_IMPORTED:
        return
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(path.read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_entry = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        is_path = path.parent.name == "scripts" and ast.unparse(node).startswith("sys.path.insert(0, ")
        is_types = (
            isinstance(node, ast.If)
            and ast.unparse(node.test) == "TYPE_CHECKING"
            and not node.orelse
            and all(isinstance(each, ast.Import | ast.ImportFrom) for each in node.body)
        )
        assert isinstance(node, allowed) or is_docstring or is_entry or is_path or is_types, ast.unparse(node)[:80]


def test_what_acts_when_it_is_imported_is_imported_by_nobody():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ACTS_WHEN_IMPORTED}
    for path in SOURCES:
        assert not names & imports(path), name(path)


def test_no_module_has_a_catch_all_name():
    assert not {"utils", "helpers", "common", "misc"} & {p.stem for p in SOURCES}


LIBRARY = [p for p in [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))] if p.stem != "__init__"]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_every_library_file_has_a_test_file_of_its_name(path):
    relative = path.relative_to(ROOT)
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").is_file()


@pytest.mark.parametrize("path", [p for p in SOURCES if p.relative_to(ROOT).parts[0] != "configs"], ids=name)
def test_what_reads_the_configuration_returns_typed_values(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any(a.arg in ("cfg", "section") for a in node.args.args):
            returned = ast.unparse(node.returns) if node.returns else ""
            assert returned and "Any" not in returned and not returned.startswith(("dict", "list[dict")), node.name
