"""Classes of detection data, stored and read back."""

from tasks.detection.classes import COCO_IDS, DetectionInfo, stored_classes


def test_classes_and_their_ids_are_stored_and_read_back():
    info = DetectionInfo("x", ("a", "b"), (44, 2), masks=False)
    read = stored_classes(info.as_dict(), 2, masks=False)
    assert (read.class_names, read.category_ids, read.masks) == (("a", "b"), (44, 2), False)


def test_ids_of_files_without_any_are_those_of_coco_or_count_from_one():
    assert len(COCO_IDS) == 80 and COCO_IDS[:12] == (*range(1, 12), 13) and COCO_IDS[-1] == 90
    assert stored_classes({}, 80, True).category_ids == COCO_IDS
    assert stored_classes({"category_ids": [1]}, 3, True).category_ids == (1, 2, 3)
