"""Imbalanced classes: how often their samples are drawn, and a warning if nothing is done about them."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from data.pipeline.samplers import Frequencies, Order, weighted_order
from data.sources.base import LabelledSource
from utils.errors import DataError

log = logging.getLogger(__name__)
WARN_AT = 10  # times the samples of the smallest class


def class_order(source: LabelledSource, rule: str) -> Order | None:
    """Returns the order of the samples in an epoch, None for a plain shuffle. Args: rule: see `class_frequencies`."""
    frequencies = class_frequencies(source, rule)
    return None if frequencies is None else partial(weighted_order, frequencies)


def class_frequencies(source: LabelledSource, rule: str) -> Frequencies | None:
    """Returns how often samples are drawn: None for "uniform" (every sample once).

    Args: rule: "balanced": all classes equally often; "sqrt": in proportion to the square root of their size. A sample
    with several labels is drawn as often as one that has only its rarest label.
    """
    if rule == "uniform":
        return None
    counts = np.array(source.counts(), dtype=np.float64)
    own = 1 / np.maximum(counts, 1) ** (1.0 if rule == "balanced" else 0.5)
    labels = [source.labels_of(i) for i in range(len(source))]
    expected = np.array([max((own[label] for label in each), default=own.min()) for each in labels])
    strata = {each: number for number, each in enumerate(sorted(set(labels)))}
    return Frequencies(
        torch.from_numpy(expected * len(source) / expected.sum()), torch.tensor([strata[each] for each in labels])
    )


def sample_weights(source: LabelledSource) -> torch.Tensor | None:
    """Returns the loss weights of the training samples, with mean 1, float32 (n,); None if there are none.

    Raises: DataError if all are 0.
    """
    column = source.column("weight")
    if column is None:
        return None
    weights = torch.tensor(np.asarray(column), dtype=torch.float32)
    if not weights.sum():
        raise DataError("DATA.WEIGHT_COLUMN", "all samples have weight 0", "set some above 0")
    return weights / weights.mean()


def warn_of_imbalance(class_names: Sequence[str], counts: Sequence[int], remedies: str) -> None:
    """Logs one line if the largest class has at least ten times as many samples as the smallest."""
    present = [(count, name) for count, name in zip(counts, class_names, strict=True) if count]
    if len(present) < 2 or max(present)[0] < WARN_AT * min(present)[0]:
        return
    (most, largest), (least, smallest) = max(present), min(present)
    log.warning(
        "imbalanced classes: %s has %s training samples, %s has %s; see %s",
        largest,
        f"{most:,}",
        smallest,
        f"{least:,}",
        remedies,
    )
