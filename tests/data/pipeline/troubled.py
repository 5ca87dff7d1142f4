"""What is sent to worker processes: sources, storages, functions. It imports little, so that workers start quickly."""

import io
import os
import signal
import sys

from PIL import Image

from data.sources.base import Record
from utils.errors import DataError


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


def has_imported(module: str) -> bool:
    return module in sys.modules


class Deadly:
    """Twelve images of one colour; reading sample 5 kills the process."""

    def __init__(self) -> None:
        self._image = png(32)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Record:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return Record(self._image, 0, self.name(i))

    def name(self, i: int) -> str:
        return f"train/{i}.png"


class ParentOfWorker(Deadly):
    """Answers with the parent of the process that reads."""

    def __getitem__(self, i: int) -> Record:
        raise DataError("parent", str(os.getppid()))


class GroupOfWorker(Deadly):
    """Answers with the process group of the process that reads, its parent and the signals it blocks."""

    def __getitem__(self, i: int) -> Record:
        blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise DataError("group", f"{os.getpgid(0)} {os.getppid()} {[int(each) for each in blocked]}")


class ManyPaths:
    """Storage of one small image under any number of paths."""

    def __init__(self) -> None:
        self._image = png(8)

    def read(self, index, i: int) -> bytes:
        assert index.name(i)  # as a storage of files does
        return self._image

    def where(self, name: str) -> str:
        return name
