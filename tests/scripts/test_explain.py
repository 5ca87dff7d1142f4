"""Pictures of what predictions rest on."""

import shutil

import pytest
import torch
from PIL import Image
from torch import Tensor

from data.sources.files import FileSource
from scripts import explain as explaining
from scripts.explain import explain
from scripts.open_model import open_model
from scripts.predict import main
from tests.tools.errors import raises
from utils.errors import ConfigError


@pytest.fixture
def opened(made):
    return open_model(str(made[0] / "model.pth"))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: for each picture the photograph, the maps and the lines of text."""
    found = []
    monkeypatch.setattr(explaining, "_draw", lambda _, *what: found.append(what))
    return found


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
        assert picture.width > 1.8 * picture.height and len(picture.convert("RGB").getcolors(10**6)) > 100


def test_names_and_probabilities_are_those_of_the_predictions(opened, made, photos, tmp_path, drawn):
    """The true class is that of the folder, as a word; elsewhere it is unknown."""
    (photo,) = list((photos / "val/class_1").iterdir())[:1]
    paths = [photo]
    for folder in ("n01440764", "unsorted"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "a.jpg")
        shutil.copy(photo, paths[-1])
    files = list(explain(opened, FileSource(paths), tmp_path / "to"))
    assert [file.name for file in files] == [f"0_{photo.stem}.png", "1_a.png", "2_a.png"]
    name, probability = made[1][str(photo)]
    verdict = f"predicted {name} {probability:.1%}"
    assert [lines for _, _, lines in drawn] == [
        [photo.name, f"{verdict}, true class class_1"],
        ["a.jpg", f"{verdict}, true class tench"],
        ["a.jpg", verdict],
    ]


def test_the_photograph_is_upright_and_complete(opened, photos, tmp_path, drawn):
    with Image.open(next((photos / "val/class_0").iterdir())) as photo:
        turned = photo.resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned.save(tmp_path / "a.jpg", exif=exif)
    turned.resize((2000, 500)).save(tmp_path / "b.jpg")
    list(explain(opened, FileSource([tmp_path / "a.jpg", tmp_path / "b.jpg"]), tmp_path / "to"))
    assert [photo.image.size for photo, _, _ in drawn] == [(200, 300), (1000, 250)]
    turned.resize((10, 8)).save(tmp_path / "small.png")  # enlarged to the model's input
    list(explain(opened, FileSource([tmp_path / "small.png"]), tmp_path / "to"))
    assert drawn.pop()[0].image.size == (40, 32)
    left, top, right, bottom = drawn[0][0].box
    assert right - left == pytest.approx(bottom - top) == pytest.approx(0.9 * 200, rel=0.05)  # the crop of the model


def test_another_class_can_be_explained(opened, photos, tmp_path, drawn):
    source = FileSource([next((photos / "val/class_0").iterdir())])
    for chosen in ("", "class_0", "class_1", "n01440764", "tench"):
        list(explain(opened, source, tmp_path, chosen))
    evidence: list[Tensor] = [maps[0].values for _, maps, _ in drawn]
    assert not torch.equal(evidence[1], evidence[2]) and torch.equal(evidence[3], evidence[4])
    predicted = drawn[0][2][1].split()[1]
    assert len({lines[1] for _, _, lines in drawn}) == 1 and len(drawn[0][2]) == 2
    for name, (_, maps, lines) in zip(("class_0", "class_1", "tench", "tench"), drawn[1:], strict=True):
        assert [line.startswith(f"evidence for {name} ") for line in lines[2:]] == [True] * (name != predicted)
        assert torch.equal(maps[0].values, evidence[0]) == (name == predicted)
    with raises(ConfigError, "--class", "class_2", "class_"):
        list(explain(opened, source, tmp_path, "class_2"))


def test_maps_have_a_scale(opened, photos, tmp_path, monkeypatch):
    figures = []
    own = explaining.new_figure
    monkeypatch.setattr(explaining, "new_figure", lambda *size: figures.append(own(*size)) or figures[-1])
    list(explain(opened, FileSource([next((photos / "val/class_0").iterdir())]), tmp_path))
    scales = [bar.get_xlabel() for axes in figures[0].axes for bar in axes.child_axes]
    assert scales == ["share of the strongest", "multiple of the mean"]
    first, evidence, _ = figures[0].axes
    assert len(first.images) == 1 and len(evidence.images) == 2 and len(first.lines) == 1  # the frame
    assert first.images[0].get_extent() == [*first.get_xlim(), *first.get_ylim()]  # the photograph fills the panel


def test_a_class_without_a_picture_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["a.jpg", "--model", "m.pth", "--class", "cat"])
    assert caught.value.code == 2 and "--class" in capsys.readouterr().err.splitlines()[-1]
