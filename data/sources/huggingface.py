"""Datasets from the Hugging Face Hub, read by timm: DATA.DATASET timm:hfds/<name>."""

import importlib
import logging
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from data.sources.base import IndexedSource, check_classes
from data.sources.index import Index, Stamp, stored
from utils.checkpoints.downloads import is_reachable
from utils.errors import DataError, listing

SPLITS = {"train": ("train",), "val": ("validation", "val", "test")}
# streams have no indices, so order, resume and sharding could not be exact
STREAMS = {"wds": "read its shards with DATA.DATASET tar", "tfds": "export its images once", "hfids": "use hfds/"}


class ReaderStore:
    """A dataset, given its timm name; downloaded if necessary, to the cache folder `root` if given.

    Args: columns: names of the image and label columns.
    """

    def __init__(self, name: str, root: str, columns: tuple[str, str]):
        self._name, self._root, self._columns = name, root, columns
        kind, _, rest = name.partition("/")
        if kind.lower() in STREAMS:
            problem = f"timm:{name} is a stream without indices"
            raise DataError("DATA.DATASET", problem, STREAMS[kind.lower()])
        if kind.lower() != "hfds" or not rest:
            remedy = "use timm:hfds/NAME for a dataset of Hugging Face"
            raise DataError("DATA.DATASET", f"no reader for timm:{name}", remedy)

    def has(self, split: str) -> bool:
        try:
            self._opened(split)
        except DataError:
            return False
        return True

    def class_names(self, split: str) -> list[str]:
        return self._opened(split).class_names

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError for an unknown dataset or column, or classes not in `class_names`."""
        storage = self._opened(split)
        own = storage.class_names
        names = list(own if class_names is None else class_names)
        check_classes(own, names, Path(f"{self._name}/{storage.split}"))
        labels = {label: names.index(name) for label, name in enumerate(own)}

        def build() -> tuple[Index, None, list[Stamp]]:
            found = storage.labels()
            unknown = sorted({label for label in found if label not in labels})
            if unknown:
                problem = f"timm:{self._name} has labels without a class name: {listing(map(str, unknown))}"
                raise DataError("DATA.DATASET", problem, "name them")
            rows = range(len(found))
            return Index.build([f"{i:09}" for i in rows], [labels[label] for label in found], row=rows), None, []

        key = "\0".join(["timm", self._name, storage.split, storage.fingerprint, *self._columns, *names])
        index, _ = stored(key, build)
        return IndexedSource(index, names, storage)

    def _opened(self, split: str) -> "ReaderStorage":
        tried = []
        for name in SPLITS[split]:
            storage = ReaderStorage(self._name, self._root, name, self._columns)
            try:
                _ = storage.reader
                return storage
            except DataError as e:
                tried.append(e)
        raise next((e for e in tried if e.subject != "DATA.DATASET"), tried[0])  # a column, rather than a split


class ReaderStorage:
    """Samples of timm's reader, which each process opens on first use."""

    def __init__(self, name: str, root: str, split: str, columns: tuple[str, str]):
        self._name, self._root, self.split = name, root, split
        self._image, self._label = columns

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "reader"}

    @cached_property
    def reader(self) -> Any:
        dataset = f"timm:{self._name}"
        try:  # without the package, a folder of that name in the working directory would be imported
            importlib.import_module("datasets").disable_progress_bars()
        except (ImportError, AttributeError) as e:
            raise DataError("DATA.DATASET", f"{dataset} needs the package datasets", "pip install datasets") from e
        from timm.data.readers import create_reader

        repository = self._name.partition("/")[2]
        offline = not Path(repository).exists() and _work_offline()
        logging.getLogger("datasets").setLevel(logging.ERROR)
        keys = {"input_key": self._image, "target_key": self._label}
        try:
            reader = create_reader(self._name, self._root or None, self.split, **keys)
            images = reader.dataset.data.column(self._image)
            empty = len(images) == images.null_count
        except Exception as e:  # readers raise any type
            if offline:
                problem = f"{dataset} is not in the cache, and Hugging Face cannot be reached"
                remedy = f"check the network, or fetch it elsewhere: hf download --repo-type dataset {repository}"
                raise DataError("DATA.DATASET", problem, remedy) from e
            problem = f"cannot open {self.split} of {dataset} ({_reason(e)})"
            raise DataError("DATA.DATASET", problem, "check the name") from e
        if empty:  # timm adds a missing column
            self._check_column("DATA.IMAGE_COLUMN", self._image, self._all_columns())
        return reader

    def _all_columns(self) -> list[str]:
        """Returns the columns as stored."""
        load = importlib.import_module("datasets").load_dataset
        return load(self._name.partition("/")[2], split=self.split, cache_dir=self._root or None).column_names

    def _check_column(self, key: str, name: str, known: Sequence[str]) -> None:
        """Raises: DataError if a column is not among those known."""
        if name not in known and name.partition("/")[0] not in known:  # timm also accepts a path
            problem = f"no column {name!r} in {self.split} of timm:{self._name}"
            raise DataError(key, problem, f"set it to one of {listing(known, 20)}")

    @property
    def class_names(self) -> list[str]:
        order = self.reader.class_to_idx
        if not order:
            features = self.reader.dataset.features
            self._check_column("DATA.LABEL_COLUMN", self._label, list(features))
            problem = f"the labels in {self._label!r} of timm:{self._name} have no names"
            named = [name for name, feature in features.items() if getattr(feature, "names", None)]
            remedy = f"set it to one of {listing(named, 20)}" if named else "choose a dataset with class labels"
            raise DataError("DATA.LABEL_COLUMN", problem, remedy)
        return sorted(order, key=order.__getitem__)

    @property
    def fingerprint(self) -> str:
        return self.reader.dataset._fingerprint

    def labels(self) -> list[int]:
        labels: list[int] = []
        try:
            labels.extend(map(int, self.reader.iter_targets()))
        except Exception as e:  # readers raise any type
            problem = f"the label cannot be read ({_reason(e)})"
            raise DataError(self.where(str(len(labels))), problem, "correct or remove it") from e
        return labels

    def read(self, index: Index, i: int) -> bytes:
        try:
            image, _ = self.reader[int(index.columns["row"][i])]
            with image:
                return image.read()
        except OSError:
            raise
        except Exception as e:  # readers raise any type
            problem = f"the image cannot be read ({_reason(e)})"
            raise DataError(self.where(index.name(i)), problem, "restore or remove it") from e

    def where(self, name: str) -> str:
        return f"{self._name}/{self.split}[{int(name)}]"


@cache
def _work_offline() -> bool:
    """Makes the packages of Hugging Face use their caches alone if it cannot be reached; they would try for a minute.

    Returns: whether it cannot.
    """
    import datasets
    from huggingface_hub import constants

    if not (constants.HF_HUB_OFFLINE or is_reachable(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
