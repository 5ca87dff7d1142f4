"""Loader workers: start, resource limits, and errors if a worker dies, hangs or finds corrupt files."""

import gc
import logging
import os
import re
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from yacs.config import CfgNode

from data.pipeline.dataset import Collator, EvalSamples, Key, TrainSamples
from data.pipeline.fork_server import exit_with_program, server_context
from data.pipeline.sample import Collate, Collated, stack
from utils.distributed.world import World
from utils.errors import DataError, ResourceError, listing
from utils.terminal import EVERY_RANK

log = logging.getLogger(EVERY_RANK)
PREFETCH = 2  # batches that each worker prepares in advance
SHARED_MEMORY = "/dev/shm"
# file descriptors of the program, and per worker: pipes, and one for each tensor in flight
_OWN_FILES, _FILES_PER_WORKER = 128, 24
# samples that may be skipped: a fraction of the dataset, but at least this many
MAX_BAD, ALWAYS_BAD = 0.01, 10


@dataclass(frozen=True)
class LoaderOptions:
    """`batch_size` of a micro-batch or of evaluation; `workers` per rank, 0 for none; `pin_memory`: page-locked
    batches; `on_bad`: "error", or "skip" a few unreadable samples, or "skip_any" number; `timeout`: seconds without a
    batch after which the run ends, 0 for never; `seed` of the run."""

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
        self._samples, self._timeout, self._world = samples, options.timeout, world
        self._split = "training" if isinstance(samples, TrainSamples) else "validation"
        self._bad: set[str] = set()
        self._max_bad = None if options.on_bad == "skip_any" else max(ALWAYS_BAD, int(MAX_BAD * len(samples)))
        # the index of the sample that each worker is processing, -1 for none
        self._current = torch.full((max(options.workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._loader = DataLoader(
            _Watched(samples, self._current),
            batch_sampler=sampler,
            num_workers=options.workers,
            multiprocessing_context=server_context() if options.workers else None,
            collate_fn=Collator(collate),
            pin_memory=options.pin_memory and torch.cuda.is_available(),
            persistent_workers=persistent and options.workers > 0,
            prefetch_factor=PREFETCH if options.workers else None,
            timeout=options.timeout if options.workers else 0,
            worker_init_fn=_start_worker,
            # otherwise every iteration would draw from the global generator
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Collated]:
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as e:
                raise self._explain(e) from e
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    del batch  # the frame, its exception and the loader would form a cycle and delay worker shutdown
            for error in batch.bad:
                self._skip(error)
            yield batch

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

    def _explain(self, error: RuntimeError) -> Exception:
        text = str(error)
        if "timed out" in text:
            names = [self._samples.name(index) for index in self._current.tolist() if index >= 0]
            cause = f"a loader worker hangs reading {listing(names)}" if names else "the machine may be overloaded"
            remedy = "check whether the disk responds" if names else "start fewer processes"
            problem = f"no batch for {self._timeout:g} seconds, {cause}"
            return DataError("DATA.TIMEOUT", problem, f"{remedy}, or raise it")
        died = re.search(r"pid\(?s?\)? ?\(?:?\s*([\d, ]+)", text)
        if "DataLoader worker" not in text or died is None:
            return error
        problem = f"a loader worker died (process {died[1].strip()}), probably for lack of memory"
        return ResourceError("DATA.NUM_WORKERS", problem, "use fewer, or a smaller DATA.BATCH_SIZE")


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
    gc.freeze()  # a collection would write to, and thus copy, 100 MB shared with the fork server
    for each in (signal.SIGINT, signal.SIGUSR1):  # the main process handles them
        signal.signal(each, signal.SIG_IGN)
    cv2.setNumThreads(1)
