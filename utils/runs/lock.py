"""Exclusive ownership of an output folder: two runs writing the same files would corrupt both.

The owner keeps the folder open and thus notices when it is moved or removed.

owner.json holds host, process, scheduler job and a heartbeat. It is written in place and read by opening it, which NFS
keeps consistent across machines, unlike operating system locks. A dead owner is replaced automatically: on the
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

    def __init__(self, folder: Path, abort: Callable[[BaseException], None]):
        super().__init__(name="owner", daemon=True)
        self._folder, self._abort = folder, abort
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._stopped, self._released = threading.Event(), False
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
        """Acquires the folder, if necessary after watching the heartbeat of an owner on another machine.

        Args: abort: ends the job, from another thread, if another run takes the folder anyway.
        Raises: ConfigError if another run owns it; OSError if it is not writable.
        """
        owner = RunLock(folder, abort or World().abort)
        try:
            owner._take()
        except BaseException:
            os.close(owner._descriptor)
            raise
        owner.start()
        atexit.register(owner.release)  # for a run that fails before training
        return owner

    def _take(self) -> None:
        """Writes the record, unless there is a live owner. Raises: as for `acquire`."""
        folder, path = self._folder, self._folder / "owner.json"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            other = _read(path)
            if _is_alive(path, other):
                other = other or _read(path)  # the record was just being written
                job = f", job {other['job']}" if other.get("job") else ""
                problem = f"another run writes to this folder ({_describe(other)}{job})"
                remedy = f"wait for it, set a different --tag, or remove {path} if that run is dead"
                raise ConfigError(str(folder), problem, remedy) from None
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))  # the file may be gone by now
            self._write(path)
            time.sleep(SETTLE)
            if _read(path).get("token") != self._record["token"]:
                raise ConfigError(str(folder), "another run just took this folder", "set a different --tag") from None
        self._write(path)

    def place(self) -> Path | None:
        """Returns the current path of the folder, which may have moved; None if it was removed."""
        try:
            own = os.fstat(self._descriptor)
            if os.path.samestat(own, os.stat(self._folder)):
                return self._folder
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # the disk does not respond
            return self._folder
        try:
            moved = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            return moved if os.path.samestat(own, os.stat(moved)) else None
        except OSError:  # also where there is no /proc
            return None

    def run(self) -> None:
        """Sends heartbeats; ends the process if another run has taken the folder."""
        while not self._stopped.wait(BEAT):
            place = self.place()
            if place is None:
                continue
            try:
                found = _read(place / "owner.json")
                if found and found.get("token") != self._record["token"]:
                    problem = f"another run took over this folder ({_describe(found)})"
                    self._abort(ConfigError(str(place), problem, "set a different --tag"))
                    return
                self._record["beat"] += 1
                self._write(place / "owner.json")
            except OSError:  # the disk does not respond, so the heartbeat stops
                continue

    def release(self) -> None:
        """Releases the folder."""
        if self._released:
            return
        self._released = True
        self._stopped.set()
        if self.is_alive():
            self.join(BEAT)
        place = self.place()
        if place is not None and _read(place / "owner.json").get("token") == self._record["token"]:
            (place / "owner.json").unlink(missing_ok=True)
        os.close(self._descriptor)

    def _write(self, path: Path) -> None:
        """Overwrites the existing file with the same number of bytes, which works on a full disk. Raises: OSError."""
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, json.dumps(self._record).ljust(_SIZE).encode(), 0)
        finally:
            os.close(descriptor)


def _describe(record: dict[str, Any]) -> str:
    return f"host {record.get('host')}, process {record.get('process')}"


def _read(path: Path) -> dict[str, Any]:
    """Reads the record; returns an empty one if it is being written or is gone."""
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
    """Returns a name for this process's PID namespace: containers differ even if host names match."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(process: int) -> str | None:
    """Returns the start time of a process on this machine, or None if it has ended.

    Process IDs are reused, so an ID alone does not identify a process.
    """
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
