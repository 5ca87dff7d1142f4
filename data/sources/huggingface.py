"""Data sets of the Hugging Face hub, read by timm: DATA.DATASET timm:hfds/<name>."""

import importlib
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from data.sources.base import IndexedSource, check_classes
from data.sources.index import Index, Stamp, stored
from utils.errors import DataError, listing

SPLITS = {"train": ("train",), "val": ("validation", "val", "test")}
# streams have no indices: neither order, resume nor sharding could be exact
STREAMS = {"wds": "read its shards with DATA.DATASET tar", "tfds": "export its images once", "hfids": "use hfds/"}


class ReaderStore:
    """A data set by its name in timm; downloaded, or read from `root` if that is given."""

    def __init__(self, name: str, root: str = ""):
        self._name, self._root = name, root
        kind, _, rest = name.partition("/")
        if kind.lower() in STREAMS:
            raise DataError(
                f"{kind}: data sets are streams without indices: DATA.DATASET timm:{name}: {STREAMS[kind.lower()]}"
            )
        if kind.lower() != "hfds" or not rest:
            raise DataError(f"no reader for {name!r}: DATA.DATASET: use timm:hfds/NAME for a data set of Hugging Face")

    def has(self, split: str) -> bool:
        try:
            self._opened(split)
        except DataError:
            return False
        return True

    def class_names(self, split: str) -> list[str]:
        return self._opened(split).class_names

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Raises: DataError for an unknown data set, or classes that are not in `class_names`."""
        storage = self._opened(split)
        own = storage.class_names
        names = list(own if class_names is None else class_names)
        check_classes(own, names, Path(f"{self._name}/{storage.split}"))
        labels = {label: names.index(name) for label, name in enumerate(own)}

        def build() -> tuple[Index, None, list[Stamp]]:
            found = storage.labels()
            strange = sorted({label for label in found if label not in labels})
            if strange:
                raise DataError(f"labels without a class name: {self._name}: {listing(map(str, strange))}: name them")
            rows = range(len(found))
            return Index.build([f"{i:09}" for i in rows], [labels[label] for label in found], row=rows), None, []

        key = "\0".join(["timm", self._name, storage.split, storage.fingerprint, *names])
        index, _ = stored(key, build)
        return IndexedSource(index, names, storage)

    def _opened(self, split: str) -> "ReaderStorage":
        tried = []
        for name in SPLITS[split]:
            storage = ReaderStorage(self._name, self._root, name)
            try:
                _ = storage.reader
            except DataError as e:
                tried.append(e)
                continue
            return storage
        raise tried[0]


class ReaderStorage:
    """Samples of timm's reader, opened in each process that reads."""

    def __init__(self, name: str, root: str, split: str):
        self._name, self._root, self.split = name, root, split

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "reader"}

    @cached_property
    def reader(self) -> Any:
        try:  # without the package, a folder of that name in the working directory would be imported
            importlib.import_module("datasets").disable_progress_bars()
        except (ImportError, AttributeError) as e:
            raise DataError(
                f"the package datasets is missing: DATA.DATASET timm:{self._name}: pip install datasets"
            ) from e
        from timm.data.readers import create_reader

        logging.getLogger("datasets").setLevel(logging.ERROR)
        try:
            return create_reader(self._name, self._root or None, self.split)
        except Exception as e:  # it raises anything
            reason = " ".join(str(e).split())[:200]
            raise DataError(
                f"cannot open {self.split} ({type(e).__name__}: {reason}): DATA.DATASET timm:{self._name}:"
                " check the name"
            ) from e

    @property
    def class_names(self) -> list[str]:
        order = self.reader.class_to_idx
        if not order:
            raise DataError(
                f"its labels have no names: DATA.DATASET timm:{self._name}: it needs a column with class names"
            )
        return sorted(order, key=order.__getitem__)

    @property
    def fingerprint(self) -> str:
        return self.reader.dataset._fingerprint

    def labels(self) -> list[int]:
        return [int(label) for label in self.reader.iter_targets()]

    def read(self, index: Index, i: int) -> bytes:
        image, _ = self.reader[int(index.columns["row"][i])]
        with image:
            return image.read()

    def where(self, name: str) -> str:
        return f"{self._name}/{self.split}[{int(name)}]"
