"""Fonts for text in any script, in figures and images: Matplotlib's, then installed ones."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from PIL import ImageDraw, ImageFont

OWN = "DejaVu Sans"  # comes with Matplotlib
# one character per script, to find a font for each script that it lacks
_SCRIPTS = "中あ한กअবਅઅதఅಕമවခកአ🐟"
# families to prefer, by the beginning of their names
_PREFERRED = (
    "Noto Sans CJK SC",
    "Noto Sans",
    "PingFang",
    "Hiragino Sans",
    "Apple SD Gothic",
    "Microsoft YaHei",
    "Yu Gothic",
)


class Font(NamedTuple):
    """A font: its family, its file, and its number among those in the file."""

    family: str
    file: str
    number: int


@cache
def fonts() -> tuple[Font, ...]:
    """Returns DejaVu Sans and installed fonts for further scripts; a character is drawn in the first that has it."""
    regular = _installed()
    chosen, missing = [regular.pop(OWN)], set(_SCRIPTS)
    for font in sorted(regular.values(), key=_rank):
        found = {each for each in missing if _has(font, each)}
        chosen += [font] if found else []
        missing -= found
    return tuple(chosen)


def _installed() -> dict[str, Font]:
    """Returns the upright fonts of regular weight and width by family."""
    from matplotlib import font_manager  # slow to import

    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for file in font_manager.findSystemFonts():  # Matplotlib's list is from its first start
        if file not in known:
            with suppress(Exception):  # of a kind that Matplotlib cannot draw, or damaged
                manager.addfont(file)
    usual = (400, "normal", "regular")
    regular = (e for e in manager.ttflist if e.style == "normal" and e.weight in usual and e.stretch in usual)
    # the font of last resort draws boxes for all characters
    named = [entry for entry in regular if not entry.name.replace(" ", "").startswith("LastResort")]
    named.sort(key=lambda entry: entry.fname)  # Matplotlib's order is arbitrary
    return {entry.name: Font(entry.name, entry.fname, getattr(entry, "index", 0)) for entry in named}


def legible(text: str) -> str:
    """Replaces characters that no font has by their code points, such as "<U+65E5 U+672C>"."""
    groups = ((known, "".join(group)) for known, group in groupby(text, _is_known))
    return "".join(group if known else f"<{' '.join(f'U+{ord(c):04X}' for c in group)}>" for known, group in groups)


def _is_known(character: str) -> bool:
    return character == "\n" or _font_of(character) >= 0


def text_width(text: str, size: int) -> float:
    """Returns the width in pixels of one line of text."""
    return sum(font.getlength(run) for run, font in _runs(text, size))


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ink: str, size: int) -> None:
    """Draws one line of text on a Pillow image. Args: place: left end of the baseline; size: in pixels."""
    left, baseline = place
    for run, font in _runs(text, size):
        draw.text((left, baseline), run, ink, font, anchor="ls")
        left += font.getlength(run)


def wrapped(text: str, width: int, size: int) -> list[str]:
    """Breaks text into lines of at most `width` pixels, between words where possible."""
    lines = [""]
    for word in legible(text).split():
        if lines[-1] and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
            continue
        *whole, rest = _broken(word, width, size)
        lines += [*whole, rest]
    return lines[1:]


def _broken(word: str, width: int, size: int) -> list[str]:
    """Cuts a word into parts that fit; most words are one."""
    parts = [""]
    for character in word:
        if parts[-1] and text_width(parts[-1] + character, size) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _runs(text: str, size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    for number, group in groupby(legible(text), _font_of):
        yield "".join(group), _sized(max(number, 0), size)


@cache
def _sized(number: int, size: int) -> ImageFont.FreeTypeFont:
    font = fonts()[number]
    return ImageFont.truetype(font.file, size, index=font.number)


@cache
def _font_of(character: str) -> int:
    """Returns the place of the first font that has a character, -1 if none does."""
    return next((number for number, font in enumerate(fonts()) if _has(font, character)), -1)


def _has(font: Font, character: str) -> bool:
    return bool(_opened(font).get_char_index(ord(character)))


@lru_cache(16)  # every open font holds a file
def _opened(font: Font) -> Any:
    from matplotlib.ft2font import FT2Font

    own: Any = {"face_index": font.number} if font.number else {}  # since Matplotlib 3.11
    return FT2Font(font.file, **own)


def _rank(font: Font) -> tuple[int, str]:
    place = next((i for i, name in enumerate(_PREFERRED) if font.family.startswith(name)), len(_PREFERRED))
    return place, font.family
