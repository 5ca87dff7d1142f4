"""Loader workers: how they start and end, what they need, what is reported about bad samples."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.loading import load_config
from data.pipeline import workers as module
from data.pipeline.dataset import TrainSamples
from data.pipeline.samplers import EvalSampler
from data.pipeline.transforms import TrainTransform
from data.pipeline.workers import LoaderOptions, MonitoredLoader, check_resources
from data.sources.base import IndexedSource
from data.sources.index import Index, stored
from tests.conftest import ROOT
from tests.data.pipeline.troubled import Deadly, ManyPaths, ParentOfWorker
from tests.tools.builders import PLAIN, configured, open_folder
from tests.tools.errors import raises
from utils.distributed.signals import HANDLED
from utils.distributed.world import World
from utils.errors import DataError, ResourceError


def monitored(source, batch_size=4, persistent=False, transform=PLAIN, **more):
    """Batches of a source in its order."""
    options = LoaderOptions(batch_size, **more)
    samples = TrainSamples(source, TrainTransform(transform), seed=7, on_bad=options.on_bad)
    sampler = EvalSampler(len(source), batch_size, 0, 1)
    return MonitoredLoader(samples, sampler, options, World(), persistent=persistent)


def error_of(loader, release=lambda: None):
    """The error that ends an iteration, without its frames: while those live, so do the workers.

    Args: release: called before the workers are shut down.
    """
    try:
        list(loader)
    except (DataError, ResourceError) as e:
        release()
        e.__cause__ = e.__context__ = None
        return e.with_traceback(None)
    raise AssertionError("no error")


@pytest.mark.seconds
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_are_not_forked_from_a_process_with_threads(persistent):
    # a forked child can inherit a lock from a thread that it does not have: runs hung at the start of an evaluation
    parent = error_of(monitored(ParentOfWorker(), workers=1, persistent=persistent))
    assert int(parent.problem) != os.getpid()


@pytest.mark.seconds
@pytest.mark.parametrize("workers", [0, 2])
def test_fault_38_a_bad_image_ends_the_epoch_with_its_path(own_photos, workers):
    bad = own_photos / "train" / "class_1" / "photo_3.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    error = error_of(monitored(open_folder(own_photos).train, workers=workers))
    assert isinstance(error, DataError) and error.subject == str(bad) and "Traceback" not in str(error)


@pytest.mark.seconds
@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_fault_38_samples_left_out_are_the_same_for_every_number_of_workers(own_photos, caplog, damage):
    """Each is listed once, by name; another sample replaces it, with its own label."""
    files = sorted((own_photos / "train" / "class_1").iterdir())[:3]
    for file in files:
        file.write_bytes(file.read_bytes()[:700] if damage is None else damage)
    source = open_folder(own_photos).train
    loaders = [monitored(source, 36, workers=n, on_bad="skip") for n in (0, 2)]
    (alone,), (others,) = loaders
    assert torch.equal(alone.images, others.images) and torch.equal(alone.targets, others.targets)
    assert torch.bincount(alone.targets).tolist() != [12, 12, 12] and len(alone.targets) == 36
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 6 and "skipped, 3 of at most 10 training samples: " in messages[2]
    assert all(sum(str(file) in message for message in messages) == 2 for file in files)
    caplog.clear()
    list(loaders[0])
    assert not caplog.records  # each is listed once


def test_fault_38_names_that_are_not_text_are_listed(own_photos, caplog):
    bad = os.fsencode(own_photos / "train/class_1") + b"/caf\xe9.jpg"
    with open(bad, "wb") as file:
        file.write(b"no image")
    list(monitored(open_folder(own_photos).train, on_bad="skip"))
    assert "caf\\udce9.jpg" in caplog.text


def test_fault_38_the_number_of_samples_left_out_is_bounded(own_photos):
    for file in sorted((own_photos / "train" / "class_1").iterdir())[:11]:
        file.write_bytes(b"")
    error = error_of(monitored(open_folder(own_photos).train, on_bad="skip"))
    assert isinstance(error, DataError) and Path(error.subject).parent == own_photos / "train/class_1"
    assert "empty file" in error.problem and "more than 10 training samples" in error.problem


@pytest.mark.seconds
def test_fault_30_a_killed_worker_is_named():
    error = error_of(monitored(Deadly(), workers=2))
    assert isinstance(error, ResourceError) and error.subject == "DATA.NUM_WORKERS"
    assert re.search(r"process \d+", error.problem)


def test_fault_30_a_killed_worker_is_noticed_long_before_the_timeout(monkeypatch):
    """torch alone looks at its workers once, after DATA.TIMEOUT."""
    monkeypatch.setattr(module, "POLL", 0.2)
    begun = time.monotonic()
    error = error_of(monitored(Deadly(), workers=2, timeout=500))
    assert time.monotonic() - begun < 60  # most of it is the start of the workers
    assert isinstance(error, ResourceError) and error.subject == "DATA.NUM_WORKERS"
    assert re.search(r"process \d+", error.problem)


@contextlib.contextmanager
def another_server():
    """A fork server that a test may kill: others of this process keep theirs."""
    server = multiprocessing.forkserver._forkserver
    before = {name: value for name, value in vars(server).items() if name != "_preload_modules"}
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    try:
        module.server_context()
        yield server._forkserver_pid
    finally:
        server._stop()
        vars(server).update(before)


def kill_workers():
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)


def test_fault_30_workers_killed_with_batches_on_their_way_end_the_run_with_one_error(photos):
    """The main process fetches the memory of a batch from the worker that made it."""
    batches = iter(monitored(open_folder(photos).train, workers=2))
    next(batches)
    time.sleep(0.5)  # both workers are ahead
    kill_workers()
    error = error_of(batches)
    assert isinstance(error, ResourceError) and error.subject == "DATA.NUM_WORKERS"


@pytest.mark.seconds
def test_fault_62_a_killed_fork_server_is_replaced_or_ends_the_run_with_one_error(photos):
    with another_server() as server:
        loader = monitored(open_folder(photos).train, workers=1)
        before = [batch.targets.tolist() for batch in loader]
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        assert [batch.targets.tolist() for batch in loader] == before
        replaced = multiprocessing.forkserver._forkserver._forkserver_pid
        assert replaced != server
        os.kill(replaced, signal.SIGSTOP)  # it is asked for a worker, and dies before it answers
        killer = threading.Timer(0.5, os.kill, (replaced, signal.SIGKILL))
        killer.start()
        error = error_of(loader)
        killer.join()
    assert isinstance(error, ResourceError) and error.subject == "DATA.NUM_WORKERS"
    assert "server" in error.problem


@pytest.mark.seconds
def test_fault_23_what_a_scheduler_sends_to_every_process_ends_no_worker(photos):
    """The program needs them until it has saved; it ends them itself."""
    others = set(multiprocessing.active_children())
    loader = monitored(open_folder(photos).train, workers=1, persistent=True)
    before = [batch.targets.tolist() for batch in loader]
    (worker,) = set(multiprocessing.active_children()) - others
    for each in HANDLED:
        subprocess.run(["kill", f"-{each.name[3:]}", str(worker.pid)], check=True)
    assert [batch.targets.tolist() for batch in loader] == before
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()


@pytest.mark.seconds
def test_persistent_workers_that_do_not_resume_are_replaced(photos, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.3)
    others = set(multiprocessing.active_children())
    loader = monitored(open_folder(photos).train, workers=1, persistent=True)
    before = [batch.targets.tolist() for batch in loader]
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (worker.pid, signal.SIGCONT)).start()
    assert [batch.targets.tolist() for batch in loader] == before
    assert not worker.is_alive()


@pytest.mark.seconds
def test_fault_30_a_worker_that_hangs_names_its_file(own_photos):
    """Opening a pipe that nobody writes to waits forever, like a file of a dead network disk."""
    pipe = own_photos / "train/class_0/photo_5.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    loader = monitored(open_folder(own_photos).train, workers=2, timeout=6)
    error = error_of(loader, release=lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))
    assert isinstance(error, DataError) and error.subject == "DATA.TIMEOUT"
    assert "6 seconds" in error.problem and str(pipe) in error.problem


def test_a_timeout_before_any_sample_is_read_blames_no_file(photos):
    loader = monitored(open_folder(photos).train, workers=2, timeout=6)
    error = loader._explain(RuntimeError("DataLoader timed out after 6 seconds"))
    assert isinstance(error, DataError) and error.subject == "DATA.TIMEOUT"
    assert "6 seconds" in error.problem and "photo" not in error.problem


def test_fault_53_too_little_shared_memory_is_refused(monkeypatch):
    room = os.statvfs("/")
    small = os.statvfs_result((*room[:1], 4096, 1000, 256, 256, *room[5:]))  # 256 blocks of 4 KiB are free
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    needed = "2 MiB of /dev/shm"  # 4 workers x 2 batches x 96 x 32 x 32 x 3 bytes
    with raises(ResourceError, "DATA.NUM_WORKERS", "4 loader workers", needed, "1 MiB are free", "--shm-size"):
        check_resources(LoaderOptions(96, workers=2), 3 * 32 * 32, local_size=2)
    check_resources(LoaderOptions(96, workers=0), 3 * 32 * 32, local_size=2)
    check_resources(LoaderOptions(48, workers=1), 3 * 32 * 32, local_size=1)


def allowed_files(soft, hard):
    """Lowers the limit of open files of this process; returns what two workers make of it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        check_resources(LoaderOptions(4, workers=2), 3 * 32 * 32, 1)
    except ResourceError as e:
        return e
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_fault_53_a_hard_limit_of_files_is_refused_and_a_soft_one_raised():
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:  # a hard limit cannot be taken back
        assert child.submit(allowed_files, 64, 1000).result() == 176
        error = child.submit(allowed_files, 64, 64).result()
    assert error.subject == "DATA.NUM_WORKERS" and "ulimit -n 176" in error.remedy
    assert all(part in error.problem for part in ("2 loader workers", "176", "64"))


