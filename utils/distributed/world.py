"""The ranks of a job: rendezvous, devices, and communication."""

import logging
import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.distributed.launcher import wait_if_launcher_is_gone
from utils.distributed.watchdog import Watchdog
from utils.errors import DistributedError, report_error
from utils.rank import PATIENCE
from utils.runtime import tune_process

log = logging.getLogger(__name__)
T = TypeVar("T")
_NEVER = timedelta(days=365)
REACH = 10.0  # seconds to connect to torchrun


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
    watchdog: Watchdog | None = field(default=None, repr=False)
    _turns: list[None] = field(default_factory=list, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Stacks one tensor of equal shape from every rank: (...) -> (size, ...), float64 on the CPU.

        All-gather instead of all-reduce fixes the order of a later sum, independent of the backend.
        """
        if self.size == 1:
            return values.detach().cpu().double()[None]
        local = values.detach().double()
        parts = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(parts, local)
        return torch.stack(parts).cpu()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenates the rows of all ranks: (n, width), where n may differ -> (sum of n, width), float64 on the CPU.

        A rank without rows may pass any width.
        """
        if self.size == 1:
            return rows.detach().cpu().double()
        counts, widths = (
            self.gather(torch.tensor([float(side) for side in rows.shape], device=rows.device)).long().unbind(1)
        )
        padded = rows.new_zeros(int(counts.max()), int(widths.max()), dtype=torch.float64)
        padded[: rows.shape[0], : rows.shape[1]] = rows
        parts = zip(self.gather(padded), counts.tolist(), strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def begin_maximum(self, values: Tensor) -> dist.Work:
        """Starts replacing CPU values by their maximum across the ranks; they must not be read before `wait`."""
        work = dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        return work

    def gather_objects(self, value: T) -> list[T]:
        """Returns the `value` of every rank, in order, on every rank; it must pickle."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Returns the main rank's `value` on every rank; it must pickle."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Overwrites `tensor` with the main rank's, of the same shape and dtype."""
        if self.size > 1 and tensor.numel():
            box = tensor.detach().contiguous()
            dist.broadcast(box.view(-1).view(torch.uint8), 0)  # gloo does not support every dtype
            if box.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(box)

    def main_only(self, produce: Callable[[], T]) -> T:
        """Calls `produce` on the main rank and returns its result on every rank."""
        return self.broadcast(produce() if self.is_main else None)  # type: ignore[return-value]

    def check_equal(self, values: Mapping[str, object], remedy: str) -> None:
        """Checks that named values, such as configuration keys, are the same on every rank.

        Raises: DistributedError on every rank, for the first name and rank that differ from the main rank.
        """
        ranks = self.gather_objects((platform.node(), {name: str(value) for name, value in values.items()}))
        host, expected = ranks[0]
        for rank, (where, found) in enumerate(ranks):
            for name, value in expected.items():
                if found.get(name) != value:
                    differing = f"{found.get(name)} on rank {rank} ({where}), {value} on rank 0 ({host})"
                    raise DistributedError(name, f"the ranks differ: {differing}", remedy)

    def tick(self, position: str) -> None:
        """Records that this rank has made progress. Args: position: its position in the run."""
        if self.watchdog is not None:
            self.watchdog.tick(position)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Runs the block on the first rank of each machine before the others, without a timeout."""
        if self.local_rank != 0:
            self.store.wait([self._turn()], _NEVER)
        yield
        if self.local_rank == 0 and self.size > 1:  # not local_size: not every launcher sets LOCAL_WORLD_SIZE
            self.store.set(self._turn(), "done")

    def _turn(self) -> str:
        """Returns the key of this machine's next `local_main_first`."""
        self._turns.append(None)
        return f"turn {len(self._turns)} of rank {self.rank - self.local_rank}"

    def count_distinct(self, topic: str, item: str) -> int:
        """Counts `item` once per job, even if several ranks report it; returns the number of distinct items so far.

        In a single process there is no store and the caller must count: returns 0.
        """
        if self.store is None:
            return 0
        digest = sha256(item.encode("utf-8", "backslashreplace")).hexdigest()
        return self.store.add(topic, 1 if self.store.add(f"{topic}/{digest}", 1) == 1 else 0)

    def abort(self, error: BaseException) -> None:
        """Reports an error and ends all ranks, from any thread."""
        if self.watchdog is None:
            os._exit(report_error(error, speak=True))
        self.watchdog.aborting = error

    def end_together(self, error: BaseException, debug: bool) -> int:
        """Reports an error once per job and ends all ranks; returns the exit code of the rank that failed first."""
        watchdog = self.watchdog
        if watchdog is None:  # before the rendezvous all ranks fail alike, except for a missing GPU
            return report_error(error, speak=self.is_main or isinstance(error, DistributedError), debug=debug)
        if isinstance(error, RuntimeError) and _is_lost_connection(error):
            error = watchdog.explain(error)
        watchdog.stop()  # before the claim: otherwise, another rank's code may end this one unreported
        try:
            first = watchdog.claim("error")
        except RuntimeError:  # the rank that hosted the store is gone: better to report twice than never
            wait_if_launcher_is_gone()
            first = True
        return watchdog.raise_alarm(report_error(error, speak=first, debug=debug))

    def leave(self) -> None:
        """Destroys the process group."""
        if self.watchdog is not None:
            self.watchdog.leave()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(timeout_minutes: float = 30, device_type: str = "auto") -> World:
    """Joins the job launched by torchrun, or creates a single-process one; selects the device and tunes the process.

    Args: timeout_minutes: time without progress after which the job ends, 0 for never; device_type: "auto" for a GPU if
    there is one, "cuda", "cuda:N", "mps", "cpu".
    Raises: DistributedError if environment variables are missing or contradict each other, the other ranks do not join,
    or this machine has more ranks than GPUs.
    """
    rank, size = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    local_rank, local_size = _variable("LOCAL_RANK", 0), _variable("LOCAL_WORLD_SIZE", 1)
    if rank >= size:
        found = f"is {size}" if "WORLD_SIZE" in os.environ else "is not set"
        remedy = "start with torchrun, which sets both, or unset RANK"
        raise DistributedError("WORLD_SIZE", f"{found}, although RANK is {rank}", remedy)
    if size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            problem = f"not set, although WORLD_SIZE is {size}"
            raise DistributedError(missing[0], problem, "start with torchrun, which sets it, or unset WORLD_SIZE")
    device = _choose_device(device_type, local_rank, size)
    tune_process(device)
    if size == 1:
        return World(device=device)
    if device.type == "cuda":  # NCCL's error handling would kill the process before the watchdog reports the cause
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _reach(os.environ["MASTER_ADDR"], _variable("MASTER_PORT", 0), local_rank)
    try:
        store, rank, size = next(
            dist.rendezvous("env://", rank, size, timeout=timedelta(minutes=timeout_minutes or 60))
        )
        store = dist.PrefixStore(_meet(store, rank, size), store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("training", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=2 * timeout_minutes) if timeout_minutes else _NEVER,  # after the watchdog's
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as e:
        wait_if_launcher_is_gone()  # it hosts the store
        problem = f"rendezvous of {size} ranks failed ({str(e).strip().splitlines()[0]})"
        remedy = "check it and MASTER_PORT: every machine must reach rank 0"
        raise DistributedError("MASTER_ADDR", problem, remedy) from e
    watchdog = Watchdog(dist.PrefixStore("watchdog", store.clone()), rank, size, 60 * timeout_minutes)
    watchdog.start()
    return World(rank, size, device, local_rank, local_size, dist.PrefixStore("world", store), watchdog)


def _reach(host: str, port: int, local_rank: int) -> None:
    """Checks that torchrun's store, which was started before this rank, responds.

    Raises: DistributedError on the first rank of each machine, SystemExit on the others.
    """
    last = time.monotonic() + REACH
    while True:
        try:
            return socket.create_connection((host, port), timeout=REACH).close()
        except OSError as e:
            if time.monotonic() >= last:
                if local_rank:
                    raise SystemExit(DistributedError.exit_code) from e
                problem = f"it does not respond at {host}:{port} ({e.strerror or e})"
                raise DistributedError("torchrun", problem, "run the same command again to resume") from e
        time.sleep(0.5)


def _leave_to_rank(speaker: int, local_rank: int) -> None:
    """Ends this rank after a delay, without a message, unless it is the one on its machine that reports errors.

    Raises: SystemExit.
    """
    if local_rank != speaker:
        time.sleep(PATIENCE)  # the launcher ends the other ranks once one has ended
        raise SystemExit(DistributedError.exit_code)


def _meet(store: Any, rank: int, size: int) -> str:
    """Waits for all ranks; returns a name for this attempt of the job, the same on every rank.

    The launcher's store outlives an attempt (torchrun --max-restarts), and entries left by an earlier attempt must not
    be mistaken for this one's. Each rank posts a fresh token; the main rank announces the list of tokens, again
    whenever one is replaced, until every rank has seen its token in the list.
    """
    own, last = secrets.token_hex(8), time.monotonic() + store.timeout.total_seconds()
    store.set(f"token/{rank}", own)
    announced = ""
    while time.monotonic() < last:
        if rank == 0:
            tokens = ",".join(text.decode() for text in store.multi_get([f"token/{r}" for r in range(size)]))
            if tokens != announced:
                store.set("attempt", announced := tokens)
        attempt = store.get("attempt").decode()
        tokens_found = attempt.split(",")
        if len(tokens_found) == size and tokens_found[rank] == own:
            store.set(f"{attempt}/{rank}", "here")
            if store.check([f"{attempt}/{r}" for r in range(size)]):
                return sha256(attempt.encode()).hexdigest()[:16]
        time.sleep(0.02)
    raise RuntimeError("a rank did not join")


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise DistributedError(name, f"not a number: {text!r}", "start with torchrun, which sets it, or unset it")
    return int(text)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Returns whether a collective operation failed because of another rank; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl", "peer"))


def _choose_device(wanted: str, local_rank: int, size: int) -> torch.device:
    kind, _, number = wanted.partition(":")
    if size > 1 and (number or kind == "mps"):
        _leave_to_rank(0, local_rank)
        remedy = "use cuda, which gives each rank a GPU" if number else "start it without torchrun"
        raise DistributedError("--device", f"{wanted} is one device, but there are {size} ranks", remedy)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DistributedError("--device", "MPS is not available: it needs a Mac with Apple silicon", "use cpu")
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        count, index = torch.cuda.device_count(), int(number or local_rank)
        if number and index >= count:
            raise DistributedError("--device", f"no GPU {index}, there are {count}", f"choose 0 to {count - 1}")
        if index >= count:
            _leave_to_rank(count, local_rank)
            problem = f"rank {local_rank} of this machine has no GPU"
            raise DistributedError("--nproc_per_node", problem, f"launch at most {count}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f"CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else "torch finds none"
    if kind == "cuda":
        _leave_to_rank(0, local_rank)
        raise DistributedError("--device", f"no GPU is available: {why}", "use cpu, or check the GPU driver")
    if kind == "auto" and (hidden or Path("/dev/nvidia0").exists()):
        log.warning("no GPU is available (%s): running on the CPU; --device cpu silences this warning", why)
    if kind == "mps" or (kind == "auto" and torch.backends.mps.is_available() and size == 1):
        return torch.device("mps")
    return torch.device("cpu")
