"""The plan of a run: what follows from the configuration, the number of ranks and the size of the training set."""

from dataclasses import dataclass

from yacs.config import CfgNode

from utils.batches import EpochShape
from utils.errors import ConfigError, count


@dataclass(frozen=True)
class RunPlan:
    """Updates and learning rates of a run. Learning rates are effective ones, not per 512 images."""

    shape: EpochShape
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
    seed: int = 0
    scale_peak: bool = False  # layer-wise decay scales the peak rate, neither start nor end

    @staticmethod
    def from_config(cfg: CfgNode, world_size: int, train_size: int) -> "RunPlan":
        """Raises: ConfigError if the global batch does not divide, or there are fewer samples than ranks."""
        if train_size < world_size:
            raise ConfigError(
                f"{train_size} training samples for {world_size} ranks: DATA.DATA_PATH: launch at most {train_size}"
            )
        shape = EpochShape(train_size, *_split_batch(cfg, world_size), world_size)
        train, schedule = cfg.TRAIN, cfg.TRAIN.LR_SCHEDULER
        scale = shape.global_batch / 512.0  # linear scaling rule, arXiv 1706.02677
        return RunPlan(
            shape=shape,
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
            seed=cfg.SEED,
            scale_peak=train.LAYER_DECAY_RULE == "simmim",
        )

    @property
    def updates_per_epoch(self) -> int:
        return self.shape.updates

    @property
    def total_updates(self) -> int:
        return self.epochs * self.shape.updates

    @property
    def warmup_updates(self) -> int:
        return self.warmup_epochs * self.shape.updates

    def describe(self) -> list[str]:
        """Returns log lines: what was decided, and by which rule."""
        shape = self.shape
        return [
            f"global batch {shape.global_batch} = {count(shape.batch_size, 'image')}"
            f" x {count(shape.world_size, 'rank')} x {count(shape.accumulation, 'micro-batch', 'micro-batches')}",
            f"learning rate {self.peak_lr:.4g} = {self.base_lr:.4g} x {shape.global_batch} / 512,"
            f" {self.scheduler} after {self.warmup_updates} updates of warm-up",
            f"plan: {count(self.epochs, 'epoch')} x {shape.updates:,} updates = {count(self.total_updates, 'update')};"
            f" an epoch uses {shape.samples:,} of {shape.train_size:,} samples; seed {self.seed}",
        ]


def _split_batch(cfg: CfgNode, world_size: int) -> tuple[int, int]:
    """Returns images per micro-batch and micro-batches per update."""
    wanted = cfg.TRAIN.GLOBAL_BATCH_SIZE
    if not wanted:
        return cfg.DATA.BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS
    if wanted % world_size:
        raise ConfigError(
            f"a global batch of {wanted} does not divide by {world_size} ranks: TRAIN.GLOBAL_BATCH_SIZE: set a multiple"
        )
    own = wanted // world_size
    batch = next(size for size in range(min(cfg.DATA.BATCH_SIZE, own), 0, -1) if own % size == 0)
    return batch, own // batch
