"""The picture of augmented training samples."""

import numpy as np
import pytest
from PIL import Image

from tasks.registry import new_task
from tasks.show import draw_samples
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import ResourceError
from utils.pictures import CAPTION, COLUMNS, GAP, TILE


@pytest.fixture
def colours(tmp_path):
    """Three red images and two green ones."""
    for name, count, colour in (("red", 3, (250, 10, 10)), ("n01440764", 2, (10, 250, 10))):
        (tmp_path / "data/train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "data/train" / name / f"{i}.png")
    return tmp_path / "data"


def draw(folder, target, count, seed=0):
    plain = {
        "AUG__AUTO_AUGMENT": "none",
        "AUG__COLOR_JITTER": 0,
        "AUG__REPROB": 0,
        "AUG__HFLIP": 0,
        "DATA__IMG_SIZE": 32,
    }
    cfg = configured(DATA__DATA_PATH=str(folder), TEST__VALIDATE=False, **plain)
    return draw_samples(new_task(cfg, World()), target, count, seed)


def tile(sheet, place):
    """The colour in the middle of a tile."""
    left = GAP + place % COLUMNS * (TILE + GAP) + TILE // 2
    return np.asarray(sheet)[64 + TILE // 2, left].astype(int)


def test_images_are_shown_by_class_in_their_colours(colours, tmp_path):
    assert draw(colours, tmp_path / "sheet.png", 10) == 5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == (GAP + 5 * (TILE + GAP), 64 + TILE + CAPTION + 2 * GAP)
        shown = [tile(sheet, place) for place in range(5)]
    expected = [(10, 250, 10)] * 2 + [(250, 10, 10)] * 3  # the synset sorts first
    assert abs(np.array(shown) - expected).max() <= 1


def test_count_and_seed_decide_what_is_shown(photos, tmp_path):
    sheets = []
    for number, seed in enumerate((0, 0, 1)):
        assert draw(photos, tmp_path / f"{number}.png", 9, seed) == 9
        sheets.append((tmp_path / f"{number}.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    with Image.open(tmp_path / "0.png") as sheet:
        assert sheet.size == (GAP + COLUMNS * (TILE + GAP), 64 + 2 * (TILE + CAPTION + GAP) + GAP)


def test_a_sheet_that_cannot_be_written_is_rejected(colours, tmp_path):
    (tmp_path / "file").touch()
    with raises(ResourceError, tmp_path / "file/sheet.png", "SHEET"):
        draw(colours, tmp_path / "file/sheet.png", 1)
