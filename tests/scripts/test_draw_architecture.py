"""The picture of the architecture."""

import pytest
from PIL import Image

from scripts.draw_architecture import main


@pytest.mark.parametrize("recipe", ["swin_tiny", "swinv2_tiny"])
def test_a_picture_of_a_recipe(tmp_path, recipe):
    assert main([str(tmp_path / "a.png"), "--cfg", recipe]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1200 and len(picture.convert("RGB").getcolors(100_000)) > 50


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none/a.png")]) == 7 and "cannot write the picture" in capsys.readouterr().err
    assert main([str(tmp_path / "a.png"), "--cfg", "swin_tny"]) == 2 and "swin_tiny" in capsys.readouterr().err
