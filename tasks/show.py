"""Draws augmented training samples of any task, for scripts/prepare_data.py."""

from pathlib import Path

import numpy as np

from data.loaders import Pipeline
from data.pipeline.dataset import Collator, TrainSamples
from data.pipeline.device import Normalize, prefetch_to_device
from data.pipeline.sample import Collated
from tasks.base import Task
from utils.batches import Batch
from utils.files import writing


def draw_samples(task: Task, target: Path, count: int, seed: int) -> int:
    """Writes a PNG of `count` random augmented training samples; returns the number drawn.

    Args: seed: for the choice and the augmentation. Raises: DataError; ResourceError if the file cannot be written.
    """
    data = task.open_data(("train",))
    assert data.train is not None
    pipeline: Pipeline = task.pipeline(data.info)
    assert pipeline.train is not None
    samples = TrainSamples(data.train, pipeline.train, seed=seed, on_bad="error")
    chosen = sorted(np.random.default_rng(seed).permutation(len(samples))[:count].tolist())
    collated = Collator(pipeline.collate)([samples[0, i] for i in chosen])
    if not isinstance(collated, Collated):
        raise collated
    normalize = Normalize(pipeline.preprocessing, task.world.device, pipeline.erase_mode)
    ((images, targets, numbers),) = prefetch_to_device([collated], normalize)
    with writing(target, "SHEET") as temporary:
        task.show_batch(Batch(images, targets, numbers), data.info, limit=count).save(temporary, "PNG")
    return len(chosen)
