"""Two ranks with batches of different sizes in a batch norm over both: `python -m tests.tools.ranks.norms FOLDER`.

Each writes its output, gradients and running statistics to FOLDER.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from models.heads.sync_norm import SyncBatchNorm
from tests.tools.builders import fork_ranks

SHARES = ((0, 2), (2, 5))  # samples of each rank


def samples():
    return torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 7


def run(norm, x):
    """Returns the output for samples, the gradient with respect to them, and what the norm has learnt."""
    torch.nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = x.clone().requires_grad_()
    out = norm(x)
    out.pow(3).sum().backward()
    return {"out": out.detach(), "gradient": x.grad, "weight": norm.weight.grad, **norm.state_dict()}


def main(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/store", rank=rank, world_size=2)
    first, last = SHARES[rank]
    torch.save(run(SyncBatchNorm(3), samples()[first:last]), FOLDER / f"{rank}.pth")
    dist.destroy_process_group()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    fork_ranks(main, 2)
