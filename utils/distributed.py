"""The processes of a job: who they are, which device each has, and what they tell each other."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import DistributedError


@dataclass(frozen=True)
class World:
    """This process among all processes of the job; a single process needs no launcher."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Any = field(default=None, repr=False)
    share: tuple[int, int] = (0, 1)  # this process and all processes of its machine
    alarm: "Alarm | None" = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Stack one tensor of equal shape from every process: (...) -> (size, ...), float64 on the CPU.

        Gathered rather than reduced: the order of the later sum is then fixed, whatever the backend does.
        """
        if self.size == 1:
            return rows.detach().cpu().double()[None]
        local = rows.detach().double()
        parts = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(parts, local)
        return torch.stack(parts).cpu()

    def tell(self, value: Any) -> Any:
        """The main process's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model that averages its gradients over the processes; the model itself for one process."""
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """One process of each machine goes before the others."""
        if self.share[0] != 0:
            self.barrier()
        yield
        if self.share[0] == 0:
            self.barrier()

    def speaks_first(self, topic: str) -> bool:
        """True for the first process that asks about `topic`: an error is shown once a job."""
        if self.store is None:
            return self.is_main  # before the processes have met, all of them fail alike
        try:
            return self.store.add(topic, 1) == 1
        except Exception:  # the process that held the store is gone: better said twice than not at all
            return True

    def end_together(self, code: int) -> int:
        """After an error: end all processes with the code of the one that failed first; returns it."""
        return code if self.alarm is None else self.alarm.raise_(code)

    def leave(self) -> None:
        """End the process group."""
        if self.alarm is not None:
            self.alarm.stop()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(timeout_minutes: float = 30) -> World:
    """Join the job that torchrun started, or be a job of one process; choose the device.

    Raises: DistributedError if a process has no GPU of its own.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _choose_device(int(os.environ.get("LOCAL_RANK", 0)), size)
    if size == 1:
        return World(rank=0, size=1, device=device)
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
    share = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    errors = dist.PrefixStore("errors", store)
    alarm = Alarm(errors.clone(), size)
    alarm.start()
    return World(rank, size, device, errors, share, alarm)


class Alarm(threading.Thread):
    """Ends this process when another one has failed: it would wait for it in an exchange, for minutes or for ever."""

    EVERY = 0.5  # seconds between two looks
    PATIENCE = 10  # seconds that a failed process waits for the others: one of them holds the store

    def __init__(self, store: Any, size: int):
        super().__init__(daemon=True)
        self._store, self._size = store, size
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        try:
            while not self._stopped.wait(self.EVERY):
                if self._store.check(["code"]) and not self._stopped.is_set():
                    code = int(self._store.get("code"))
                    self._store.add("ended", 1)
                    logging.shutdown()
                    os._exit(code)
        except Exception:  # the process that held the store is gone: its end closes the exchanges too
            return

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join(self.PATIENCE)

    def raise_(self, code: int) -> int:
        """Let the other processes end with `code`, or with that of another failure before; returns which it is."""
        self.stop()
        try:
            code = int(self._store.compare_set("code", "", str(code)))
            self._store.add("ended", 1)
            last = time.monotonic() + self.PATIENCE
            while self._store.add("ended", 0) < self._size and time.monotonic() < last:
                time.sleep(0.05)
        except Exception:  # the process that held the store is gone
            pass
        return code


def _choose_device(local_rank: int, size: int) -> torch.device:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise DistributedError(
                f"process {local_rank} of this machine has no GPU: torchrun --nproc_per_node: start {count} at most"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if torch.backends.mps.is_available() and size == 1:
        return torch.device("mps")
    return torch.device("cpu")
