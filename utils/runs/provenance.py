"""The origin of a checkpoint, which a run that resumes it must share."""

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
    """The identity of the training samples: a digest of their names and targets. Tasks add what they need to know."""

    fingerprint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields of a checkpoint: plain values."""
        return {"data_fingerprint": self.fingerprint}

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Compares with a checkpoint to resume from; fields that it lacks are not compared.

        Args: accept_changes: accept other training samples, with a warning. Raises: CheckpointError.
        """
        if saved.get("data_fingerprint") in (None, self.fingerprint):
            return
        changed = self.difference(saved)
        if not accept_changes:
            raise CheckpointError(
                f"the training samples changed since the checkpoint was saved: {changed}: {origin}: restore them, or"
                " continue with the new ones by DATA.ACCEPT_CHANGES true"
            )
        log.warning("the training samples changed since the checkpoint was saved (%s): %s", changed, origin)

    def difference(self, saved: Mapping[str, Any]) -> str:
        """Describes in words how the training samples differ from those of a checkpoint."""
        return "the names of files differ"


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint.

    `config` as YAML text; `global_batch` in samples; `preprocessing` of the images; `info` on the training samples.
    """

    config: str
    global_batch: int
    preprocessing: Preprocessing | None = None
    info: DataInfo = field(default_factory=DataInfo)

    @staticmethod
    def of(cfg: CfgNode, plan: RunPlan, preprocessing: Preprocessing, info: DataInfo) -> "Provenance":
        return Provenance(dump_config(cfg), plan.shape.global_batch, preprocessing, info)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields of a checkpoint: plain values, with the versions of the libraries."""
        return {
            **self.info.as_dict(),
            "global_batch": self.global_batch,
            "preprocessing": self.preprocessing.as_dict() if self.preprocessing else None,
            "config": self.config,
            "versions": versions(),
        }

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        """Compares with a checkpoint to resume from; fields that it lacks are not compared.

        Args: accept_changes: accept other training samples, with a warning.
        Raises: CheckpointError for other data; ConfigError for another global batch.
        """
        self.info.check(saved, origin, accept_changes)
        batch = saved.get("global_batch")
        if batch is not None and batch != self.global_batch:
            raise ConfigError(
                f"the run was trained with a global batch of {batch}, now it is {self.global_batch}: {origin}:"
                f" set TRAIN.GLOBAL_BATCH_SIZE {batch}"
            )


def versions() -> dict[str, str]:
    """Returns the versions of everything the numbers depend on."""
    names = ("torchvision", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build tag
    return {**own, **{name: version(name) for name in names}}
