"""Draws the architecture of a recipe: stages with their sizes, a pair of blocks, and the windows.

python scripts/draw_architecture.py docs/images/architecture.png --cfg swin_tiny
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import find_config, load_config
from models.backbone import PyramidOptions
from models.registry import default_classes, model_options
from models.swin_v2 import SwinV2Options
from utils.errors import ConfigError, ResourceError, run_to_exit_code
from utils.files import atomic_path
from utils.pictures import new_figure
from utils.preprocessing import image_size
from utils.script_parser import ScriptParser

INK, FAINT, LINE = "#22262b", "#6d727b", "#b9bec7"
COLORS = {"plain": "#eef0f3", "attention": "#cfe3f7", "mlp": "#fbe3c4", "norm": "#e3f0d9"}
WINDOWS = ("#cfe3f7", "#fbe3c4", "#e3f0d9", "#f3d6dd")


def draw(options: PyramidOptions, title: str, target: Path) -> None:
    """Writes a PNG. Raises: ResourceError if it cannot be written."""
    figure = new_figure(12, 6)
    axes = figure.subplots()
    axes.set_xlim(0, 120)
    axes.set_ylim(6, 66)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.text(2, 62.5, title, fontsize=13, weight="bold", color=INK)
    _stages(axes, options)
    _blocks(axes, post_norm=isinstance(options, SwinV2Options))
    _windows(axes, options.window_size)
    try:
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
    except OSError as e:
        raise ResourceError(f"cannot write the picture ({e.strerror}): {target}: name another file") from e


def _stages(axes: Any, options: PyramidOptions) -> None:
    height, width = image_size(options.img_size)
    count, patch = len(options.depths), options.patch_size
    step = 116 / (count + 2)
    _box(axes, 2, 45, step - 3, 10, f"patches {patch}x{patch}\nlinear", "plain")
    axes.text(2, 42.6, f"{options.in_chans}x{height}x{width}", fontsize=8.5, color=FAINT)
    for stage, (depth, heads) in enumerate(zip(options.depths, options.num_heads, strict=True)):
        left, scale = 2 + (stage + 1) * step, patch * 2**stage
        merging = "patch merging\n" if stage else ""
        text = f"{merging}{depth} blocks\n{heads} heads"
        _arrow(axes, left - 3, left, 50)
        _box(axes, left, 45, step - 3, 10, text, "attention")
        sides = f"{options.embed_dim * 2**stage}x{-(-height // scale)}x{-(-width // scale)}"
        axes.text(left, 42.6, sides, fontsize=8.5, color=FAINT)
        axes.text(left, 56, f"stage {stage + 1}", fontsize=9, color=INK)
    left = 2 + (count + 1) * step
    _arrow(axes, left - 3, left, 50)
    _box(axes, left, 45, step - 3, 10, "norm\nmean\nlinear", "plain")
    axes.text(left, 42.6, f"{options.num_classes} classes", fontsize=8.5, color=FAINT)


def _blocks(axes: Any, post_norm: bool) -> None:
    """Draws two successive blocks, from left to right: regular windows, then shifted ones."""
    axes.text(2, 37, "Two successive blocks" + (", norm after the branch (V2)" if post_norm else ""), fontsize=10.5)
    for block, attention in enumerate(("attention\nin windows", "attention in\nshifted windows")):
        left = 2.0 + 41.5 * block
        parts = [("norm", "norm", 5.5), (attention, "attention", 10.5)], [("norm", "norm", 5.5), ("MLP", "mlp", 6.5)]
        place = left
        for branch in parts:
            begin = place
            _arrow(axes, place - 0.5, place + 2, 24)
            place += 2
            for text, color, size in reversed(branch) if post_norm else branch:
                _box(axes, place, 20.5, size, 7, text, color, fontsize=7.5)
                place += size + 1
            axes.plot([begin, begin, place + 0.6, place + 0.6], [24, 30.5, 30.5, 25.2], color=LINE, lw=1.2)
            axes.add_patch(_circle(place + 0.6, 24))
            axes.text(place + 0.6, 23.9, "+", ha="center", va="center", fontsize=9, color=INK)
            place += 2.2
    axes.text(2, 14.6, "Stochastic depth drops a branch for single images while training.", fontsize=8.5, color=FAINT)


def _windows(axes: Any, window: int) -> None:
    """Draws a map of 8x8 tokens in windows of 4x4, regular and shifted by half a window."""
    from matplotlib.patches import Rectangle

    axes.text(89, 37, f"Windows of {window}x{window} tokens (drawn: 4x4)", fontsize=10.5)
    for number, (shift, text) in enumerate(((0, "regular"), (2, "shifted by half"))):
        left, bottom, cell = 89.0 + 15.5 * number, 18.0, 1.65
        for row in range(8):
            for column in range(8):
                index = ((row + shift) // 4) * 3 + (column + shift) // 4
                place = (left + column * cell, bottom + row * cell)
                color = WINDOWS[(index + 2 * (index // 3)) % 4]
                axes.add_patch(Rectangle(place, cell, cell, fc=color, ec="white", lw=0.7))
        edges = [0, 4, 8] if not shift else [0, 2, 6, 8]
        for edge in edges:
            axes.plot([left + edge * cell] * 2, [bottom, bottom + 8 * cell], color=INK, lw=1.4)
            axes.plot([left, left + 8 * cell], [bottom + edge * cell] * 2, color=INK, lw=1.4)
        axes.text(left, 14.6, text, fontsize=8.5, color=FAINT)
    axes.text(89, 11.4, "Tokens attend within their window only;", fontsize=8.5, color=FAINT)
    axes.text(89, 8.8, "the shift lets neighbouring windows exchange.", fontsize=8.5, color=FAINT)


def _box(
    axes: Any, left: float, bottom: float, width: float, height: float, text: str, color: str, fontsize: float = 9
) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc=COLORS[color])
    shape.set_edgecolor(INK)
    axes.add_patch(shape)
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", color=INK, fontsize=fontsize)


def _arrow(axes: Any, start: float, end: float, height: float) -> None:
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end, height), (start, height), arrowprops=arrow)


def _circle(x: float, y: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((x, y), 1.2, fc="white", ec=INK, lw=1.1)


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("target", type=Path, metavar="FILE.png")
    parser.add_argument("--cfg", default="swin_tiny", metavar="FILE", help="recipe (default %(default)s)")
    options = parser.parse_args(argv)

    def run() -> None:
        cfg = load_config(find_config(options.cfg))
        model = replace(model_options(cfg), num_classes=default_classes(cfg))
        if not isinstance(model, PyramidOptions):
            raise ConfigError(f"a model of timm: {options.cfg}: only Swin models can be drawn")
        draw(model, f"{cfg.MODEL.NAME.replace('_', ' ')}", options.target)
        print(f"drawn: {options.target}")

    return run_to_exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
