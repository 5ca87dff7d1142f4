"""Enforces the shape described in docs/architecture.md: layered imports, small files and functions, inert modules."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("configs", "models", "data", "utils", "tasks")
FILES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
ENTRY_POINTS = [ROOT / "main.py", ROOT / "hubconf.py", *sorted((ROOT / "scripts").rglob("*.py"))]
SOURCES = [*ENTRY_POINTS, *FILES]
OURS = {*PACKAGES, "main", "hubconf", "scripts", "tests"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def all_imports(path: Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(str(node.module))
    return frozenset(names)


def imports(path: Path) -> set[str]:
    return {name for name in all_imports(path) if name.split(".")[0] in OURS}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room(module: str) -> str:
    """The room a module belongs to; "ground" for the flat files of utils."""
    parts = module.split(".")
    if parts[0] == "tasks" and parts[-1] == "keys":  # plain data, collected by configs/schema.py
        return "tasks.keys"
    if parts[0] != "utils":
        return parts[0]
    return "ground" if not (ROOT / "utils" / parts[1]).is_dir() else ".".join(parts[:2])


_LOW = {"ground", "utils.distributed", "utils.checkpoints"}
ALLOWED = {
    "ground": {"ground"},
    "utils.distributed": {"ground", "utils.distributed"},
    "utils.checkpoints": _LOW,
    "configs": {"ground", "configs", "tasks.keys"},
    "models": _LOW | {"models"},
    "data": _LOW | {"data"},
    "utils.training": _LOW | {"utils.training"},
    "utils.logs": _LOW | {"utils.training", "utils.logs"},
    "utils.runs": _LOW | {"utils.training", "utils.logs", "utils.runs", "configs"},
    "tasks.keys": {"ground", "configs"},
}
ALLOWED["tasks"] = {"tasks", *ALLOWED}


def test_imports_go_down_the_layers():
    for path in FILES:
        own, used = room(module(path)), {room(each) for each in imports(path)}
        assert used <= ALLOWED[own], f"{name(path)}: {own} may import {sorted(ALLOWED[own])}"


def test_entry_points_do_not_import_tests():
    for path in ENTRY_POINTS:
        assert not any(each.split(".")[0] == "tests" for each in imports(path)), name(path)


def test_files_and_functions_stay_small():
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 400, name(path)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name(path)}: {node.name}"


def test_every_package_that_is_imported_is_required():
    lines = [line for page in ("requirements.txt", "requirements-optional.txt") for line in (ROOT / page).open()]
    required = {normal(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
    required.add("triton")  # comes with torch, where there are GPUs
    distributions = packages_distributions()
    for path in SOURCES:
        for package in {each.split(".")[0] for each in all_imports(path)} - OURS - sys.stdlib_module_names:
            known = set(map(normal, distributions.get(package, [package])))
            assert known & required, f"{name(path)}: {package} is in no requirements file"


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_main_reads_like_the_recipe():
    assert len((ROOT / "main.py").read_text().splitlines()) < 120


# loaded by the fork server of the loader workers, by name
ACTS_WHEN_IMPORTED = [ROOT / "data/pipeline/worker_group.py", ROOT / "data/pipeline/server_ready.py"]


def test_importing_does_nothing():
    """Only imports, definitions, constants and the entry point at module level.

    A script run by its path first makes the program importable. Two files exist to act when they are imported: a fork
    server offers no other way to run code before it forks, and before it imports.
    """
    for path in SOURCES:
        if path not in ACTS_WHEN_IMPORTED:
            for node in parsed(path).body:
                assert is_inert(node, path), f"{name(path)}: {ast.unparse(node)[:80]}"


def is_inert(node: ast.stmt, path: Path) -> bool:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return not node.orelse and all(isinstance(each, ast.Import | ast.ImportFrom) for each in node.body)
    return (
        isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")
        or (path.parent.name == "scripts" and ast.unparse(node).startswith("sys.path.insert(0, "))
    )


@pytest.mark.seconds
def test_nothing_outside_of_tasks_distinguishes_tasks():
    """Neither by TASK nor by a class or the name of a task; only the registry and the configuration look a task up."""
    own = {node.name for path in FILES if "tasks" in path.parts for node in parsed(path).body
           if isinstance(node, ast.ClassDef)}  # fmt: skip
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "tasks":
            found = list(distinctions(parsed(path), own, may_look_up=path == ROOT / "configs/loading.py"))
            assert not found, f"{name(path)}: {found}"


def distinctions(tree: ast.AST, tasks: set[str], may_look_up: bool = False) -> Iterator[str]:
    """Yields expressions that depend on which task is configured. Args: tasks: names of their classes."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.Attribute) and node.attr == "TASK":
            yield text
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "'TASK'" and not may_look_up:
            yield text
        if isinstance(node, ast.Compare) and re.search(r"\btask\.name\b", text):
            yield text
        by_class = isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type")
        if by_class and tasks & {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}:
            yield text


@pytest.mark.parametrize(
    "line",
    ["cfg.TASK == 'x'", "cfg['TASK']", "opened.task.name == 'x'", "isinstance(a, Toy)", "task.name in ('x', 'y')"],
)
def test_a_distinction_between_tasks_is_seen(line):
    assert list(distinctions(ast.parse(line), {"Toy"}))


def test_what_acts_when_it_is_imported_is_imported_by_nobody():
    names = {module(path) for path in ACTS_WHEN_IMPORTED}
    for path in SOURCES:
        assert not names & imports(path), name(path)


def test_no_module_has_a_catch_all_name():
    assert not {"utils", "helpers", "common", "misc"} & {p.stem for p in SOURCES}


SMALL = 60  # lines of a file that another one's test may cover


def test_every_library_file_has_a_test_file():
    """Of its name; a small file may be imported by another test of its folder instead."""
    for path in [*FILES, *(ROOT / "scripts").rglob("*.py")]:
        if path.stem == "__init__":
            continue
        folder = ROOT / "tests" / path.relative_to(ROOT).parent
        if not (folder / f"test_{path.name}").is_file():
            small = len(path.read_text().splitlines()) <= SMALL
            covered = any(module(path) in all_imports(test) for test in folder.glob("test_*.py"))
            assert small and covered, f"{name(path)}: tests/{name(path.parent)}/test_{path.name} is missing"


def test_every_script_reports_its_errors_in_one_place():
    """`run_to_exit_code` also makes text printable that the terminal cannot encode."""
    programs = [path for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()]
    programs = [path for path in programs if path.name != "doc_tables.py"]  # for developers, without input
    assert len(programs) >= 8
    for path in programs:
        calls = {
            node.func.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Call) and hasattr(node.func, "id")
        }
        assert "run_to_exit_code" in calls, path


def test_what_reads_the_configuration_returns_typed_values():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "configs":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and any(a.arg in ("cfg", "section") for a in node.args.args):
                returned = ast.unparse(node.returns) if node.returns else ""
                typed = returned and "Any" not in returned and not returned.startswith(("dict", "list[dict"))
                assert typed, f"{name(path)}: {node.name}"
