"""Provenance of a checkpoint, which must match when the run is resumed."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from configs.loading import dump_config
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing
from utils.training.plan import RunPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInfo:
    """The identity of the training samples: a digest of their names and targets. Tasks may add fields.

    `upright`: whether images are turned by their EXIF orientation.
    """

    fingerprint: str = ""
    upright: bool = field(default=False, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields to store in a checkpoint: plain values."""
        return {"data_fingerprint": self.fingerprint}

    def files(self) -> dict[str, str]:
        """Returns files to write to the output folder: text by name."""
        return {}

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Compares with a checkpoint to resume from; fields missing from it are not compared.

        Args: accept_changes: only warn about other training samples. Raises: CheckpointError.
        """
        if saved.get("data_fingerprint") in (None, self.fingerprint):
            return
        problem = f"the training samples changed since {origin} was saved: {self.difference(saved)}"
        if not accept_changes:
            remedy = "restore them, or set DATA.ACCEPT_CHANGES to true to continue with the new ones"
            raise CheckpointError("DATA.DATA_PATH", problem, remedy)
        log.warning("%s", problem)

    def difference(self, saved: Mapping[str, Any]) -> str:
        """Describes how the training samples differ from a checkpoint's."""
        return "the file names differ"


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint.

    `config` as YAML text; `global_batch` in samples; `preprocessing` of the images; `info` about the training samples.
    """

    config: str
    global_batch: int
    preprocessing: Preprocessing | None = None
    info: DataInfo = field(default_factory=DataInfo)

    @staticmethod
    def of(cfg: CfgNode, plan: RunPlan, preprocessing: Preprocessing, info: DataInfo) -> "Provenance":
        return Provenance(dump_config(cfg), plan.shape.global_batch, preprocessing, info)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields to store in a checkpoint: plain values, including library versions."""
        return {
            **self.info.as_dict(),
            "global_batch": self.global_batch,
            "preprocessing": self.preprocessing.as_dict() if self.preprocessing else None,
            "config": self.config,
            "versions": versions(),
        }

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Compares with a checkpoint to resume from; fields missing from it are not compared.

        Args: accept_changes: only warn about other training samples.
        Raises: CheckpointError for other data; ConfigError for a different global batch size.
        """
        self.info.check(saved, origin, accept_changes)
        batch = saved.get("global_batch")
        if batch is not None and batch != self.global_batch:
            problem = f"the global batch is {self.global_batch}, but {origin} was trained with {batch}"
            raise ConfigError("TRAIN.GLOBAL_BATCH_SIZE", problem, f"set it to {batch}")


def versions() -> dict[str, str]:
    """Returns the versions of everything the results depend on."""
    names = ("torchvision", "timm", "numpy", "pillow")
    torch_version = str(torch.__version__)  # with the build tag
    return {"python": platform.python_version(), "torch": torch_version, **{name: version(name) for name in names}}
