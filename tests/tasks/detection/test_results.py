"""Detections as entries of COCO's results."""

import pytest
import torch

from data.sources.run_lengths import RunLengths
from models.detection.instances import Detections
from models.detection.mask_head import paste
from tasks.detection.results import as_results

BOXES = torch.tensor([[1.0, 2.0, 9.0, 12.0], [0.0, 0.0, 20.0, 5.0]])


def test_entries_have_ids_boxes_scores_and_masks():
    masks = torch.rand(2, 28, 28)
    found = Detections(BOXES, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), masks)
    entries = as_results(found, (16, 20), (44, 2))
    assert [each["category_id"] for each in entries] == [2, 44] and entries[0]["bbox"] == [1, 2, 8, 10]
    assert [each["score"] for each in entries] == pytest.approx([0.9, 0.5])
    for each, box, mask in zip(entries, BOXES, masks, strict=True):
        assert (RunLengths.parsed(each["segmentation"]).mask() == paste(mask, box, (16, 20)).numpy()).all()


def test_without_masks_there_are_none():
    found = Detections(BOXES, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
    assert all("segmentation" not in each for each in as_results(found, (16, 20), (44, 2)))
    assert as_results(Detections(BOXES[:0], BOXES[:0, 0], torch.zeros(0).long()), (16, 20), (44, 2)) == []
