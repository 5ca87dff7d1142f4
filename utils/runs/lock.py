"""Exclusive ownership of an output folder: two runs writing the same files would corrupt both.

owner.json holds host, process, scheduler job and a heartbeat. It is written in place and read by opening it, which NFS
keeps consistent between machines, unlike locks of the operating system. A dead owner is replaced automatically: on the
same machine if its process is gone, on another one if its heartbeat has stopped.
"""

import atexit
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.distributed.world import World
from utils.errors import ConfigError

BEAT = 5.0  # seconds between heartbeats
SILENCE = 25.0  # seconds without a heartbeat after which an owner on another machine counts as dead
_SIZE = 512  # bytes of the record
SETTLE = 0.5  # seconds after which a take-over is verified: another process may have attempted it too


class RunLock(threading.Thread):
    """Holds the folder until `release`. Created by `acquire`."""

    def __init__(self, path: Path, abort: Callable[[BaseException], None]):
        super().__init__(name="owner", daemon=True)
        self.path, self._abort = path, abort
        self._stopped = threading.Event()
        self._record: dict[str, Any] = {
            "host": platform.node(),
            "machine": machine_name(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID") or os.environ.get("LSB_JOBID"),
            "token": secrets.token_hex(8),
            "beat": 0,
        }

    @staticmethod
    def acquire(folder: Path, abort: Callable[[BaseException], None] | None = None) -> "RunLock":
        """Acquires the folder, if necessary after watching the heartbeat of its owner on another machine.

        Args: abort: ends the job, from another thread, if another run takes the folder nevertheless.
        Raises: ConfigError if another run owns it; OSError if it is not writable.
        """
        owner = RunLock(folder / "owner.json", abort or World().abort)
        try:
            descriptor = os.open(owner.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.close(descriptor)
        except FileExistsError:
            other = _read(owner.path)
            if _is_alive(owner.path, other):
                other = other or _read(owner.path)  # it was just being written
                job = f", job {other['job']}" if other.get("job") else ""
                problem = f"another run writes to this folder ({_describe(other)}{job})"
                remedy = f"wait for it, set a different --tag, or remove {owner.path} if that run is dead"
                raise ConfigError(str(folder), problem, remedy) from None
            os.close(os.open(owner.path, os.O_CREAT | os.O_WRONLY, 0o644))  # it may be gone by now
            owner._write()
            time.sleep(SETTLE)
            if _read(owner.path).get("token") != owner._record["token"]:
                raise ConfigError(str(folder), "another run just took this folder", "set a different --tag") from None
        owner._write()
        owner.start()
        atexit.register(owner.release)  # for a run that fails before training
        return owner

    def run(self) -> None:
        """Sends heartbeats; ends the process if another run took the folder."""
        while not self._stopped.wait(BEAT):
            try:
                found = _read(self.path)
                if found and found.get("token") != self._record["token"]:
                    problem = f"another run took over this folder ({_describe(found)})"
                    self._abort(ConfigError(str(self.path.parent), problem, "set a different --tag"))
                    return
                self._record["beat"] += 1
                self._write()
            except OSError:  # the disk does not respond, so the heartbeat stops
                continue

    def release(self) -> None:
        """Releases the folder."""
        self._stopped.set()
        if self.is_alive():
            self.join(BEAT)
        if _read(self.path).get("token") == self._record["token"]:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        """Overwrites the existing file, with the same number of bytes: this works on a full disk. Raises: OSError."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, json.dumps(self._record).ljust(_SIZE).encode(), 0)
        finally:
            os.close(descriptor)


def _describe(record: dict[str, Any]) -> str:
    return f"host {record.get('host')}, process {record.get('process')}"


def _read(path: Path) -> dict[str, Any]:
    """Reads the record, empty if it is being written or gone."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_alive(path: Path, record: dict[str, Any]) -> bool:
    if record.get("machine") == machine_name():
        return record.get("started") is not None and _started(record.get("process", 0)) == record["started"]
    last = time.monotonic() + SILENCE
    while time.monotonic() < last:
        time.sleep(min(1.0, SILENCE / 10))
        if not path.exists():
            return False
        now = _read(path)
        if now and now != record and record:
            return True
        record = record or now
    return False


def machine_name() -> str:
    """Returns a name for the PID namespace of this process: containers differ even if host names match."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(process: int) -> str | None:
    """Returns the start time of a process on this machine, None if it has ended; process IDs are reused."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, but was not reaped
    except (OSError, IndexError):
        pass
    try:  # without /proc
        os.kill(process, 0)
        return "running"
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return "running"
