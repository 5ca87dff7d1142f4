"""The cost of a model: parameters, multiply-adds, memory."""

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

from utils.errors import ConfigError, ResourceError, is_out_of_memory
from utils.preprocessing import Size

log = logging.getLogger(__name__)
BATCH = 64  # images of which FLOPs are counted


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, trained or frozen."""
    return sum(p.numel() for p in model.parameters())


def input_channels(model: nn.Module) -> int:
    """Returns the input channels of the first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def describe_model(model: nn.Module, size: Size) -> str:
    """Returns a log line: parameters, FLOPs and feature maps. Raises: ConfigError if it rejects images of `size`."""
    name, sides = type(model).__name__, f"{size[0]}x{size[1]}"
    try:
        flops = count_flops(model, size)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as e:  # models of timm
        reason = str(e).splitlines()[0]
        raise ConfigError(f"{name} takes no images of {sides} ({reason}): DATA.IMG_SIZE, TEST.IMG_SIZE") from e
    info: Any = getattr(model, "feature_info", None) or []  # of a pyramid, in timm's form
    maps = [f"{each['num_chs']}x{'x'.join(str(-(-side // each['reduction'])) for side in size)}" for each in info]
    shown = f", maps {' '.join(maps)}" if maps else ""
    return f"{name}: {count_parameters(model):,} parameters, {flops / 1e9:.2f} GFLOPs at {sides}{shown}"


def check_compiler(device: torch.device) -> None:
    """Raises: ConfigError if torch.compile lacks what it needs to generate code for `device`."""
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ConfigError("torch.compile needs a C++ compiler: TRAIN.COMPILE: install g++, or set it to False")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("torch.compile needs the package triton: TRAIN.COMPILE: install it, or set it to False")


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory in MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def explain_memory(error: BaseException, device: torch.device) -> BaseException:
    """Returns a ResourceError for an error that says memory is exhausted, other errors unchanged."""
    if not is_out_of_memory(error):
        return error
    text = str(error)
    on_device = isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in text
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)|allocate (\d+ bytes)", text)
    tried = f" in an attempt to allocate {wanted[1] or wanted[2]}" if wanted else ""
    where = str(device) if on_device else "the machine"
    return ResourceError(
        f"{where} is out of memory{tried}, the peak was {peak_memory(device):,} MiB: --batch-size: use a smaller one"
        " (with --accumulation-steps for the same global batch), or --use-checkpoint; in evaluation TEST.IMG_SIZE"
    )


@torch.enable_grad()  # without gradients some products are fused with other operations, and not counted
def count_flops(model: nn.Module, size: Size) -> int:
    """Counts the multiply-adds of matrix products and convolutions for one image, without computing them.

    It is the cost of one more image in a large batch: V2's position bias, computed once per batch, is not included, and
    the capacity of experts, a whole number of tokens, is hardly rounded.
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
