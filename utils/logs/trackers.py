"""Trackers, which receive the scalars of a run in addition to metrics.jsonl. A failing tracker is disabled."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from utils.errors import ConfigError, one_line
from utils.files import atomic_path
from utils.pictures import Pictures, as_image

log = logging.getLogger(__name__)


class Tracker:
    """Receives scalars by name, such as "train/loss" and "val/top1", for a given update. Methods default to no-ops."""

    def write(self, scalars: Mapping[str, float], update: int) -> None: ...
    def show(self, name: str, picture: Image.Image, update: int) -> None: ...
    def finish(self, settings: Mapping[str, Any], changed: Collection[str], metrics: Mapping[str, float]) -> None:
        """Receives the configuration, the keys that differ from their defaults, and the best metrics of a finished
        run."""

    def close(self) -> None: ...


class TensorBoard(Tracker):
    """Event files in tensorboard/. Args: update: the update to continue from; hides later events of earlier runs."""

    def __init__(self, folder: Path, update: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: on the writing rank only

        _silence_threads_of("tensorboard.")
        folder = folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # the files are opened at every flush: under this name even if the output folder was moved
        kept = Path(f"/proc/self/fd/{self._descriptor}")
        self._writer = SummaryWriter(str(kept if kept.exists() else folder), purge_step=update + 1)

    def write(self, scalars: Mapping[str, float], update: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update)

    def show(self, name: str, picture: Image.Image, update: int) -> None:
        self._writer.add_image(name, np.asarray(picture), update, dataformats="HWC")

    def finish(self, settings: Mapping[str, Any], changed: Collection[str], metrics: Mapping[str, float]) -> None:
        """Fills the HParams tab with the keys that were changed, and the best metrics."""
        own = {name: value for name, value in settings.items() if name in changed}
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in own.items()}
        self._writer.add_hparams(plain, {f"val/{name}_best": v for name, v in metrics.items()}, run_name=".")

    def close(self) -> None:
        self._writer.close()
        os.close(self._descriptor)


class PictureFiles(Tracker):
    """PNG files in pictures/, each overwritten by the newest with its name."""

    def __init__(self, folder: Path):
        self._folder = folder / "pictures"

    def show(self, name: str, picture: Image.Image, update: int) -> None:
        self._folder.mkdir(exist_ok=True)
        with atomic_path(self._folder / f"{name.replace('/', '_')}.png") as temporary:
            picture.save(temporary, "PNG")


class WeightsAndBiases(Tracker):
    """A run of the project `LOG.WANDB`, the same one after a restart. WANDB_MODE=offline works without a network."""

    def __init__(self, folder: Path, project: str):
        try:
            import wandb
        except ImportError as e:
            raise ConfigError("LOG.WANDB", "the package wandb is missing", "pip install wandb") from e
        name = "/".join(folder.resolve().parts[-2:])
        digest = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._run = wandb.init(project=project, name=name, id=digest, resume="allow", dir=str(folder))

    def write(self, scalars: Mapping[str, float], update: int) -> None:
        self._run.log(dict(scalars), step=update)

    def show(self, name: str, picture: Image.Image, update: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=update)

    def finish(self, settings: Mapping[str, Any], changed: Collection[str], metrics: Mapping[str, float]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)
        self._run.summary.update({f"best/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """All trackers of a run. Args: wandb: a project, "" for none. Raises: ConfigError if a package is missing."""

    def __init__(self, folder: Path, update: int, wandb: str = ""):
        self._all: list[Tracker] = []
        makers: dict[str, Callable[[], Tracker]] = {
            "TensorBoard": lambda: TensorBoard(folder, update),
            "pictures": lambda: PictureFiles(folder),
        }
        if wandb:
            makers["Weights & Biases"] = lambda: WeightsAndBiases(folder, wandb)
        for name, make in makers.items():
            try:
                self._all.append(make())
            except ConfigError:
                raise
            except Exception as e:  # from the disk, the network, or the tracker: the run matters more
                log.warning("%s cannot be started (%s); training continues", name, one_line(e))

    def write(self, scalars: Mapping[str, float], update: int) -> None:
        self._each(lambda tracker: tracker.write(scalars, update))

    def show(self, pictures: Pictures, update: int) -> None:
        """Draws the pictures and sends them; skips a picture that cannot be drawn, with a warning."""
        for name, draw in pictures.items():
            try:
                picture = as_image(draw())
            except Exception as e:  # from the data, the disk or Matplotlib: the run matters more
                log.warning("cannot draw %s (%s); training continues", name, one_line(e))
                continue
            self._each(lambda tracker, name=name, picture=picture: tracker.show(name, picture, update))  # type: ignore[misc]

    def finish(self, settings: Mapping[str, Any], changed: Collection[str], metrics: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.finish(settings, changed, metrics))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._all):
            try:
                call(tracker)
            except Exception as e:  # trackers raise errors of any kind, also from their threads
                name = type(tracker).__name__
                log.warning("%s failed and is disabled (%s); training continues", name, one_line(e))
                self._all.remove(tracker)


def _silence_threads_of(package: str) -> None:
    """Silences tracebacks of threads of `package` that fail, since its next call raises the same error."""
    report = threading.excepthook

    def report_others(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith(package):
            report(failure)

    threading.excepthook = report_others


def flat_settings(config: str) -> dict[str, Any]:
    """Flattens a configuration, given as YAML text, to dotted names and values."""
    settings: dict[str, Any] = {}
    pending = list((yaml.safe_load(config) or {}).items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{inner}", each) for inner, each in value.items()]
        else:
            settings[name] = value
    return settings
