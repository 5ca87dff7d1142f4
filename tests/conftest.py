"""Fixtures, and the program run as its users run it."""

import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from utils.imports import begin_imports, end_imports

begin_imports()  # until the tests are collected

import torch

from tests.tools.builders import write_photos
from tests.tools.warm import Started, Starter, free_port, rank_variables
from utils.terminal import EVERY_RANK, Bar

# indices cached by tests must not end up in the user's cache
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="swin_tests_")
ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "main.py"
RELEASED = json.loads((ROOT / "utils" / "checkpoints" / "released.json").read_text())["models"]


def pytest_collection_finish() -> None:
    end_imports()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_configure() -> None:
    for number in (
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
    ):  # "nohup bash scripts/test.sh &" ignores them, and so would every run
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that take less than two seconds")


# calls that start a process, in a test or in a fixture that it asks for
_STARTS = re.compile(
    r"starter\.start\("
    r"|(?<![.\w])(run_(program|ranks|until_killed)|start(_ranks)?|torchrun|subprocess\.run|(subprocess\.)?Popen)\("
)


def _starts(item: pytest.Function) -> bool:
    fixtures = (found[-1].func for found in item._fixtureinfo.name2fixturedefs.values())
    return any(map(_calls_starts, (item.function, *fixtures)))


@cache
def _calls_starts(function: Callable[..., object]) -> bool:
    own = ROOT in Path(inspect.getfile(function)).parents
    return own and _STARTS.search(inspect.getsource(function)) is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """What a test, or a fixture it sets up, does to logging ends with the test: many run a `main` in this process."""
    loggers = [logging.getLogger(), logging.getLogger(EVERY_RANK)]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    result = yield
    Bar.allowed = True
    for logger, handlers, level in before:
        for handler in logger.handlers:
            if handler not in handlers:
                with suppress(OSError):  # its disk may be full
                    handler.close()
        logger.handlers = handlers
        logger.setLevel(level)
    return result


SECONDS = {"seconds": 5, "starts": 10, "slow": 30}  # about what a test with a mark takes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks tests that start the program; --fast leaves them out, with those marked `seconds` or `slow`.

    Files that take long come first, so that two processes that share the files end at about the same time.
    """
    cost: Counter[Path] = Counter()
    for item in items:
        if isinstance(item, pytest.Function) and _starts(item):
            item.add_marker("starts")
        cost[item.path] += sum(SECONDS[mark.name] for mark in item.iter_markers() if mark.name in SECONDS)
    items.sort(key=lambda item: -cost[item.path])  # keeps the order within a file
    if config.getoption("--fast"):
        left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in SECONDS)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not any(item.get_closest_marker(mark) for mark in SECONDS)]


@dataclass(frozen=True)
class Finished:
    """A finished run of the program."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only error line; fails if there is none, or several."""
        return only_error(self.err)


def only_error(err: str) -> str:
    """The only error line of a job; fails if there is none, or several."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


def command(*arguments: object, processes: int = 0, program: Path = MAIN) -> list[str]:
    """Returns `python main.py ...`, or torchrun with `processes`."""
    head = [sys.executable]
    if processes:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*head, str(program), *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Returns an environment with one thread per process: two do not compete for cores, and sums are the same."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


starter = Starter()


def run_program(
    *arguments: object,
    processes: int = 0,
    cwd: Path = ROOT,
    fresh: bool = False,
    program: Path = MAIN,
    **env: str,
) -> Finished:
    """Runs the program, or another, to its end; `fresh` also its start: Python, torchrun, the imports (warm.py).

    The code of a job is 1 with torchrun, otherwise that of the rank which failed first.
    """
    if fresh:
        line, variables = command(*arguments, processes=processes, program=program), environment(**env)
        done = subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
        return Finished(done.returncode, done.stdout, done.stderr)
    ranks = start_ranks(*arguments, processes=processes, cwd=cwd, program=program, **env)
    deadline = time.monotonic() + 600
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        if any(rank.poll() for rank in ranks):
            break
        time.sleep(0.005)
    codes = [code for rank in ranks if (code := rank.poll())]
    for rank in ranks if codes else ():
        rank.send_signal(signal.SIGTERM)  # as torchrun does, which kills those that are left after 30 seconds
    outs, errs = zip(*(rank.communicate(30) for rank in ranks), strict=True)
    return Finished(codes[0] if codes else 0, "".join(outs), "".join(errs))


def start_ranks(
    *arguments: object, processes: int = 0, cwd: Path = ROOT, program: Path = MAIN, **env: str
) -> list[Started]:
    """Starts the program, as torchrun would start `processes` ranks."""
    port = free_port()
    environments = [environment(**rank_variables(rank, processes, port), **env) for rank in range(processes)]
    return [starter.start(program, arguments, cwd, each) for each in environments or [environment(**env)]]


def run_ranks(program: str, *arguments: object) -> Finished:
    """Runs a program of tests/tools/ranks, which must succeed."""
    started = starter.start(ROOT / f"tests/tools/ranks/{program}.py", arguments, ROOT, environment())
    try:
        code = started.wait(240)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    out, err = started.output()
    assert code == 0, err
    return Finished(code, out, err)


def accuracy(out: str) -> tuple[int, int]:
    """Returns correct and counted samples of the last evaluation in a log."""
    correct, count = re.findall(r"(?<!ReaL )Acc@1 .*\((\d+) of (\d+)\)", out)[-1]
    return int(correct), int(count)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 12 training and 5 validation photographs each; read only."""
    return write_photos(tmp_path_factory.mktemp("photos"), classes=3, train=12, val=5)


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy of `photos` that a test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything on and a model that trains in a moment."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


TINY = """
DATA: {IMG_SIZE: 32, BATCH_SIZE: 4, NUM_WORKERS: 0}
MODEL:
  NAME: tiny
  DROP_PATH_RATE: 0.2
  SWIN: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 0, BASE_LR: 0.05}
PRINT_FREQ: 2
"""
