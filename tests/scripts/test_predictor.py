"""Single images in a notebook, as scripts/predict.py sees them."""

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.predictor import Predictor
from utils.errors import DataError


def test_it_predicts_what_the_evaluation_does(made):
    folder, expected = made
    predict = Predictor(str(folder / "model.pth"))
    for path, (name, probability) in expected.items():
        best, *_ = predict(path, topk=2)
        assert best[0] == name and best[1] == pytest.approx(probability, abs=2e-2)  # mixed precision there
    assert len(predict(path)) == 3 and sum(p for _, p in predict(path)) == pytest.approx(1, abs=1e-5)


def test_a_path_and_its_pixels_are_the_same_image(made, tmp_path):
    predict = Predictor(str(made[0] / "model.pth"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    image.save(tmp_path / "a.png")
    assert torch.equal(predict.transform(image), predict.transform(tmp_path / "a.png"))
    assert predict.transform(image).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_the_pixels_of_a_photograph_are_turned_and_converted_as_its_file_is(made, tmp_path, mode):
    """The model's recipe applies the EXIF orientation."""
    predict, tags = Predictor(str(made[0] / "model.pth")), Image.Exif()
    tags[0x0112] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).convert(mode)
    image.save(tmp_path / "a.jpg", exif=tags)
    assert torch.equal(predict.transform(Image.open(tmp_path / "a.jpg")), predict.transform(tmp_path / "a.jpg"))


def test_a_file_that_is_not_an_image_is_named(made, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"(?=.*a\.jpg)(?=.*readable)"):
        Predictor(str(made[0] / "model.pth"))(tmp_path / "a.jpg")
