"""Run-length coding of masks, with numbers of pycocotools."""

import numpy as np
import pytest

from data.sources.run_lengths import RunLengths

MASK = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]], np.uint8)
COUNTS, TEXT = (3, 2, 1, 1, 3, 2), "321O21"  # the text of pycocotools 2.0.11
# and of ones at [50:350, 40:60] and [3, 400] in 400 x 500 pixels
LARGER = "be?\\9T30000000000000000000000000000000000000ahT4eFWVRM"


def test_runs_go_down_the_columns_and_begin_with_zeros():
    runs = RunLengths.of(MASK)
    assert runs == ((3, 4), COUNTS) and runs.text() == TEXT and np.array_equal(runs.mask(), MASK)
    assert RunLengths.of(1 - MASK).counts == (0, *COUNTS)
    assert RunLengths.of(np.zeros((2, 3))).counts == (6,) and RunLengths.of(np.ones((2, 3))).counts == (0, 6)


def test_text_of_pycocotools():
    mask = np.zeros((400, 500), np.uint8)
    mask[50:350, 40:60] = 1
    mask[3, 400] = 1
    runs = RunLengths.of(mask)
    assert runs.text() == LARGER
    assert RunLengths.parsed({"size": [400, 500], "counts": LARGER}) == runs
    assert RunLengths.parsed({"size": [400, 500], "counts": LARGER.encode()}) == runs
    assert RunLengths.parsed({"size": [400, 500], "counts": list(runs.counts)}) == runs


@pytest.mark.parametrize("seed", range(5))
def test_coding_is_lossless(seed):
    random = np.random.RandomState(seed)
    mask = (random.rand(*random.randint(1, 60, 2)) < random.rand()).astype(np.uint8)
    runs = RunLengths.of(mask)
    assert np.array_equal(runs.mask(), mask) and RunLengths.parsed({"size": mask.shape, "counts": runs.text()}) == runs


@pytest.mark.parametrize(
    "stored",
    [
        {"size": [3, 4], "counts": [3, 2]},
        {"size": [3, 4], "counts": [-3, 15]},
        {"size": [3, 4], "counts": "32\x7f"},
        {"size": [3, 4], "counts": "o"},
        {"size": [3, 4], "counts": "é"},
        {"size": [3], "counts": [12]},
        {"size": [3, 4]},
        {"counts": [12]},
        {"size": [3, 4], "counts": [None]},
    ],
)
def test_damaged_codes_are_refused(stored):
    with pytest.raises(ValueError):
        RunLengths.parsed(stored)
