"""The loss of a classifier on labels: smoothed cross-entropy, weighted, focal, or adjusted for imbalanced classes."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from data.sources.base import read_file
from utils.errors import ConfigError, did_you_mean, listing

KEY = "LOSS.CLASS_WEIGHTS"
BETA = 0.999  # of the effective number of samples


@dataclass(frozen=True)
class LossOptions:
    """`smoothing` of labels; `class_weights`: "none", "inverse", "effective" or a .csv file; `focal_gamma`, 0: off;
    `logit_adjustment`: factor of the log frequencies that are added to the logits, 0: off."""

    smoothing: float = 0.0
    class_weights: str = "none"
    focal_gamma: float = 0.0
    logit_adjustment: float = 0.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "LossOptions":
        own = cfg.LOSS
        return LossOptions(cfg.MODEL.LABEL_SMOOTHING, own.CLASS_WEIGHTS, own.FOCAL_GAMMA, own.LOGIT_ADJUSTMENT)

    @property
    def balances(self) -> bool:
        """Whether rare classes count more."""
        return self.class_weights != "none" or self.focal_gamma > 0 or self.logit_adjustment > 0


class ClassificationLoss:
    """The mean loss of a batch in float32.

    Args: counts: training samples of each class, for weights and adjustment; sample_weights (N,) float32: of the
    training samples, with mean 1, or None.
    Raises: ConfigError for a file of weights that does not name every class.
    """

    def __init__(
        self,
        options: LossOptions,
        class_names: Sequence[str] = (),
        counts: Sequence[int] = (),
        sample_weights: Tensor | None = None,
        device: torch.device | None = None,
    ):
        self._options, self._sample_weights = options, sample_weights
        self._weights = self._priors = None
        if options.class_weights != "none":
            self._weights = class_weights(options.class_weights, class_names, counts).to(device)
        if options.logit_adjustment:
            frequencies = torch.tensor(counts, dtype=torch.float32).clamp(min=0.5) / max(1, sum(counts))
            self._priors = options.logit_adjustment * frequencies.log().to(device)

    def __call__(self, logits: Tensor, targets: Tensor, samples: Sequence[int] = ()) -> Tensor:
        """Args: logits (B, classes); targets int64 (B,), smoothed here, or float32 (B, classes) of mixed samples,
        already smoothed; samples: their indices in the training set."""
        options, logits = self._options, logits.float()
        smoothing = 0.0 if targets.is_floating_point() else options.smoothing
        if self._priors is not None:
            logits = logits + self._priors
        if self._weights is None and self._sample_weights is None and not options.focal_gamma:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        if not options.focal_gamma:
            losses = F.cross_entropy(logits, targets, self._weights, reduction="none", label_smoothing=smoothing)
            return weighted_mean(losses, self._sample_weights, samples)
        if not targets.is_floating_point():
            targets = F.one_hot(targets, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
        log_probabilities = logits.log_softmax(1)
        terms = targets * log_probabilities * (1 - log_probabilities.exp()).clamp(min=0) ** options.focal_gamma
        if self._weights is not None:
            terms = terms * self._weights
        return weighted_mean(-terms.sum(1), self._sample_weights, samples)


def weighted_mean(losses: Tensor, weights: Tensor | None, samples: Sequence[int]) -> Tensor:
    """Returns the mean loss of a batch. Args: losses (B,); weights (N,) of the training set, with mean 1, or None;
    samples: indices of the batch in it."""
    if weights is not None:
        losses = losses * weights[torch.tensor(samples)].to(losses.device, non_blocking=True)
    return losses.mean()


def class_weights(rule: str, class_names: Sequence[str], counts: Sequence[int]) -> Tensor:
    """Returns a weight per class, float32 (classes,), whose mean over the training samples is 1.

    Args: rule: "inverse" of the frequency; "effective": of the effective number of samples (arXiv 1901.05555); a .csv
    file with lines of class,weight.
    Raises: ConfigError.
    """
    sizes = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    if rule == "inverse":
        weights = 1 / sizes
    elif rule == "effective":
        weights = (1 - BETA) / (1 - BETA**sizes)
    else:
        weights = torch.tensor(_weights_of_file(rule, class_names), dtype=torch.float64)
    total = torch.tensor(counts, dtype=torch.float64)
    mean = float((weights * total).sum() / total.sum())
    if not mean:
        raise ConfigError(KEY, f"{rule} gives weight 0 to every class with samples", "set some above 0")
    return (weights / mean).float()


def _weights_of_file(name: str, class_names: Sequence[str]) -> list[float]:
    try:
        rows = [row for row in csv.reader(io.StringIO(read_file(name).decode("utf-8-sig"), newline="")) if row]
        found = {row[0].strip(): float(row[1]) for row in rows if row[1].strip().lower() != "weight"}
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, IndexError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ConfigError(KEY, f"{name} cannot be read ({reason})", "write lines of class,weight") from e
    missing = [each for each in class_names if each not in found]
    unknown = [each for each in found if each not in class_names]
    if missing or unknown:
        kind, names = ("no weight for", missing) if missing else ("unknown classes:", unknown)
        remedy = did_you_mean(unknown[0], class_names) if unknown else "add them"
        raise ConfigError(KEY, f"{name}: {kind} {listing(names)}", remedy)
    if not all(math.isfinite(weight) and weight >= 0 for weight in found.values()):
        raise ConfigError(KEY, f"{name} has weights that are not numbers, at least 0", "correct them")
    return [found[each] for each in class_names]
