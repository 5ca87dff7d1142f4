"""Assignment and selection of boxes."""

import pytest
import torch
from torch import tensor

from models.detection.assign import (
    IGNORED,
    NEGATIVE,
    MatchOptions,
    Regions,
    SampleOptions,
    match,
    sample_regions,
    select,
)
from models.detection.instances import Objects

OBJECTS = tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
BOXES = tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [21, 0, 31, 16], [50, 50, 60, 60]])  # IoU 1 .5 .2 .53 0


@pytest.mark.parametrize(
    "options, expected",
    [
        (MatchOptions(0.7, 0.3), [0, IGNORED, NEGATIVE, IGNORED, NEGATIVE]),
        (MatchOptions(0.7, 0.3, 0.3), [0, IGNORED, NEGATIVE, 1, NEGATIVE]),
        (MatchOptions(0.7, 0.3, 0.6), [0, IGNORED, NEGATIVE, IGNORED, NEGATIVE]),
        (MatchOptions(0.5, 0.5), [0, 0, NEGATIVE, 1, NEGATIVE]),
        (MatchOptions(0.6, 0.6), [0, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE]),
    ],
)
def test_boxes_are_matched_by_thresholds(options, expected):
    assert match(BOXES, OBJECTS, options).tolist() == expected


def test_all_boxes_that_overlap_an_object_most_are_positive():
    boxes = tensor([[0.0, 0, 10, 4], [0, 0, 4, 10], [0, 0, 3, 3]])
    assert match(boxes, OBJECTS[:1], MatchOptions(0.7, 0.3, 0.3)).tolist() == [0, 0, NEGATIVE]


def test_a_box_that_is_the_best_of_two_objects_belongs_to_the_last():
    objects = tensor([[0.0, 0, 10, 10], [0, 0, 10, 14]])
    box = tensor([[0.0, 0, 10, 11]])  # nearer to the first
    assert match(box, objects, MatchOptions(0.7, 0.3)).tolist() == [0]
    assert match(box, objects, MatchOptions(0.7, 0.3, 0.3)).tolist() == [1]


def test_without_objects_all_boxes_are_negative():
    assert match(BOXES, OBJECTS[:0], MatchOptions(0.7, 0.3, 0.3)).tolist() == [NEGATIVE] * 5
    assert match(BOXES[:0], OBJECTS, MatchOptions(0.7, 0.3)).tolist() == []


def test_negatives_fill_up_what_positives_leave():
    found = tensor([NEGATIVE] * 50 + [0] * 3 + [IGNORED] * 40 + [1] * 10)
    generator = torch.Generator().manual_seed(3)
    positive, negative = select(found, SampleOptions(20, 0.25), generator)
    assert len(positive) == 5 and len(negative) == 15
    assert (found[positive] >= 0).all() and (found[negative] == NEGATIVE).all()
    assert len(positive.unique()) == 5 and torch.equal(negative, negative.unique())
    few, rest = select(found[:53], SampleOptions(20, 0.25), generator)
    assert few.tolist() == [50, 51, 52] and len(rest) == 17


def test_draws_depend_on_the_generator_alone():
    found = tensor([NEGATIVE] * 50 + [0] * 30)
    state = torch.get_rng_state()
    draws = [select(found, SampleOptions(20, 0.5), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0][1], draws[1][1]) and not torch.equal(draws[0][1], draws[2][1])
    torch.manual_seed(3)  # without one, torch's own
    assert torch.equal(select(found, SampleOptions(20, 0.5))[0], draws[0][0])


def test_the_objects_own_boxes_are_regions_and_marked():
    objects = Objects(OBJECTS, tensor([4, 2]))
    regions = sample_regions(BOXES, objects, MatchOptions(0.5, 0.5), SampleOptions(512, 0.25))
    assert regions.matches.tolist() == [0, 1, 0, 0, 1] and regions.added.tolist() == [True] * 2 + [False] * 3
    assert torch.equal(regions.positives, torch.cat([OBJECTS, BOXES[[0, 1, 3]]]))
    assert regions.labels(objects, background=7).tolist() == [4, 2, 4, 4, 2, 7, 7]


def test_regions_of_an_image_without_objects_are_background():
    regions = sample_regions(BOXES, Objects.none(), MatchOptions(0.5, 0.5), SampleOptions(512, 0.25))
    assert isinstance(regions, Regions) and len(regions.positives) == 0
    assert regions.labels(Objects.none(), 7).tolist() == [7] * 5
