"""Normalisation and cropping of images, as used to train a model's weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yacs.config import CfgNode

from utils.errors import ConfigError

Size = tuple[int, int]  # height, width in pixels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_PCT = 0.875  # 224 / 256, as for the paper's accuracies
CROPS = (0.05, 1.0)  # least and most; below, images would be resized to huge sides


@dataclass(frozen=True)
class Preprocessing:
    """`mean` and `std` per channel, for pixels in [0, 1]; `crop_pct`: side of the evaluation's centre crop over the
    side the image is resized to; `interpolation`: the filter used in training, "" if unknown."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = CROP_PCT
    interpolation: str = ""

    @staticmethod
    def stored(contents: Mapping[str, Any]) -> "Preprocessing | None":
        """Returns the preprocessing stored in a checkpoint or converted file, None if there is none."""
        values = contents.get("preprocessing")
        if not isinstance(values, Mapping):
            return None
        return Preprocessing(
            tuple(values["mean"]), tuple(values["std"]), values["crop_pct"], values.get("interpolation", "")
        )

    def configured(self, cfg: CfgNode, channels: int) -> "Preprocessing":
        """Returns these values with the configured keys applied, for `channels` channels.

        Raises: ConfigError if a key does not have one value per channel.
        """
        return Preprocessing(
            mean=_per_channel("DATA.MEAN", cfg.DATA.MEAN, self.mean, channels),
            std=_per_channel("DATA.STD", cfg.DATA.STD, self.std, channels),
            crop_pct=self.crop_pct if isinstance(cfg.TEST.CROP_PCT, str) else cfg.TEST.CROP_PCT,
            interpolation=cfg.DATA.INTERPOLATION,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values to store in a checkpoint."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def normalised(self) -> str:
        """Describes the normalisation."""
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"pixels normalised by mean {mean}, std {std}"

    def __str__(self) -> str:
        return f"{self.normalised}; {self.interpolation} resizing"


def _per_channel(key: str, given: str | list[float], own: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Returns the configured values or, for "auto", the model's: their mean for one channel, repeated for more."""
    if not isinstance(given, str):
        if len(given) != channels:
            raise ConfigError(key, f"has {len(given)} values for {channels} channels", "set one per channel")
        return tuple(given)
    if len(own) == channels:
        return own
    return (sum(own) / len(own),) if channels == 1 else tuple(own[i % len(own)] for i in range(channels))


def image_size(value: int | Sequence[int]) -> Size:
    """Returns (height, width) of a configured size: one side of a square, or both sides."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
