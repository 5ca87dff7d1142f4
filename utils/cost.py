"""Model cost: parameters, multiply-adds, memory."""

import importlib.util
import logging
import os
import re
import resource
import shutil
import sys
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from utils.errors import ConfigError, ResourceError, is_out_of_memory, one_line
from utils.preprocessing import Size

log = logging.getLogger(__name__)
BATCH = 64  # number of images for which FLOPs are counted


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, trainable or frozen."""
    return sum(p.numel() for p in model.parameters())


def input_channels(model: nn.Module) -> int:
    """Returns the input channels of the first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def describe_model(model: nn.Module, size: Size) -> str:
    """Returns a log line: parameters, FLOPs and feature maps. Raises: ConfigError if the model rejects the size."""
    name, sides = type(model).__name__, f"{size[0]}x{size[1]}"
    try:
        flops = count_flops(model, size)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as e:  # raised by timm models
        problem = f"{name} does not accept images of {sides} ({one_line(e)})"
        raise ConfigError("DATA.IMG_SIZE", problem, "set it, or TEST.IMG_SIZE, to a size that the model accepts") from e
    info: Any = getattr(model, "feature_info", None) or []  # timm's format; only pyramids have it
    maps = [f"{each['num_chs']}x{'x'.join(str(-(-side // each['reduction'])) for side in size)}" for each in info]
    shown = f", maps {' '.join(maps)}" if maps else ""
    return f"{name}: {count_parameters(model):,} parameters, {flops / 1e9:.2f} GFLOPs at {sides}{shown}"


def check_compiler(device: torch.device) -> None:
    """Checks that torch.compile can generate code for `device`. Raises: ConfigError."""
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ConfigError("TRAIN.COMPILE", "torch.compile needs a C++ compiler", "install g++, or set it to False")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("TRAIN.COMPILE", "torch.compile needs the package triton", "install it, or set it to False")


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory of the GPU or of the process in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def explain_memory(error: BaseException, device: torch.device) -> BaseException:
    """Converts an out-of-memory error to a ResourceError; returns other errors unchanged."""
    if not is_out_of_memory(error):
        return error
    text = str(error)
    on_device = isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in text
    request = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)|allocate (\d+ bytes)", text)
    tried = f" while allocating {request[1] or request[2]}" if request else ""
    where = str(device) if on_device else "the machine"
    return ResourceError(
        "--batch-size",
        f"{where} ran out of memory{tried}; the peak was {peak_memory(device):,} MiB",
        "reduce it, with --accumulation-steps for the same global batch, or use --use-checkpoint;"
        " in evaluation reduce TEST.IMG_SIZE",
    )


@torch.enable_grad()  # without gradients, some products are fused with other operations and not counted
def count_flops(model: nn.Module, size: Size) -> int:
    """Counts the multiply-adds of matrix products and convolutions for one image, without computing them.

    This is the marginal cost of an image in a large batch: V2's position bias, computed once per batch, is excluded,
    and rounding of the experts' capacity to whole tokens is negligible.
    """
    was_training = model.training
    model.eval()
    totals = []
    tensors = {name: t.detach().to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    for batch in (BATCH, 2 * BATCH):
        images = torch.zeros(batch, input_channels(model), *size, device="meta")
        with FlopCounterMode(display=False) as counter:
            functional_call(model, tensors, images)
        totals.append(counter.get_total_flops())
    model.train(was_training)
    return (totals[1] - totals[0]) // (2 * BATCH)
