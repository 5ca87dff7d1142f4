"""The ranks of a job: devices, collectives, and how an error on one rank ends all of them."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import DistributedError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This rank among all ranks of the job; a single process needs no launcher.

    `local_rank` and `local_size` are the rank and the number of ranks on this machine; `store` is a key-value store
    that all ranks reach, None for a single process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, repr=False)
    watchdog: "Watchdog | None" = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Stacks one tensor of equal shape from every rank: (...) -> (size, ...), float64 on the CPU.

        Gathered rather than reduced: the order of the later sum is then fixed, whatever the backend does.
        """
        if self.size == 1:
            return values.detach().cpu().double()[None]
        local = values.detach().double()
        parts = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(parts, local)
        return torch.stack(parts).cpu()

    def broadcast(self, value: T) -> T:
        """Returns the main rank's `value` on every rank; it must pickle."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Lets the first rank of each machine run the block before the others."""
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def claim(self, topic: str) -> bool:
        """Returns True on the first rank that asks for `topic`, so that something is done once per job."""
        if self.store is None:
            return self.is_main  # before the ranks have met, all of them fail alike
        try:
            return self.store.add(topic, 1) == 1
        except Exception:  # the rank that hosted the store is gone: better twice than not at all
            return True

    def count_distinct(self, topic: str, item: str) -> int:
        """Counts `item` once per job, whichever ranks report it; returns how many distinct items there are now.

        Without a store, in a single process, the caller keeps count: returns 0.
        """
        if self.store is None:
            return 0
        digest = sha256(item.encode("utf-8", "backslashreplace")).hexdigest()
        return self.store.add(topic, 1 if self.store.add(f"{topic}/{digest}", 1) == 1 else 0)

    def end_together(self, code: int) -> int:
        """Ends all ranks after an error, with the code of the rank that failed first; returns it."""
        return code if self.watchdog is None else self.watchdog.raise_alarm(code)

    def leave(self) -> None:
        """Destroys the process group."""
        if self.watchdog is not None:
            self.watchdog.stop()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(timeout_minutes: float = 30) -> World:
    """Joins the job that torchrun launched, or creates a job of one process; selects the device.

    Raises: DistributedError if there are more ranks on this machine than GPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = _choose_device(local_rank, size)
    if size == 1:
        return World(device=device)
    store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=timedelta(minutes=timeout_minutes)))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("training", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=timeout_minutes),
        device_id=device if device.type == "cuda" else None,
    )
    errors = dist.PrefixStore("errors", store)
    watchdog = Watchdog(errors.clone(), size)
    watchdog.start()
    return World(rank, size, device, local_rank, local_size, errors, watchdog)


class Watchdog(threading.Thread):
    """Ends this rank when another one has failed; it would otherwise wait in a collective for minutes or forever."""

    INTERVAL = 0.5  # seconds between two checks
    PATIENCE = 10  # seconds a failed rank waits for the others: one of them hosts the store

    def __init__(self, store: Any, size: int):
        super().__init__(daemon=True)
        self._store, self._size = store, size
        self._stopped = threading.Event()

    def run(self) -> None:
        """Checks until `stop`."""
        try:
            while not self._stopped.wait(self.INTERVAL):
                if self._store.check(["code"]) and not self._stopped.is_set():
                    code = int(self._store.get("code"))
                    self._store.add("ended", 1)
                    logging.shutdown()
                    os._exit(code)
        except Exception:  # the rank that hosted the store is gone, which ends the collectives too
            return

    def stop(self) -> None:
        """Stops checking."""
        self._stopped.set()
        self.join(self.PATIENCE)

    def raise_alarm(self, code: int) -> int:
        """Ends the other ranks with `code`, or with the code of an earlier failure; returns which it is."""
        self.stop()
        try:
            code = int(self._store.compare_set("code", "", str(code)))
            self._store.add("ended", 1)
            last = time.monotonic() + self.PATIENCE
            while self._store.add("ended", 0) < self._size and time.monotonic() < last:
                time.sleep(0.05)
        except Exception:  # the rank that hosted the store is gone
            pass
        return code


def _choose_device(local_rank: int, size: int) -> torch.device:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise DistributedError(
                f"rank {local_rank} of this machine has no GPU: torchrun --nproc_per_node: launch at most {count}"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if torch.backends.mps.is_available() and size == 1:
        return torch.device("mps")
    return torch.device("cpu")
