"""--throughput: measures a model's speed in images per second."""

import logging
import time
from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from utils.cost import input_channels, peak_memory
from utils.eval_cache import keep_derived
from utils.precision import Precision
from utils.preprocessing import image_size
from utils.terminal import Bar

log = logging.getLogger(__name__)
ROUNDS = 30


@dataclass(frozen=True)
class Throughput:
    """Images per second: median, slowest and fastest of the timed rounds."""

    median: float
    slowest: float
    fastest: float
    rounds: int
    setting: str

    def line(self) -> str:
        """Returns a log line."""
        spread = f"median of {self.rounds} rounds, {self.slowest:.1f} to {self.fastest:.1f}"
        return f"throughput: {self.median:.1f} images/s ({spread}), {self.setting}"


def log_throughput(cfg: CfgNode, model: nn.Module) -> None:
    """Logs images/s of a model on random images; neither weights nor images affect the speed."""
    log.info(measure_throughput(cfg, model).line())


@torch.no_grad()
@keep_derived()
def measure_throughput(cfg: CfgNode, model: nn.Module, seconds: float = 10.0) -> Throughput:
    """Times forward passes over a batch of random images: a third of the time is warm-up, then up to 30 rounds.

    Args: seconds: approximate duration.
    """
    model.eval()
    device, batch, size = next(model.parameters()).device, cfg.DATA.BATCH_SIZE, image_size(cfg.DATA.IMG_SIZE)
    precision = Precision.from_config(cfg, device)
    images = torch.randn(batch, input_channels(model), *size, device=device)

    def forward() -> float:
        start = time.perf_counter()
        with precision.autocast():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    begun, warm = time.perf_counter(), [forward()]
    while time.perf_counter() - begun < seconds / 3:
        warm.append(forward())
    passes = max(1, int(seconds * 2 / 3 / min(warm) / ROUNDS))  # makes rounds long enough to time
    speeds: list[float] = []
    with Bar("measuring", ROUNDS, "rounds") as bar:
        while len(speeds) < 3 or (len(speeds) < ROUNDS and time.perf_counter() - begun < seconds):
            speeds.append(batch * passes / sum(forward() for _ in range(passes)))
            bar.advance(details=f"{speeds[-1]:.1f} images/s")
    speeds.sort()
    setting = f"batch {batch} at {size[0]}x{size[1]}, {precision}, peak memory {peak_memory(device)} MiB"
    return Throughput(speeds[len(speeds) // 2], speeds[0], speeds[-1], len(speeds), setting)
