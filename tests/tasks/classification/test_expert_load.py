"""Routing statistics are summed over batches and ranks; drops in an evaluation are said."""

from types import SimpleNamespace

import pytest
import torch

from models.moe.routing import RoutingOptions
from tasks.classification.expert_load import Routing, RoutingMeter, load_picture, warn_of_drops
from tests.tools.builders import batches, evaluation_of, objective, small
from utils.distributed.world import World


def statistics(dropped, load):
    """Of two layers of three experts."""
    return {"dropped": torch.tensor(dropped), "load": torch.tensor(load)}


def test_passes_add_up():
    meter = RoutingMeter()
    parts = meter.add(statistics(0.5, [[2, 1, 1], [4, 0, 0]]))
    assert parts["dropped"] == 0.5 and parts["busiest"] == 3.0
    meter.add(statistics(0.0, [[2, 2, 4], [0, 4, 4]]))
    routing = meter.result(World())
    assert routing.load.tolist() == [[4, 3, 5], [4, 4, 4]] and routing.dropped == pytest.approx(4 / 24)
    assert meter.result(World()) is None  # it started again


def test_ranks_add_up_even_if_one_has_no_batch():
    meter = RoutingMeter()
    assert meter.add({}) == {}
    other = (torch.tensor([[3, 1]]), 2.0)
    world = SimpleNamespace(gather_objects=lambda own: [own, other])
    assert meter.result(world).load.tolist() == [[3, 1]] and meter.result(world).dropped == 0.5


def test_drops_of_an_evaluation_are_said(caplog):
    warn_of_drops(None)
    warn_of_drops(Routing(0.0, torch.ones(1, 2)))
    assert not caplog.text
    warn_of_drops(Routing(0.125, torch.ones(1, 2)))
    assert "12.50 % of the tokens" in caplog.text and "MODEL.SWIN_MOE.CAPACITY_FACTOR 0" in caplog.text


def test_evaluation_of_a_mixture_warns_and_a_dense_model_does_not(caplog):
    work = batches(2)
    evaluation_of(objective(), small(), work)
    assert not caplog.text
    evaluation_of(objective(), small("swin_moe", routing=RoutingOptions(capacity_factor=0.5)), work)
    assert "expert was at capacity" in caplog.text


@pytest.mark.parametrize(("layers", "experts"), [(2, 4), (10, 32)])
def test_the_picture_has_a_cell_for_every_expert(layers, experts):
    picture = load_picture(Routing(0.1, torch.randint(1, 9, (layers, experts))))
    assert picture.width > 30 * experts and picture.height > 30 * layers
    assert len(picture.convert("L").getcolors()) > 20
