"""The shape that docs/architecture.md promises: imports go one way, files and functions stay small."""

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("configs", "models", "data", "utils")
# lower to higher: a file imports only from those before it
UTILS = (
    "errors interrupt seeding safe_load distributed downloads precision run_plan schedule optim loss metrics"
    " train_state checkpoint curves run_logger engine profiling assessment progress session"
).split()
FILES = [p for part in PACKAGES for p in sorted((ROOT / part).rglob("*.py"))]
SOURCES = [ROOT / "main.py", *FILES, *sorted((ROOT / "scripts").rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_packages_do_not_import_each_other(path):
    own = path.relative_to(ROOT).parts[0]
    used = {n.split(".")[0] for n in imports(path)} & {*PACKAGES, "main", "scripts", "tests"}
    assert used <= {own}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=name)
def test_configs_import_yacs_yaml_and_the_standard_library(path):
    used = {n.split(".")[0] for n in imports(path)}
    assert used <= {"yacs", "yaml", "configs", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted((ROOT / "utils").glob("[a-z]*.py")), ids=name)
def test_utils_import_downwards(path):
    assert path.stem in UTILS, "give it a place in the order"
    used = {n.split(".")[1] for n in imports(path) if n.startswith("utils.")}
    assert used <= set(UTILS[: UTILS.index(path.stem)])


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_main_reads_like_the_recipe():
    assert len((ROOT / "main.py").read_text().splitlines()) < 120


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_importing_does_nothing(path):
    """No statement on the top level but imports, definitions, constants and the entry point.

    A script that is run by its path first makes the program's packages known.
    """
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(path.read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_entry = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        is_path = path.parent.name == "scripts" and ast.unparse(node).startswith("sys.path.insert(0, ")
        assert isinstance(node, allowed) or is_docstring or is_entry or is_path, ast.unparse(node)[:80]


def test_no_file_is_a_drawer():
    assert not {"utils", "helpers", "common", "misc"} & {p.stem for p in SOURCES}
