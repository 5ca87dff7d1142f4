"""One owner for an output folder: two runs that write the same files would spoil both.

owner.json holds host, process, scheduler job and a heartbeat. It is written in place and read by opening it, which is
what NFS keeps consistent between machines; locks of the operating system are not. A dead owner is replaced without a
question: on the same machine if its process is gone, on another one if its heartbeat does not move.
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

BEAT = 5.0  # seconds between two heartbeats
SILENCE = 25.0  # seconds without a heartbeat after which an owner on another machine is dead
_SIZE = 512  # bytes of the record
SETTLE = 0.5  # seconds after which a take-over is looked at again: another process may have had the same idea


class RunLock(threading.Thread):
    """Holds the folder until `release`. Create it with `take`."""

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
        """Takes the folder, if necessary after watching its owner on another machine for a while.

        Args: abort: ends the job, from another thread, if another run took the folder all the same.
        Raises: ConfigError if another run owns it; OSError if it cannot be written.
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
                raise ConfigError(
                    f"another run writes to this output folder (host {other.get('host')}, process"
                    f" {other.get('process')}{job}): {folder}: wait for it, set another --tag, or remove {owner.path}"
                    " if that run is dead"
                ) from None
            os.close(os.open(owner.path, os.O_CREAT | os.O_WRONLY, 0o644))  # it may have left meanwhile
            owner._write()
            time.sleep(SETTLE)
            if _read(owner.path).get("token") != owner._record["token"]:
                raise ConfigError(f"another run just took this output folder: {folder}: set another --tag") from None
        owner._write()
        owner.start()
        atexit.register(owner.release)  # for a run that fails before it has begun
        return owner

    def run(self) -> None:
        """Sends heartbeats; ends the process if another run took the folder."""
        while not self._stopped.wait(BEAT):
            try:
                found = _read(self.path)
                if found and found.get("token") != self._record["token"]:
                    error = ConfigError(
                        f"another run (host {found.get('host')}, process {found.get('process')}) took over the output"
                        f" folder: {self.path.parent}: this one ends"
                    )
                    self._abort(error)
                    return
                self._record["beat"] += 1
                self._write()
            except OSError:  # the disk does not respond: others will see that the heartbeat stands still
                continue

    def release(self) -> None:
        """Gives the folder back."""
        self._stopped.set()
        if self.is_alive():
            self.join(BEAT)
        if _read(self.path).get("token") == self._record["token"]:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        """Writes in place, always as many bytes: on a disk that is full by now the record stays readable.

        It does not create the file, which may have been given back. Raises: OSError.
        """
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, json.dumps(self._record).ljust(_SIZE).encode(), 0)
        finally:
            os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    """Returns the record, empty if it is being written or gone."""
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
    """Returns a name for the set of processes that this one sees: a container has its own, whatever its host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(process: int) -> str | None:
    """Returns when a process of this machine started, None if it has ended; its number may be used again."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, though nobody has asked for its code
    except (OSError, IndexError):
        pass
    try:  # without /proc
        os.kill(process, 0)
        return "running"
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return "running"
