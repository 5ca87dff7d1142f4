"""Options for logging and saving."""

from dataclasses import dataclass

from yacs.config import CfgNode


@dataclass(frozen=True)
class SessionOptions:
    """Logs every `print_freq` updates; saves every `save_freq` epochs, and within an epoch every `save_updates` updates
    or `save_minutes` minutes (0: never); keeps the newest `keep` checkpoints (0: all). `trace`: profile a few updates;
    `wandb`: a project of Weights & Biases, "" for none."""

    print_freq: int = 10
    save_freq: int = 1
    save_updates: int = 0
    save_minutes: float = 0.0
    keep: int = 3
    trace: bool = False
    wandb: str = ""

    @staticmethod
    def from_config(cfg: CfgNode) -> "SessionOptions":
        return SessionOptions(
            print_freq=cfg.PRINT_FREQ,
            save_freq=cfg.SAVE_FREQ,
            save_updates=cfg.TRAIN.SAVE_EVERY_UPDATES,
            save_minutes=cfg.TRAIN.SAVE_EVERY_MINUTES,
            keep=cfg.TRAIN.KEEP_CHECKPOINTS,
            trace=cfg.PROFILE,
            wandb=cfg.LOG.WANDB,
        )
