"""What follows from the configuration, the number of processes and the size of the training set: the steps of a run."""

from dataclasses import dataclass
from typing import Any

from utils.errors import PlanError


@dataclass(frozen=True)
class RunPlan:
    """The numbers that a training run is made of. Learning rates are effective ones, not per 512 images.

    An epoch has `train_size // global_batch` updates. What is left over makes one more, smaller update if it is at
    least a quarter of a global batch (or all there is); less waits for the next permutation. The rule looks at the
    global batch alone, so that the schedule is the same for every split into processes and micro-batches.
    """

    world: int
    batch_size: int
    accumulation: int
    train_size: int
    epochs: int
    warmup_epochs: int
    base_lr: float
    peak_lr: float
    warmup_lr: float
    min_lr: float
    scheduler: str
    warmup_prefix: bool
    decay_epochs: int
    decay_rate: float
    milestones: tuple[int, ...]
    gamma: float
    clip_grad: float
    max_skipped: int

    @staticmethod
    def from_config(cfg: Any, world: int, train_size: int) -> "RunPlan":
        """Raises: PlanError if the global batch does not divide, or there are fewer samples than processes."""
        if train_size < world:
            raise PlanError(
                f"{train_size} training samples for {world} processes: DATA.DATA_PATH: start {train_size} at most"
            )
        batch, accumulation = _split_batch(cfg, world)
        train, schedule = cfg.TRAIN, cfg.TRAIN.LR_SCHEDULER
        scale = batch * accumulation * world / 512.0  # linear scaling rule, arXiv 1706.02677
        return RunPlan(
            world=world,
            batch_size=batch,
            accumulation=accumulation,
            train_size=train_size,
            epochs=train.EPOCHS,
            warmup_epochs=train.WARMUP_EPOCHS,
            base_lr=train.BASE_LR,
            peak_lr=train.BASE_LR * scale,
            warmup_lr=train.WARMUP_LR * scale,
            min_lr=train.MIN_LR * scale,
            scheduler=schedule.NAME,
            warmup_prefix=schedule.WARMUP_PREFIX,
            decay_epochs=schedule.DECAY_EPOCHS,
            decay_rate=schedule.DECAY_RATE,
            milestones=tuple(schedule.MULTISTEPS),
            gamma=schedule.GAMMA,
            clip_grad=train.CLIP_GRAD,
            max_skipped=train.MAX_SKIPPED_UPDATES,
        )

    @property
    def global_batch(self) -> int:
        """Images of one update over all processes."""
        return self.batch_size * self.accumulation * self.world

    @property
    def updates_per_epoch(self) -> int:
        whole, rest = divmod(self.train_size, self.global_batch)
        return whole + (1 if whole == 0 or 4 * rest >= self.global_batch else 0)

    @property
    def total_updates(self) -> int:
        return self.epochs * self.updates_per_epoch

    @property
    def warmup_updates(self) -> int:
        return self.warmup_epochs * self.updates_per_epoch

    @property
    def samples_per_epoch(self) -> int:
        return min(self.train_size, self.updates_per_epoch * self.global_batch)

    def update_size(self, step: int) -> int:
        """Images of update `step` of an epoch."""
        return min(self.global_batch, self.train_size - step * self.global_batch)

    def describe(self) -> list[str]:
        """Lines for the log: what was decided, and by which rule."""
        lines = [
            f"global batch {self.global_batch} = {self.batch_size} images x {self.world} processes"
            f" x {self.accumulation} micro-batches",
            f"learning rate {self.peak_lr:.4g} = {self.base_lr:.4g} x {self.global_batch} / 512,"
            f" {self.scheduler} after {self.warmup_updates} updates of warm-up",
            f"{self.epochs} epochs x {self.updates_per_epoch} updates = {self.total_updates} updates;"
            f" an epoch uses {self.samples_per_epoch} of {self.train_size} samples",
        ]
        if self.warmup_epochs >= self.epochs:
            lines.append("the whole run is warm-up: TRAIN.WARMUP_EPOCHS is not below TRAIN.EPOCHS")
        return lines


def _split_batch(cfg: Any, world: int) -> tuple[int, int]:
    """Images per micro-batch and micro-batches per update."""
    wanted = cfg.TRAIN.GLOBAL_BATCH_SIZE
    if not wanted:
        return cfg.DATA.BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS
    if wanted % world:
        raise PlanError(
            f"a global batch of {wanted} does not divide among {world} processes: TRAIN.GLOBAL_BATCH_SIZE:"
            " take a multiple"
        )
    share = wanted // world
    batch = next(size for size in range(min(cfg.DATA.BATCH_SIZE, share), 0, -1) if share % size == 0)
    return batch, share // batch
