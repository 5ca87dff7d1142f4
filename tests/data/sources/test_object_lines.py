"""Annotated images as lines of text and back."""

import numpy as np

from data.sources.instances import AnnotatedImage, Instance
from data.sources.object_lines import from_line, to_line
from data.sources.run_lengths import RunLengths


def test_an_image_comes_back_exactly():
    polygon = (np.array([[0.1, 1 / 3], [9.07, 2], [3, 8]]), np.array([[1, 1], [2, 2], [3, 1.5]]))
    runs = RunLengths.of(np.random.default_rng(0).integers(0, 2, (9, 12)))
    image = AnnotatedImage(
        7,
        "日本/a\n b.jpg",
        (9, 12),
        (
            Instance((0.1, 1 / 3, 9.07, 8.0), 2, polygon, False),
            Instance((0.0, 0.0, 12.0, 9.0), 0, runs, True),
            Instance((-1.0, 2.0, 3.0, 4.0), 1, None, False),
        ),
    )
    line = to_line(image)
    back = from_line(line)
    assert line.isascii() and "\n" not in line and back[:3] == image[:3]
    for one, other in zip(back.instances, image.instances, strict=True):
        assert (one.box, one.label, one.crowd) == (other.box, other.label, other.crowd)
    assert all(np.array_equal(*pair) for pair in zip(back.instances[0].shape, polygon, strict=True))
    assert back.instances[1].shape == runs and back.instances[2].shape is None
