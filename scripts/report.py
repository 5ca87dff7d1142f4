"""Writes one HTML page about a run, or about several side by side, that needs neither a server nor a network.

    python scripts/report.py output/quickstart/default
    python scripts/report.py output/swin_tiny/default output/swin_tiny/longer --output comparison.html

The page has the results, the differences of the configurations, the curves, and, from an evaluation of every run's best
checkpoint, accuracy per class, the confusion matrix and the most confident mistakes with their images.
"""

import argparse
import base64
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from data.loaders import PipelineOptions, build_eval_loader
from data.sources.open import SourceOptions, open_val
from scripts.open_model import open_model
from scripts.run_folder import SUMMARY_HEAD, Run, curves_figure, differences
from utils.checkpoints.files import follow
from utils.class_words import in_words
from utils.distributed.world import World, join_world
from utils.errors import CheckpointError, DataError, ResourceError, one_line, run_to_exit_code
from utils.evaluation.metrics import evaluate
from utils.evaluation.pictures import confusion_figure
from utils.files import write_text
from utils.pictures import to_image
from utils.precision import Precision
from utils.script_parser import ScriptParser
from utils.terminal import start_logging

TEMPLATE = Path(__file__).with_name("report.html")
MISTAKES = 24
CLASSES = 1000  # rows of the table per class, those with the lowest accuracy
START = (
    "data:",
    "machine:",
    "model:",
    "optimizer:",
    "precision:",
    "global batch",
    "learning rate",
    "plan:",
    "weights:",
)


@dataclass(frozen=True)
class Judged:
    """What the page says about one run. `problem`: why its checkpoint could not be evaluated."""

    run: Run
    environment: list[str]
    result: str = ""
    problem: str = ""
    confusion: str = ""
    classes: list[tuple[str, int, int, float, str]] = field(default_factory=list)
    mistakes: list[tuple[str, str, str]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


def judge(run: Run, options: argparse.Namespace, world: World) -> Judged:
    """Evaluates the best checkpoint of a run, else its last one. Raises: ConfigError."""
    environment = _environment(run.folder)
    if options.no_evaluation:
        return Judged(run, environment, problem="not evaluated: --no-evaluation")
    folder = run.folder / "checkpoints"
    found = (follow(folder / name) for name in ("best.pth", "last.pth"))
    checkpoint = next((path for path in found if path.exists()), None)
    if checkpoint is None:
        return Judged(run, environment, problem=f"not evaluated: no checkpoint in {folder}")
    given = {"DATA.NUM_WORKERS": options.workers, "DATA.ON_BAD_IMAGE": "skip"}
    given |= {"DATA.BATCH_SIZE": options.batch_size} if options.batch_size else {}
    given |= {"DATA.DATA_PATH": options.data_path} if options.data_path else {}
    try:
        opened = open_model(str(checkpoint), "", [(key, value, "command line") for key, value in given.items()])
    except CheckpointError as e:  # such as a pre-training's: no head
        return Judged(run, environment, problem=f"not evaluated: {one_line(e)}", pictures=_pictures(run.folder))
    environment = [*environment, ", ".join(f"{name} {version}" for name, version in opened.versions.items())]
    try:
        val = open_val(SourceOptions.from_config(opened.cfg), world, opened.class_names)
    except DataError as e:
        return Judged(run, environment, problem=f"not evaluated: {one_line(e)} (--data-path names another folder)")
    pipeline = PipelineOptions.from_config(opened.cfg, opened.channels, opened.preprocessing)
    loader = build_eval_loader(val, world, pipeline)
    precision = Precision.from_config(opened.cfg, world.device)
    accuracy, answers = evaluate(opened.model.to(world.device), loader, len(val.class_names), precision, world)
    names = in_words(val.class_names)
    classes = []
    for score in sorted(answers.per_class(len(names)), key=lambda each: (each.top1, each.label))[:CLASSES]:
        other = "" if score.mistaken_for is None else names[score.mistaken_for]
        classes.append((names[score.label], score.samples, score.correct, score.top1, other))
    mistakes = []
    for i in answers.worst(MISTAKES):
        caption = f"{names[int(answers.predicted[i])]} {answers.confidence[i]:.0%}, is {names[int(answers.labels[i])]}"
        mistakes.append((_picture(to_image(loader.pixels(i))), caption, val.name(i)))
    return Judged(
        run,
        environment,
        result=f"{accuracy.line()}, {checkpoint}",
        confusion=_svg(confusion_figure(answers, val.class_names)),
        classes=classes,
        mistakes=mistakes,
        pictures=_pictures(run.folder),
    )


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """Returns the name and the picture of what an evaluation does not draw: reconstructions, the load of experts."""
    shown = {"val_reconstruction": "Reconstruction", "val_expert_load": "Tokens per expert"}
    found = [(title, folder / "pictures" / f"{name}.png") for name, title in shown.items()]
    return [(title, _picture(Image.open(path))) for title, path in found if path.exists()]


def _environment(folder: Path) -> list[str]:
    """Returns the lines of the log that say with what the run last started."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    messages = [re.sub(r"^\[[^\]]*\] ", "", line) for line in lines]
    last = {start: message for message in messages for start in START if message.startswith(start)}
    return list(last.values())


def _svg(figure: Any) -> str:
    """Returns the figure as the address of an image that it contains."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(judged: Sequence[Judged], target: Path) -> None:
    """Fills the template. Raises: ResourceError."""
    from jinja2 import Environment, StrictUndefined

    runs = [each.run for each in judged]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=" and ".join(run.name for run in runs),
        head=SUMMARY_HEAD,
        rows=[run.summary() for run in runs],
        names=[run.name for run in runs],
        differences=differences(runs),
        curves=_svg(curves_figure(runs)),
        judged=judged,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page)
    except OSError as e:
        raise ResourceError(f"cannot write the page ({e.strerror}): {target}: name another file") from e


def _run(options: argparse.Namespace) -> None:
    runs = [Run.read(folder) for folder in options.runs]
    target = options.output or options.runs[0] / "report.html"
    world = join_world(device_type=options.device)
    judged = [judge(run, options, world) for run in runs]
    write_page(judged, target)
    for each in judged:
        print(f"{each.run.name}: {each.result or each.problem}")
    print(f"report: {target}")


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders output/<MODEL.NAME>/<TAG>")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page to write (default: report.html in the run)")
    parser.add_argument("--data-path", default="", metavar="FOLDER", help="data to evaluate on (default: the run's)")
    parser.add_argument("--no-evaluation", action="store_true", help="results, configurations and curves only")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the run's")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="default %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.batch_size < 0 or options.workers < 0:
        parser.error("--batch-size and --workers must not be negative")
    start_logging(is_main=True)
    return run_to_exit_code(lambda: _run(options), options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
