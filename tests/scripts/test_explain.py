"""Pictures of what predictions rest on."""

import shutil

import pytest
from PIL import Image

from scripts.predict import main


@pytest.mark.seconds
def test_explanations_are_pictures(made, photos, tmp_path, capsys):
    arguments = [
        str(photos / "val" / "class_0"),
        "--model",
        str(made[0] / "model.pth"),
        "--explain",
        str(tmp_path / "e"),
    ]
    assert main(arguments) == 0
    long = tmp_path / f"{'x' * 244}.jpg"
    shutil.copy(next((photos / "val" / "class_0").iterdir()), long)
    assert main([str(long), *arguments[1:-1], str(tmp_path / "long")]) == 0
    assert len(list((tmp_path / "long").iterdir())) == 1
    pictures = sorted((tmp_path / "e").iterdir())
    assert len(pictures) == 5 and str(pictures[0]) in capsys.readouterr().out
    with Image.open(pictures[0]) as picture:
        assert picture.width > 2.5 * picture.height / 1.3 and len(picture.convert("RGB").getcolors(10**6)) > 100
