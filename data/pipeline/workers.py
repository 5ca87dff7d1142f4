"""Loader workers: start, resource limits, and errors if a worker dies, hangs or finds corrupt files."""

import logging
import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from yacs.config import CfgNode

from data.pipeline.dataset import Collator, EvalSamples, Key, TrainSamples
from data.pipeline.fork_server import exit_with_program, server_context
from data.pipeline.sample import Collate, Collated, stack
from utils.distributed.signals import HANDLED
from utils.distributed.world import World
from utils.errors import DataError, ResourceError, listing, one_line
from utils.terminal import EVERY_RANK

log = logging.getLogger(EVERY_RANK)
PREFETCH = 2  # batches that each worker prepares in advance
POLL = 2.0  # seconds without a batch after which the loader checks that its workers are alive
NOTICE = 2.0  # seconds until the fork server has reported the death of a worker
SHARED_MEMORY = "/dev/shm"
# file descriptors of the program, and per worker: pipes, and one for each tensor in flight
_OWN_FILES, _FILES_PER_WORKER = 128, 24
# samples that may be skipped: a fraction of the dataset, but at least this many
MAX_BAD, ALWAYS_BAD = 0.01, 10


@dataclass(frozen=True)
class LoaderOptions:
    """`batch_size`: per micro-batch, or in evaluation; `workers` per rank, 0 for none; `pin_memory`: page-locked
    batches; `on_bad`: "error", "skip" (a few unreadable samples) or "skip_any" (any number); `timeout`: seconds
    without a batch after which the run ends, 0 for never; `seed` of the run."""

    batch_size: int
    workers: int = 0
    pin_memory: bool = False
    on_bad: str = "error"
    timeout: float = 0
    seed: int = 0

    @staticmethod
    def from_config(cfg: CfgNode) -> "LoaderOptions":
        return LoaderOptions(
            batch_size=cfg.DATA.BATCH_SIZE,
            workers=cfg.DATA.NUM_WORKERS if isinstance(cfg.DATA.NUM_WORKERS, int) else default_workers(),
            pin_memory=cfg.DATA.PIN_MEMORY,
            on_bad=cfg.DATA.ON_BAD_IMAGE,
            timeout=cfg.DATA.TIMEOUT,
            seed=cfg.SEED,
        )


