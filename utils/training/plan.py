"""The plan of a run, derived from the configuration, the number of ranks and the size of the training set."""

from dataclasses import dataclass

from yacs.config import CfgNode

from utils.batches import EpochShape
from utils.errors import ConfigError, count


@dataclass(frozen=True)
class RunPlan:
    """Updates and learning rates of a run. Learning rates are effective ones, not per 512 images.

    `base_lr`: the value of `lr_key`, TRAIN.BASE_LR or TRAIN.LR; `updates`: the length of the run, 0 for whole epochs;
    `epochs`: their number, the last of which may be partial; `eval_every`: updates between evaluations, 0 for one after
    every epoch; `patience`: evaluations without improvement that end the run, 0 for any number; `plateau`: those that
    decay the rate of a plateau schedule.
    """

    shape: EpochShape
    epochs: int
    warmup_updates: int
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
    scale_peak: bool = False  # layer-wise decay scales the peak rate only, neither the first nor the last
    updates: int = 0
    eval_every: int = 0
    power: float = 1.0
    lr_key: str = "TRAIN.BASE_LR"
    patience: int = 0
    plateau: int = 10

    @staticmethod
    def from_config(cfg: CfgNode, world_size: int, train_size: int) -> "RunPlan":
        """Raises: ConfigError if the global batch size is not divisible, there are fewer samples than ranks, the
        warm-up never ends, or nothing is left to train."""
        if train_size < world_size:
            problem = f"{train_size} training samples for {world_size} ranks"
            raise ConfigError("DATA.DATA_PATH", problem, f"launch at most {train_size}")
        shape = EpochShape(train_size, *_split_batch(cfg, world_size), world_size)
        train, schedule = cfg.TRAIN, cfg.TRAIN.LR_SCHEDULER
        # linear scaling rule, arXiv 1706.02677, unless the peak is given
        scale = train.LR / train.BASE_LR if train.LR else shape.global_batch / 512.0
        warmup = train.WARMUP_UPDATES or round(train.WARMUP_EPOCHS * shape.updates)
        epochs = epochs_for(train_size) if train.EPOCHS == "auto" else train.EPOCHS
        total = train.UPDATES or epochs * shape.updates
        if warmup >= total and not cfg.DRY_RUN:
            key = "TRAIN.WARMUP_UPDATES" if train.WARMUP_UPDATES else "TRAIN.WARMUP_EPOCHS"
            problem = f"{warmup} updates of warm-up, but only {total} of training: TRAIN.BASE_LR would never be reached"
            raise ConfigError(key, problem, f"shorten it to less than {total} updates")
        first = train.START_EPOCH * shape.updates
        if first >= total:
            problem = f"{train.START_EPOCH} epochs are {first} updates, the run has {total}"
            raise ConfigError("TRAIN.START_EPOCH", problem, "set it lower")
        return RunPlan(
            shape=shape,
            epochs=-(-total // shape.updates),
            warmup_updates=warmup,
            base_lr=train.LR or train.BASE_LR,
            lr_key="TRAIN.LR" if train.LR else "TRAIN.BASE_LR",
            peak_lr=train.LR or train.BASE_LR * scale,
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
            updates=train.UPDATES,
            eval_every=train.EVAL_EVERY_UPDATES,
            power=schedule.POWER,
            patience=train.PATIENCE,
            plateau=schedule.PATIENCE,
        )

    @property
    def updates_per_epoch(self) -> int:
        return self.shape.updates

    @property
    def total_updates(self) -> int:
        return self.updates or self.epochs * self.shape.updates

    def updates_in(self, epoch: int) -> int:
        """Returns the number of updates in an epoch; the last epoch may be partial."""
        return min(self.shape.updates, self.total_updates - epoch * self.shape.updates)

    def evaluates_after(self, epoch: int, step: int) -> bool:
        """Returns whether the model is evaluated after `step` updates of an epoch."""
        if not self.eval_every:
            return step == self.updates_in(epoch)
        done = epoch * self.shape.updates + step
        return done > 0 and (done % self.eval_every == 0 or done == self.total_updates)

    def evaluations_after(self, done: int) -> int:
        """Returns the number of evaluations left after `done` updates."""
        interval = self.eval_every or self.shape.updates
        return -(-self.total_updates // interval) - done // interval

    def describe(self) -> list[str]:
        """Returns log lines: batch size, learning rate and length, and how they were derived."""
        shape, total = self.shape, count(self.total_updates, "update")
        length = f"{count(self.epochs, 'epoch')} x {count(shape.updates, 'update')} = {total}"
        if self.updates:
            length = f"{total} = {self.updates / shape.updates:.4g} epochs of {count(shape.updates, 'update')}"
        derived = self.lr_key
        if derived == "TRAIN.BASE_LR":
            derived = f"{self.base_lr:.4g} x {shape.global_batch} / 512"
        return [
            f"global batch {shape.global_batch} = {count(shape.batch_size, 'image')}"
            f" x {count(shape.world_size, 'rank')} x {count(shape.accumulation, 'micro-batch', 'micro-batches')}",
            f"learning rate {self.peak_lr:.4g} = {derived},"
            f" {self.scheduler} after {count(self.warmup_updates, 'update')} of warm-up",
            f"plan: {length}; an epoch uses {shape.samples:,} of {shape.train_size:,} samples; seed {self.seed}",
        ]


def epochs_for(train_size: int) -> int:
    """Returns the number of epochs for TRAIN.EPOCHS auto: falling with the square root of the number of samples."""
    return min(200, max(10, round(100 * (1000 / train_size) ** 0.5)))


def _split_batch(cfg: CfgNode, world_size: int) -> tuple[int, int]:
    """Returns images per micro-batch and micro-batches per update."""
    wanted = cfg.TRAIN.GLOBAL_BATCH_SIZE
    if not wanted:
        return cfg.DATA.BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS
    if wanted % world_size:
        problem = f"{wanted} is not divisible by {world_size} ranks"
        raise ConfigError("TRAIN.GLOBAL_BATCH_SIZE", problem, "set it to a multiple")
    own = wanted // world_size
    batch = next(size for size in range(min(cfg.DATA.BATCH_SIZE, own), 0, -1) if own % size == 0)
    return batch, own // batch
