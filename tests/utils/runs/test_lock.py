"""One run per output folder; owners of other machines are records with another host."""

import errno
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.tools.builders import in_child
from tests.tools.errors import raises
from utils.errors import ConfigError
from utils.runs import lock as module
from utils.runs.lock import RunLock

HERE = {"host": platform.node(), "machine": module.machine_name(), "job": None, "token": "other", "beat": 0}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name, seconds in (("BEAT", 0.03), ("SILENCE", 0.4), ("SETTLE", 0.1)):
        monkeypatch.setattr(module, name, seconds)


def write(folder, **record):
    (folder / "owner.json").write_text(json.dumps({**HERE, **record}))


def read(folder):
    return json.loads((folder / "owner.json").read_text())


@pytest.fixture
def taken(tmp_path):
    """The folder, owned by this process."""
    owner = RunLock.acquire(tmp_path)
    yield owner
    owner.release()


def test_the_record_says_who_owns_the_folder_and_moves(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    owner = RunLock.acquire(tmp_path)
    first = read(tmp_path)
    assert (first["host"], first["process"], first["job"]) == (platform.node(), os.getpid(), "123")
    deadline = time.monotonic() + 5
    while not (tmp_path / "owner.json").read_text() or read(tmp_path)["beat"] == first["beat"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    owner.release()
    owner.join(5)
    assert not list(tmp_path.iterdir())


def test_fault_09_a_live_process_on_this_machine_is_named(taken, tmp_path):
    owner = f"(host {platform.node()}, process {os.getpid()})"
    with raises(ConfigError, tmp_path, owner, "--tag", tmp_path / "owner.json"):
        RunLock.acquire(tmp_path)
    assert read(tmp_path)["token"] == taken._record["token"]


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_fault_09_a_dead_process_is_replaced_at_once(tmp_path, sleeper):
    started = module._started(sleeper.pid)
    write(tmp_path, process=sleeper.pid, started=started, job="77")
    with raises(ConfigError, tmp_path, f"process {sleeper.pid}, job 77"):
        RunLock.acquire(tmp_path)
    os.kill(sleeper.pid, signal.SIGKILL)
    state = Path(f"/proc/{sleeper.pid}/stat")
    while state.read_text().split()[2] != "Z":  # a zombie: nobody asks for its exit code
        time.sleep(0.01)
    begun = time.monotonic()
    owner = RunLock.acquire(tmp_path)
    assert time.monotonic() - begun < module.SILENCE
    owner.release()


def test_fault_09_a_container_of_the_same_host_name_is_another_machine(tmp_path):
    """Its process is not seen from here, so its heartbeat decides."""
    write(tmp_path, machine=f"{platform.node()} another container", process=4_000_000, started="1")
    begun = time.monotonic()
    RunLock.acquire(tmp_path).release()
    assert time.monotonic() - begun >= module.SILENCE


def test_fault_15_a_full_disk_leaves_the_record_of_a_live_owner(taken, tmp_path, monkeypatch):
    """A heartbeat writes over the record in place; nothing is ever shorter than a whole one."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    time.sleep(3 * module.BEAT)
    assert read(tmp_path)["token"] == taken._record["token"] and taken.is_alive()


def test_fault_09_another_process_of_the_same_number_is_not_the_owner(tmp_path, sleeper):
    write(tmp_path, process=sleeper.pid, started="1")  # that one has ended, its number was given away again
    RunLock.acquire(tmp_path).release()


def beating(folder, seconds, **record):
    """Another machine's owner, which writes heartbeats for a while."""

    def beat():
        last, number = time.monotonic() + seconds, 0
        while time.monotonic() < last:
            number += 1
            write(folder, host="elsewhere", machine="elsewhere", process=5, beat=number, **record)
            time.sleep(0.03)

    write(folder, host="elsewhere", machine="elsewhere", process=5, **record)
    thread = threading.Thread(target=beat)
    thread.start()
    return thread


def test_fault_09_an_owner_on_another_machine_whose_heartbeat_moves_is_named(tmp_path):
    thread = beating(tmp_path, 0.5, started="1", job="9")
    with raises(ConfigError, tmp_path, "(host elsewhere, process 5, job 9)"):
        RunLock.acquire(tmp_path)
    thread.join()
    assert read(tmp_path)["host"] == "elsewhere"


def test_fault_09_an_owner_that_was_just_writing_is_named(tmp_path, monkeypatch):
    """Its record was empty when it was looked at first, and it is alive."""
    write(tmp_path, host="elsewhere", machine="elsewhere", process=5)
    complete, calls = module._read, []
    monkeypatch.setattr(module, "_is_alive", lambda path, other: True)
    monkeypatch.setattr(module, "_read", lambda path: complete(path) if calls else calls.append(path) or {})
    with raises(ConfigError, tmp_path, "(host elsewhere, process 5)"):
        RunLock.acquire(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[1]"], ids=["a record", "empty", "half", "a list"])
def test_fault_09_an_owner_on_another_machine_that_stands_still_is_replaced(tmp_path, text):
    write(tmp_path, host="elsewhere", machine="elsewhere", process=os.getpid(), started=module._started(os.getpid()))
    if text is not None:  # of a process that was killed while it wrote
        (tmp_path / "owner.json").write_text(text)
    begun = time.monotonic()
    owner = RunLock.acquire(tmp_path)
    assert time.monotonic() - begun >= module.SILENCE
    owner.release()


def test_fault_09_an_owner_that_leaves_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 20)
    write(tmp_path, host="elsewhere", machine="elsewhere", process=5)
    timer = threading.Timer(0.3, (tmp_path / "owner.json").unlink)
    timer.start()
    begun = time.monotonic()
    RunLock.acquire(tmp_path).release()
    timer.join()
    assert time.monotonic() - begun < 10


def take_and_hold(folder, number, ready, results):
    ready.wait()
    try:
        owner = RunLock.acquire(folder)
    except ConfigError:
        results.put((number, False))
    else:
        time.sleep(0.5)
        results.put((number, True))
        owner.release()


@pytest.mark.parametrize("dead", [False, True])
def test_fault_09_of_several_that_start_at_once_one_gets_the_folder(tmp_path, dead):
    """Whether the folder is free or its owner is dead."""
    if dead:
        write(tmp_path, process=2**22 + 1, started="1")
    fork = multiprocessing.get_context("fork")
    ready, results = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=take_and_hold, args=(tmp_path, i, ready, results)) for i in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=20)[1] for _ in processes]
    for process in processes:
        process.join(20)
    assert sorted(found) == [False, False, False, True]


