"""Loader processes: how they start, what they need, and what is said when one dies, is stuck, or meets bad files."""

import functools
import logging
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.errors import DataError, LoaderError, some
from data.pipeline.dataset import Collated, Key, collate

log = logging.getLogger(__name__)
PREFETCH = 2  # batches that every process works ahead
SHARED_MEMORY = "/dev/shm"
# descriptors of the program itself, and of a loader process: pipes, and one for each tensor on its way
_OWN_FILES, _FILES_A_WORKER = 128, 24
# of the samples may be unreadable where they are to be skipped, but always so many
MOST_BAD, ALWAYS_BAD = 0.01, 10


class Samples(Protocol):
    """data/pipeline/dataset.py"""

    def __getitem__(self, key: Key) -> Any: ...
    def __len__(self) -> int: ...
    def name(self, number: int) -> str: ...


class Settings(Protocol):
    """data/loaders.py, LoaderSettings"""

    @property
    def workers(self) -> int: ...
    @property
    def pin_memory(self) -> bool: ...
    @property
    def timeout(self) -> float: ...


class Supervised:
    """A DataLoader that ends with one clear error, and counts the unreadable samples that were left out."""

    def __init__(self, samples: Samples, sampler: Sampler, settings: Settings, *, persistent: bool, processes: int):
        """Args: persistent: processes live on from one epoch to the next; processes: of the job, which share the
        samples."""
        cv2.setNumThreads(1)  # here and in the processes: images are worked on in parallel, not their parts
        self._samples, self._timeout = samples, settings.timeout
        self._bad: set[str] = set()
        self._most_bad = -(-max(ALWAYS_BAD, int(MOST_BAD * len(samples))) // processes)
        # the sample that each process is at, -1 for none
        self._at = torch.full((max(settings.workers, 1),), -1, dtype=torch.int64).share_memory_()
        self._loader = DataLoader(
            _Watched(samples, self._at),
            batch_sampler=sampler,
            num_workers=settings.workers,
            multiprocessing_context=_process_context() if settings.workers else None,
            collate_fn=collate,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
            persistent_workers=persistent and settings.workers > 0,
            prefetch_factor=PREFETCH if settings.workers else None,
            timeout=settings.timeout if settings.workers else 0,
            worker_init_fn=functools.partial(_begin, os.getpid()),
            # a generator of its own: without one, every iteration would draw from the global generator
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
                raise self._explained(e) from e
            if isinstance(batch, DataError):
                raise batch
            for message in batch.bad:
                self._note(message)
            yield batch

    def _note(self, message: str) -> None:
        message = message.encode("utf-8", "backslashreplace").decode()  # names of files may hold any bytes
        if message in self._bad:
            return
        self._bad.add(message)
        if len(self._bad) > self._most_bad:
            raise DataError(
                f"more than {self._most_bad} samples of this process cannot be read, the last: {message},"
                " or find them all with scripts/prepare_data.py check"
            )
        log.warning("left out, number %d of at most %d: %s", len(self._bad), self._most_bad, message)

    def _explained(self, error: RuntimeError) -> Exception:
        text = str(error)
        if "timed out" in text:
            names = [self._samples.name(number) for number in self._at.tolist() if number >= 0]
            where = some(names) or "none of its samples"
            return DataError(
                f"no batch for {self._timeout:g} seconds, a loader process is stuck: {where}:"
                " see whether the disk answers, or raise DATA.TIMEOUT"
            )
        died = re.search(r"pid\(?s?\)? ?\(?:?\s*([\d, ]+)", text)
        if "DataLoader worker" not in text or died is None:
            return error
        return LoaderError(
            f"a loader process died: process {died[1].strip()}: often memory was short: DATA.NUM_WORKERS: use fewer,"
            " or a smaller DATA.BATCH_SIZE"
        )


class _Watched(Dataset):
    """Notes which sample the process is at."""

    def __init__(self, samples: Samples, at: Tensor):
        self._samples, self._at = samples, at

    def __getitem__(self, key: Key) -> Any:
        worker = get_worker_info()
        place = worker.id if worker else 0
        self._at[place] = key[1]
        try:
            return self._samples[key]
        finally:
            self._at[place] = -1


def check_room(workers: int, batch_size: int, size: int, processes: int) -> None:
    """Whether shared memory and file descriptors suffice for the batches on their way.

    Args: processes: of the job on this machine, each with as many loader processes. Raises: LoaderError.
    """
    if not workers:
        return
    needed = processes * workers * PREFETCH * batch_size * size * size * 3
    try:
        disk = os.statvfs(SHARED_MEMORY)
    except OSError:  # systems without it share memory otherwise
        return
    if disk.f_bavail * disk.f_frsize < needed:
        raise LoaderError(
            f"{SHARED_MEMORY} has {disk.f_bavail * disk.f_frsize / 2**20:,.0f} MiB left,"
            f" {processes * workers} loader processes need {needed / 2**20:,.0f}: DATA.NUM_WORKERS: use fewer,"
            " or give the container more (--shm-size)"
        )
    files = _OWN_FILES + workers * _FILES_A_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < files:
        raise LoaderError(
            f"{hard} open files are allowed, {workers} loader processes need {files}: DATA.NUM_WORKERS: use fewer,"
            f" or allow more (ulimit -n {files})"
        )
    if soft != unlimited and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def _process_context() -> BaseContext:
    """Workers are forked from a server process that has a single thread.

    Forked from the training process, now and then one is born while a thread of gloo or nccl holds a lock of the
    interpreter; the child has the lock but not the thread, and waits for ever.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torchvision", "timm.data", "data.pipeline.transforms"]
    )  # once, not by each worker
    return context


def _begin(trainer: int, _worker: int) -> None:
    """Args: trainer: process number of the program."""
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's
    cv2.setNumThreads(1)


def _end_with(trainer: int) -> None:
    """End this process when the program is gone: its parent is the server, which would live as long as this does."""
    while True:
        time.sleep(2)
        try:
            os.kill(trainer, 0)
        except ProcessLookupError:
            os._exit(1)
