"""Batch norm over the samples of all ranks, on any device."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with training statistics over the micro-batches of all ranks; plain batch norm on a single rank.

    Unlike torch's, it also works on the CPU; its parameter names match BatchNorm2d's. Ranks may have batches of
    different sizes. In training, a forward pass is a collective operation.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        x = input.float()  # sums of squares need the range and precision
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        mean, number = total[:-1] / total[-1], total[-1]
        # in a second pass: the difference of large sums of squares would cancel
        variance = all_reduce((x - mean[:, None, None]).square().sum((0, 2, 3))) / number
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt() * self.weight
        return torch.addcmul((self.bias - mean * scale)[:, None, None], x, scale[:, None, None]).to(input.dtype)