@pytest.mark.seconds
def test_fault_53_descriptors_do_not_accumulate(photos):
    source = open_folder(photos).train
    living, counts = monitored(source, 12, workers=2, persistent=True), []
    for _ in range(10):
        list(living)
        list(monitored(source, 12, workers=2))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert min(counts[-2:]) <= counts[1] + 4, counts  # some are closed a moment later


def memory():
    """Kilobytes of this process and its descendants, shared pages counted once; without those of files, which other
    programs share as well."""
    own, total = os.getpid(), 0
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            parents[int(pid)] = int(stat.rsplit(")", 1)[1].split()[1])
    below = {own}
    for _ in range(4):
        below |= {pid for pid, parent in parents.items() if parent in below}
    for pid in below:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def growth(samples):
    """Relative growth of memory from a fifth of the samples to the last, with a million paths and 4 workers."""

    count, width = 1_000_000, len("00000/n00000_0000000.JPEG")
    text = "".join(f"{i // 1000:05}/n{i // 1000:05}_{i:07}.JPEG" for i in range(count)).encode()
    ends = np.arange(1, count + 1, dtype=np.int64) * width
    made = Index(np.frombuffer(text, np.uint8), ends, np.zeros(count, np.int32), {})
    index, _ = stored("million", lambda: (made, None, []))
    source = IndexedSource(index, ["any"], ManyPaths())
    loader = monitored(source, 250, workers=4, transform=replace(PLAIN, size=(8, 8)))
    first = 0
    for number, _ in enumerate(loader, start=1):
        if number * 250 == samples // 5:
            first = memory()
        if number * 250 >= samples:
            return memory() / first - 1
    raise AssertionError("fewer samples than asked for")


@pytest.mark.seconds
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_fault_54_memory_stays_over_a_million_paths():
    assert growth(20_000) < 0.05


def test_options_of_a_loader_come_from_the_configuration():
    given = {"BATCH_SIZE": 3, "NUM_WORKERS": 5, "PIN_MEMORY": False, "ON_BAD_IMAGE": "skip", "TIMEOUT": 7.0}
    overrides = [(f"DATA.{name}", value, "test") for name, value in given.items()]
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", overrides)
    assert LoaderOptions.from_config(cfg) == LoaderOptions(3, 5, False, "skip", 7.0)


@pytest.mark.parametrize(
    ("cores", "ranks", "workers"), [(2, "1", 2), (2, "2", 1), (64, "8", 8), (64, "2", 8), (3, "x", 3)]
)
def test_by_default_there_is_a_worker_for_each_core_of_a_ranks_share(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert LoaderOptions.from_config(configured()).workers == workers
