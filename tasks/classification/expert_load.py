"""Load of a mixture of experts: tokens per expert, and tokens dropped because their expert was at capacity."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from utils.distributed.world import World
from utils.pictures import new_figure, rendered

log = logging.getLogger(__name__)
NUMBERS = 20  # maximum experts for numbers in the cells


@dataclass(frozen=True)
class Routing:
    """`dropped`: fraction of assignments beyond the capacity of an expert; `load`: tokens per expert, int64 (layers,
    experts)."""

    dropped: float
    load: Tensor


class RoutingMeter:
    """Accumulates the routing of this rank's forward passes."""

    def __init__(self) -> None:
        self._load: Tensor | None = None
        self._dropped: Tensor | None = None

    def add(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accumulates the statistics of a forward pass without synchronising with the device.

        Args: statistics: from `SwinMoe.routing_statistics`, empty without experts.
        Returns: "dropped" and "busiest" (see `Routing`) of this pass, scalars; empty without experts.
        """
        if not statistics:
            return {}
        load, share = statistics["load"], statistics["dropped"]
        dropped = share.double() * load.sum() if share.device.type != "mps" else share * load.sum()
        self._load = load if self._load is None else self._load + load
        self._dropped = dropped if self._dropped is None else self._dropped + dropped
        even = load.sum(1, keepdim=True).clamp(min=1) / load.shape[1]
        return {"dropped": share, "busiest": (load / even).max()}

    def result(self, world: World) -> Routing | None:
        """Returns the sums across all ranks, None without experts, and resets them. A collective operation."""
        own = None if self._load is None or self._dropped is None else (self._load.cpu(), float(self._dropped))
        self._load = self._dropped = None
        found = [each for each in world.gather_objects(own) if each is not None]
        if not found:
            return None
        load = torch.stack([each[0] for each in found]).sum(0)
        return Routing(sum(each[1] for each in found) / max(1, int(load.sum())), load)


def warn_of_drops(routing: Routing | None) -> None:
    """Warns that the result of an evaluation depends on its batches, if tokens were dropped."""
    if routing is not None and routing.dropped:
        log.warning(
            "%.2f %% of the tokens were dropped because their expert was at capacity: the result depends on batch size"
            " and world size; MODEL.SWIN_MOE.CAPACITY_FACTOR 0 keeps all tokens",
            100 * routing.dropped,
        )


def load_picture(routing: Routing) -> Image.Image:
    """Draws the load of all experts of all layers, relative to an even distribution."""
    layers, experts = routing.load.shape
    share = (routing.load / routing.load.sum(1, keepdim=True).clamp(min=1) * experts).numpy()
    figure = new_figure(max(5.0, 0.38 * experts + 2.2), max(2.6, 0.36 * layers + 1.7))
    axes = figure.subplots()
    shown = axes.imshow(share, cmap="viridis", vmin=0, vmax=max(2.0, share.max()), aspect="auto")
    figure.colorbar(shown, ax=axes, label="load, 1 is even")
    if experts <= NUMBERS:
        for row in range(layers):
            for column in range(experts):
                colour = "black" if share[row, column] > 0.6 * max(2.0, share.max()) else "white"
                axes.text(column, row, f"{share[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"Tokens per expert ({routing.dropped:.1%} dropped)", fontsize=11)
    axes.set_xlabel("expert")
    axes.set_ylabel("mixture of experts, first to last")
    axes.set_yticks(range(layers))
    axes.set_xticks(range(experts) if experts <= NUMBERS else range(0, experts, 8))
    return rendered(figure)