def test_fault_09_a_run_whose_folder_was_taken_over_ends(tmp_path):
    """It was suspended for so long that it counted as dead."""

    def start():
        RunLock.acquire(tmp_path)
        write(tmp_path, host="elsewhere", machine="elsewhere", process=5)
        time.sleep(20)

    code, err = in_child(start)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: {tmp_path}: ") and "(host elsewhere, process 5)" in err
    assert read(tmp_path)["token"] == "other"


def test_a_heartbeat_under_way_does_not_take_the_folder_back(tmp_path, monkeypatch):
    write_record, writing, released = RunLock._write, threading.Event(), threading.Event()

    def slow(self, path):
        if threading.current_thread() is self:
            writing.set()
            released.wait(1)
        write_record(self, path)

    monkeypatch.setattr(RunLock, "_write", slow)
    owner = RunLock.acquire(tmp_path)
    assert writing.wait(5)
    owner.release()
    released.set()
    owner.join(5)
    assert not (tmp_path / "owner.json").exists()


def test_fault_63_the_owner_follows_a_folder_that_is_moved(tmp_path):
    """A run that starts at the old place is no other owner of this one."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    owner = RunLock.acquire(first)
    assert owner.place() == first
    first.rename(second)
    first.mkdir()
    other = RunLock.acquire(first)
    before = read(second)["beat"]
    deadline = time.monotonic() + 5
    while not (second / "owner.json").read_text() or read(second)["beat"] <= before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert owner.place() == second and read(second)["token"] != read(first)["token"]
    owner.release()
    assert not list(second.iterdir()) and (first / "owner.json").exists()
    other.release()


def test_fault_63_a_folder_that_is_removed_has_no_place(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    owner = RunLock.acquire(folder)
    shutil.rmtree(folder)
    folder.mkdir()  # another one
    time.sleep(3 * module.BEAT)
    assert owner.place() is None and owner.is_alive()
    owner.release()
    assert not list(folder.iterdir())


def test_what_another_run_took_is_not_released(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 60)
    owner = RunLock.acquire(tmp_path)
    write(tmp_path, host="elsewhere", machine="elsewhere")
    owner.release()
    assert read(tmp_path)["host"] == "elsewhere"


def test_a_disk_that_does_not_respond_for_a_while_ends_nothing(taken, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", refuse)
        time.sleep(0.2)
    time.sleep(0.1)
    assert taken.is_alive() and read(tmp_path)["token"] == taken._record["token"]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunLock.acquire(tmp_path / "gone")


def test_a_process_has_started_once(monkeypatch):
    own = module._started(os.getpid())
    assert own and own == module._started(os.getpid()) and module._started(2**22 + 1) is None
    assert module._started(1) is not None
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError))  # without /proc
    assert module._started(os.getpid()) == module._started(1) == "running" and module._started(2**22 + 1) is None
