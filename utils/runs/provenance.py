"""What a checkpoint says about its run besides the training state, and what a run that resumes it must share."""

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint.

    `config` as YAML text; `global_batch` in samples; `preprocessing` of the images; `class_names` in label order;
    `data_counts`: training samples of each class; `data_fingerprint`: digest of the names and labels of the training
    samples. Data without classes leaves the last three empty.
    """

    config: str
    global_batch: int
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    data_counts: tuple[int, ...] = ()
    data_fingerprint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint holds: plain values, with the versions of the libraries."""
        return {
            "class_names": list(self.class_names),
            "data_counts": list(self.data_counts),
            "data_fingerprint": self.data_fingerprint,
            "global_batch": self.global_batch,
            "preprocessing": self.preprocessing.as_dict() if self.preprocessing else None,
            "config": self.config,
            "versions": versions(),
        }

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Compares with a checkpoint to resume from; what it does not say is not compared.

        Args: accept_changes: accept other training samples, with a warning.
        Raises: CheckpointError for other classes or samples; ConfigError for another global batch.
        """
        names = saved.get("class_names")
        if names is not None and list(names) != list(self.class_names):
            raise CheckpointError(
                f"the checkpoint has {len(names)} classes, the data {len(self.class_names)};"
                f" {_first_difference(names, self.class_names)}: {origin}:"
                " another --tag trains on other data; to fine-tune on other classes pass it to --pretrained"
            )
        batch = saved.get("global_batch")
        if batch is not None and batch != self.global_batch:
            raise ConfigError(
                f"the run was trained with a global batch of {batch}, now it is {self.global_batch}: {origin}:"
                f" set TRAIN.GLOBAL_BATCH_SIZE {batch}"
            )
        if saved.get("data_fingerprint") not in (None, self.data_fingerprint):
            self._report_changes(saved, origin, accept_changes)

    def _report_changes(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        changed = "the names of files differ"
        for name, before, now in zip(self.class_names, saved.get("data_counts", ()), self.data_counts, strict=False):
            if before != now:
                changed = f"class {name} had {before} files, now {now}"
                break
        if not accept_changes:
            raise CheckpointError(
                f"the training samples changed since the checkpoint was saved: {changed}: {origin}: restore them, or"
                " continue with the new ones by DATA.ACCEPT_CHANGES true"
            )
        log.warning("the training samples changed since the checkpoint was saved (%s): %s", changed, origin)


def versions() -> dict[str, str]:
    """Returns the versions of everything the numbers depend on."""
    names = ("torchvision", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build tag
    return {**own, **{name: version(name) for name in names}}


def _first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    for label, (a, b) in enumerate(zip_longest(one, other, fillvalue="none")):
        if a != b:
            return f"class {label} is {a} in the checkpoint and {b} in the data"
    return "none differs"
