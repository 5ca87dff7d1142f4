"""Cost of a model: parameters, multiply-adds, images per second, memory."""

import resource
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.errors import PlanError
from utils.precision import Precision


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def input_channels(model: nn.Module) -> int:
    """Channels of the first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def describe_model(model: nn.Module, size: int) -> str:
    """A line for the log: what the model costs."""
    name = type(model).__name__
    try:
        flops = count_flops(model, size)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as e:  # models of timm
        reason = str(e).splitlines()[0]
        raise PlanError(f"{name} takes no images of {size}x{size} ({reason}): DATA.IMG_SIZE, TEST.IMG_SIZE") from e
    return f"{name}: {count_parameters(model):,} parameters, {flops / 1e9:.2f} GFLOPs at {size}x{size}"


def peak_memory(device: torch.device) -> int:
    """Peak memory in MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


@torch.no_grad()
def count_flops(model: nn.Module, size: int) -> int:
    """Multiply-adds of one image of `size` x `size`, matrix products and convolutions, by torch's own counter.

    It is what one more image in a batch costs: V2's position bias, made once a batch, does not count.
    """
    was_training = model.training
    model.eval()
    totals = []
    for batch in (1, 2):
        images = torch.zeros(batch, input_channels(model), size, size, device=next(model.parameters()).device)
        with FlopCounterMode(display=False) as counter:
            model(images)
        totals.append(counter.get_total_flops())
    model.train(was_training)
    return (totals[1] - totals[0]) // 2


@dataclass(frozen=True)
class Throughput:
    """Images per second: median, slowest and fastest of the timed rounds."""

    median: float
    slowest: float
    fastest: float
    rounds: int
    setting: str

    def line(self) -> str:
        """For the log."""
        spread = f"median of {self.rounds} rounds, {self.slowest:.1f} to {self.fastest:.1f}"
        return f"throughput: {self.median:.1f} images/s ({spread}), {self.setting}"


@torch.no_grad()
def measure_throughput(
    model: nn.Module, batch: int, size: int, precision: Precision, seconds: float = 10.0
) -> Throughput:
    """Forward passes over a batch of random images: a third of the time to warm up, then up to 30 timed rounds.

    Args: batch images of size x size pixels; seconds: about how long it takes.
    """
    model.eval()
    device = next(model.parameters()).device
    images = torch.randn(batch, input_channels(model), size, size, device=device)

    def one_pass() -> float:
        start = time.perf_counter()
        with precision.autocast():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    begun, warm = time.perf_counter(), [one_pass()]
    while time.perf_counter() - begun < seconds / 3:
        warm.append(one_pass())
    passes = max(1, int(seconds * 2 / 3 / min(warm) / 30))  # a round is long enough for the clock
    speeds: list[float] = []
    while len(speeds) < 3 or (len(speeds) < 30 and time.perf_counter() - begun < seconds):
        speeds.append(batch * passes / sum(one_pass() for _ in range(passes)))
    speeds.sort()
    setting = f"batch {batch} at {size}x{size}, {precision}, peak memory {peak_memory(device)} MiB"
    return Throughput(speeds[len(speeds) // 2], speeds[0], speeds[-1], len(speeds), setting)
