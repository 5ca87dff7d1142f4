"""Names in any script."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from utils import fonts
from utils.fonts import Font, draw_text, legible, text_width, wrapped


def drawn(text, size=20):
    image = Image.new("L", (300, 40))
    draw_text(ImageDraw.Draw(image), (2, 30), text, "white", size)
    return np.asarray(image)


def test_letters_that_matplotlib_brings_are_drawn_as_they_are():
    assert fonts.fonts()[0].file.endswith("DejaVuSans.ttf")  # neither bold nor condensed
    for name in ("Kirche Ä ö ü", "собор", "ναός", "ﻙﻦﻴﺳﺓ"):
        assert legible(name) == name
        boxes = drawn("\uffff" * len(name))  # of no character
        assert drawn(name).any() and not np.array_equal(drawn(name), boxes)
    assert not np.array_equal(drawn("ä"), drawn("ö"))


def test_characters_that_no_font_has_are_spelt_out():
    assert legible("a\U0001096b\udcff5\nb") == "a<U+1096B U+DCFF>5\nb"


def test_a_font_is_found_for_every_script_that_an_installed_one_has(monkeypatch):
    """Regular before others, the preferred family first, and none twice."""
    has = {"DejaVu Sans": "", "Zen": "中あ한", "Noto Sans CJK SC": "中あ", "Thai": "ก", "More Thai": "ก"}
    installed = {name: Font(name, f"{name}.ttf", 0) for name in has}
    monkeypatch.setattr(fonts, "_installed", lambda: installed)
    monkeypatch.setattr(fonts, "_has", lambda font, character: character in has[font.family])
    chosen = [font.family for font in fonts.fonts.__wrapped__()]
    assert chosen == ["DejaVu Sans", "Noto Sans CJK SC", "More Thai", "Zen"]


def test_installed_fonts_have_no_boxes_for_what_they_lack():
    families = fonts._installed()
    assert "DejaVu Sans" in families and not [name for name in families if "last" in name.lower()]


def test_parts_of_a_line_stand_beside_each_other(monkeypatch):
    monkeypatch.setattr(fonts, "_font_of", lambda character: int(character == "b"))
    own = fonts.fonts()[0]
    bold = Font("bold", own.file.replace("DejaVuSans", "DejaVuSans-Bold"), 0)
    monkeypatch.setattr(fonts, "fonts", lambda: (own, bold))
    fonts._sized.cache_clear()
    mixed = drawn("abc")
    assert text_width("abc", 20) == text_width("a", 20) + text_width("b", 20) + text_width("c", 20)
    monkeypatch.setattr(fonts, "_font_of", lambda character: 0)
    assert not np.array_equal(mixed, drawn("abc"))
    assert np.array_equal(mixed[:, :14], drawn("a")[:, :14])
    fonts._sized.cache_clear()


@pytest.mark.parametrize("text", ["English springer spaniel 87%, is church", "x" * 90, "\u65e5\u672c" * 30])
def test_text_is_broken_into_lines_that_fit_and_nothing_is_lost(text):
    lines = wrapped(text, 120, 13)
    assert len(lines) > 1 and max(text_width(line, 13) for line in lines) <= 120
    assert "".join(lines).replace(" ", "") == legible(text).replace(" ", "")


def test_no_text_has_no_lines():
    assert wrapped("", 120, 13) == [] and wrapped("cat", 120, 13) == ["cat"]
