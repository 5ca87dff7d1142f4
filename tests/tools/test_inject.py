"""Faults from outside: where they are counted, and what they do."""

import errno
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tools import inject
from tests.tools.builders import in_child
from tests.tools.inject import Fault, Injector


@pytest.fixture(autouse=True)
def single(monkeypatch):
    """A process that nobody launched."""
    for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("step:7:kill", Fault("step", 7, "kill")),
        ("step:7:kill:1", Fault("step", 7, "kill", rank=1)),
        ("save:3+2:full", Fault("save", 3, "full", attempt=2)),
        ("epoch:1+0:sleep=0.5:0", Fault("epoch", 1, "sleep=0.5", rank=0, attempt=0)),
    ],
)
def test_faults_are_read_from_text(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("fault", "rank", "attempt", "applies"),
    [
        ("a:1:raise", 3, 2, True),
        ("a:1:raise:1", 0, 0, False),
        ("a:1:raise:1", 1, 5, True),
        ("a:1+1:raise:1", 1, 0, False),
    ],
)
def test_a_fault_concerns_a_rank_and_a_restart(monkeypatch, fault, rank, attempt, applies):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
    injector = Injector([Fault.parse(fault)])
    if not applies:
        injector.reached("a")
        return
    with pytest.raises(RuntimeError, match="injected"):
        injector.reached("a")


def test_a_fault_strikes_at_its_call_of_its_point_and_once(capsys):
    injector = Injector([Fault("b", 3, "full")])
    for point in ("a", "b", "b", "a", "a", "c"):
        injector.reached(point)
    with pytest.raises(OSError, match="No space left") as caught:
        injector.reached("b")
    injector.reached("b")
    assert caught.value.errno == errno.ENOSPC and capsys.readouterr().err == "injected full\n"


@pytest.mark.parametrize(("action", "number"), [("kill", 9), ("term", 15), ("hup", 1), ("int", 2), ("usr1", 10)])
def test_signals_are_real(action, number):
    def start():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        Injector([Fault("step", 1, action)]).reached("step")

    assert in_child(start) == (-number, f"injected {action}\n")


def test_other_processes_of_a_rank_are_killed_once_they_are_there(capsys):
    injector = Injector([Fault("step", count, f"kill={name}") for count, name in ((1, "worker"), (2, "worker"))])
    others = set(multiprocessing.active_children())
    for child in others:  # of other tests
        multiprocessing.process._children.discard(child)
    injector.reached("step")
    assert capsys.readouterr().err == ""
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    injector.reached("step")
    worker.join(10)
    multiprocessing.process._children.update(others)
    assert worker.exitcode == -signal.SIGKILL and capsys.readouterr().err == "injected kill worker\n"
    assert inject.process_of("launcher") == os.getppid()


def test_a_stopped_process_does_not_go_on():
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        Injector([Fault("step", 1, "stop")]).reached("step")
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_sleep_slows_down_every_later_call(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    injector = Injector([Fault("step", 2, "sleep=0.5")])
    for _ in range(4):
        injector.reached("step")
    assert slept == [0.5, 0.5]


def test_weights_change_by_little_or_become_nan():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    injector = Injector([Fault("step", 1, "change"), Fault("step", 2, "nan")])
    injector.reached("step", optimizer)
    assert parameter.tolist() == [[pytest.approx(1.001), 1.0], [1.0, 1.0]]
    injector.reached("step", optimizer)
    assert parameter.isnan().tolist() == [[True, False], [False, False]]


def in_saver(run):
    """Calls `run` in a thread with the name of the one that saves; returns what it raised."""
    raised = []

    def attempt():
        try:
            run()
        except Exception as e:
            raised.append(e)

    thread = threading.Thread(target=attempt, name="saver")
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_calls_of_the_saving_thread_are_told_apart():
    calls = []
    owner = SimpleNamespace(flush=lambda *args, **more: calls.append((args, more)) or "result")
    injector = Injector([Fault("save", 2, "raise"), Fault("flush", 2, "full")])
    injector.around(owner, "flush", "save", "flush", saver_only=True)
    assert [owner.flush(i, a=1) for i in range(5)] == ["result"] * 5
    assert in_saver(owner.flush) is None
    assert isinstance(in_saver(owner.flush), RuntimeError)
    assert isinstance(in_saver(owner.flush), OSError)  # counted for this point as well
    assert calls == [*(((i,), {"a": 1}) for i in range(5)), ((), {})]


def test_every_write_of_the_saving_thread_is_counted_and_arrives(tmp_path):
    def start():
        injector = Injector([])
        injector.watch_writes()
        (tmp_path / "other").write_text("not counted")
        assert injector._counts == {}

        def save():
            with open(tmp_path / "a", "wb") as file:
                for _ in range(3):
                    file.write(b"x" * 100_000)
            assert injector._counts["save"] >= 4  # opened, and written in pieces
            (tmp_path / "b").write_text("caf\udce9 é", encoding="utf-8", errors="backslashreplace")
            assert (tmp_path / "b").read_text(encoding="utf-8") == "caf\\udce9 é"

        assert in_saver(save) is None
        injector._faults = [Fault("save", injector._counts["save"] + 2, "full")]
        error = in_saver(lambda: (tmp_path / "c").write_bytes(b"y"))
        assert isinstance(error, OSError) and error.errno == errno.ENOSPC

    assert in_child(start) == (0, "injected full\n")
    assert (tmp_path / "a").read_bytes() == b"x" * 300_000 and (tmp_path / "c").read_bytes() == b""


def test_the_program_is_started_as_if_by_itself_with_every_point_in_place():
    """In a child process, since the library stays patched; one that has imported the program, as those of warm.py."""

    def start():
        import configs.options  # noqa: F401
        from tasks.classification import metrics
        from utils.runs import resume, session

        places = [
            (torch.distributed, "rendezvous"),
            (resume, "find_start"),
            (torch.optim.AdamW, "step"),
            (metrics.AccuracyCounter, "add"),
            (session, "write_summary"),
            *((os, name) for name in ("fsync", "replace", "symlink", "unlink")),
        ]
        before = [getattr(*place) for place in places]
        started = []
        runpy.run_path = lambda path, run_name: started.append((Path(path), run_name, sys.argv))
        inject.main(["step:1:raise,start:1:full", "--cfg", "x.yaml"])
        path = inject.ROOT / "main.py"
        assert started == [(path, "__main__", [str(path), "--cfg", "x.yaml"])]
        assert all(getattr(*place).__wrapped__ is one for place, one in zip(places, before, strict=True))
        for call, error in ((resume.find_start, OSError), (torch.optim.AdamW([torch.ones(1)]).step, RuntimeError)):
            try:
                call()
            except error:
                continue
            raise AssertionError(call)

    assert in_child(start) == (0, "injected full\ninjected raise\n")