def default_workers() -> int:
    """Returns the number of cores per rank on this machine, at most 8."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // (int(ranks) if ranks.isdigit() else 1)))


class MonitoredLoader:
    """A DataLoader that fails with one clear error and counts skipped samples across all ranks."""

    def __init__(
        self,
        samples: TrainSamples | EvalSamples,
        sampler: Sampler,
        options: LoaderOptions,
        world: World,
        *,
        collate: Collate = stack,
        persistent: bool,
    ):
        """Args: collate: see `Pipeline`; persistent: keep workers alive between epochs."""
        cv2.setNumThreads(1)  # here and in the workers: parallelism is over images
        self._samples, self._sampler, self._options, self._world = samples, sampler, options, world
        self._collate, self._persistent = Collator(collate), persistent and options.workers > 0
        self._split = "training" if isinstance(samples, TrainSamples) else "validation"
        self._bad: set[str] = set()
        self._max_bad = None if options.on_bad == "skip_any" else max(ALWAYS_BAD, int(MAX_BAD * len(samples)))
        # the index of the sample that each worker is processing, -1 for none
        self._current = torch.full((max(options.workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._processes: list[BaseProcess] = []
        self._loader = self._new_loader()

    def _new_loader(self) -> DataLoader:
        options, workers = self._options, self._options.workers
        return DataLoader(
            _Watched(self._samples, self._current),
            batch_sampler=self._sampler,
            num_workers=workers,
            multiprocessing_context=server_context() if workers else None,
            collate_fn=self._collate,
            pin_memory=options.pin_memory and torch.cuda.is_available(),
            persistent_workers=self._persistent,
            prefetch_factor=PREFETCH if workers else None,
            # torch checks its workers only when this expires; `_next` waits for DATA.TIMEOUT
            timeout=min(POLL, options.timeout or POLL) if workers else 0,
            worker_init_fn=_start_worker,
            # otherwise every iteration would draw from the global generator
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Collated]:
        batches = self._start()
        while (batch := self._next(batches)) is not None:
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    del batch  # the frame, its exception and the loader would form a cycle and delay worker shutdown
            for error in batch.bad:
                self._skip(error)
            yield batch

    def _start(self) -> Iterator[Any]:
        """Starts the workers, or resumes the previous epoch's. Raises: ResourceError."""
        if not self._options.workers:
            return iter(self._loader)
        self._processes = multiprocessing.active_children()
        try:
            server_context()  # starts it again if it was killed
            try:
                batches = iter(self._loader)
            except RuntimeError as e:
                if not _timed_out(e):
                    raise
                self._loader = self._new_loader()  # persistent workers that do not resume are replaced
                batches = iter(self._loader)
        except (RuntimeError, OSError, EOFError) as e:
            raise self._explain(e) from e
        self._processes = multiprocessing.active_children()
        return batches

    def _next(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, None after the last. Raises: DataError after DATA.TIMEOUT, ResourceError."""
        last = time.monotonic() + (self._options.timeout or math.inf)
        while True:
            try:
                return next(batches, None)
            except (RuntimeError, OSError, EOFError) as e:
                if not _timed_out(e) or time.monotonic() >= last:
                    raise self._explain(e) from e

    def _skip(self, error: DataError) -> None:
        message = str(error).encode("utf-8", "backslashreplace").decode()  # file names may contain any bytes
        if message in self._bad:
            return
        self._bad.add(message)
        if self._max_bad is None:
            log.warning("skipped: %s", message)
            return
        count = self._world.count_distinct(f"skipped {self._split} samples", message) or len(self._bad)
        if count > self._max_bad:
            problem = f"{error.problem}, and more than {self._max_bad} {self._split} samples cannot be read"
            raise DataError(error.subject, problem, "find them all with scripts/prepare_data.py check")
        log.warning("skipped, %d of at most %d %s samples: %s", count, self._max_bad, self._split, message)

    def _explain(self, error: Exception) -> Exception:
        """Converts an error of the loader itself; others, raised by a dataset, are bugs and returned unchanged."""
        if not self._options.workers or "in DataLoader worker process" in str(error):
            return error
        if _timed_out(error):
            names = [self._samples.name(index) for index in self._current.tolist() if index >= 0]
            cause = f"a loader worker hangs reading {listing(names)}" if names else "the machine may be overloaded"
            remedy = "check whether the disk responds" if names else "start fewer processes"
            problem = f"no batch for {self._options.timeout:g} seconds, {cause}"
            return DataError("DATA.TIMEOUT", problem, f"{remedy}, or raise it")
        remedy = "use fewer, or a smaller DATA.BATCH_SIZE"
        lost = self._lost_processes()
        if lost and not any(map(_exists, lost)):
            problem = f"a loader worker died (process {listing(map(str, lost))}), probably for lack of memory"
        elif lost or isinstance(error, EOFError | ConnectionError):
            problem = "the server process of the loader workers died, probably for lack of memory"
        else:
            problem, remedy = f"the loader workers failed: {one_line(error)}", "use fewer, or raise ulimit -n"
        return ResourceError("DATA.NUM_WORKERS", problem, remedy)

    def _lost_processes(self) -> list[int]:
        """Returns the workers that are gone according to the fork server; all of them if the server is gone."""
        last = time.monotonic() + NOTICE
        while True:
            lost = [process.pid for process in self._processes if process.pid and not process.is_alive()]
            if lost or time.monotonic() >= last:
                return lost
            time.sleep(0.05)


def _timed_out(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out")


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


class _Watched(Dataset):
    """Records the sample that a worker is processing."""

    def __init__(self, samples: TrainSamples | EvalSamples, current: Tensor):
        self._samples, self._current = samples, current

    def __getitem__(self, key: Key) -> Any:
        worker = get_worker_info()
        slot = worker.id if worker else 0
        self._current[slot] = key[1]
        try:
            return self._samples[key]
        finally:
            self._current[slot] = -1


def check_resources(options: LoaderOptions, sample_bytes: int, local_size: int) -> None:
    """Checks that shared memory and file descriptors suffice for the batches in flight.

    Args: sample_bytes: approximate size of a sample; local_size: ranks on this machine, with equal numbers of workers.
    Raises: ResourceError.
    """
    workers = options.workers
    if not workers:
        return
    needed = local_size * workers * PREFETCH * options.batch_size * sample_bytes
    try:
        disk = os.statvfs(SHARED_MEMORY)
    except OSError:  # not present on all systems
        return
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        problem = f"{local_size * workers} loader workers need {needed / 2**20:,.0f} MiB of {SHARED_MEMORY}"
        remedy = "use fewer, or give the container more with --shm-size"
        raise ResourceError("DATA.NUM_WORKERS", f"{problem}, {free / 2**20:,.0f} MiB are free", remedy)
    files = _OWN_FILES + workers * _FILES_PER_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < files:
        problem = f"{workers} loader workers need {files} open files, {hard} are allowed"
        raise ResourceError("DATA.NUM_WORKERS", problem, f"use fewer, or allow more with ulimit -n {files}")
    if soft != unlimited and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def _start_worker(_worker: int) -> None:
    exit_with_program()
    for each in HANDLED - {signal.SIGTERM}:  # the main process handles them
        signal.signal(each, signal.SIG_IGN)
    cv2.setNumThreads(1)
