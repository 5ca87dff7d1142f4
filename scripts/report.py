"""Writes a self-contained HTML page about one run, or several side by side.

    python scripts/report.py output/quickstart/default
    python scripts/report.py output/swin_tiny/default output/swin_tiny/longer --output comparison.html
    python scripts/report.py output/swin_tiny/default output/swin_tiny/longer --text

The page contains results, differences of the configurations, curves, and tables and pictures from evaluating the best
checkpoint of every run: for a classifier the accuracy per class, the confusion matrix and the most confident mistakes.
With --text, results and differences are printed instead.
"""

import argparse
import base64
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program


from scripts.open_model import open_model
from scripts.run_folder import Run, curves_figure, differences, summary_table
from utils.checkpoints.files import follow
from utils.distributed.world import World, join_world
from utils.errors import CheckpointError, DataError, one_line, run_to_exit_code
from utils.files import writing
from utils.script_parser import ScriptParser
from utils.terminal import say, start_logging, table_lines
from utils.training.evaluate import evaluate
from utils.training.objective import Table

TEMPLATE = Path(__file__).with_name("report.html")
ROWS = 1000  # maximum rows of a table
START = (
    *("data:", "machine:", "model:", "optimizer:", "precision:"),
    *("global batch", "learning rate", "plan:", "weights:"),
)


@dataclass(frozen=True)
class RunReport:
    """The section on one run. `problem`: why its checkpoint could not be evaluated; `tables` and `pictures` of the
    evaluation, by title; `saved`: pictures written by the run."""

    run: Run
    environment: list[str]
    result: str = ""
    problem: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    saved: Mapping[str, str] = field(default_factory=dict)


def report_on(run: Run, options: argparse.Namespace, world: World) -> RunReport:
    """Evaluates the best checkpoint of a run, else the last one. Raises: ConfigError."""
    environment, saved = _environment(run.folder), _saved_pictures(run.folder)
    if options.no_evaluation:
        return RunReport(run, environment, problem="not evaluated: --no-evaluation", saved=saved)
    folder = run.folder / "checkpoints"
    found = (follow(folder / name) for name in ("best.pth", "last.pth"))
    checkpoint = next((path for path in found if path.exists()), None)
    if checkpoint is None:
        return RunReport(run, environment, problem=f"not evaluated: no checkpoint in {folder}", saved=saved)
    given = {"DATA.NUM_WORKERS": options.workers, "DATA.ON_BAD_IMAGE": "skip"}
    given |= {"DATA.BATCH_SIZE": options.batch_size} if options.batch_size else {}
    given |= {"DATA.DATA_PATH": options.data_path} if options.data_path else {}
    try:
        given_keys = [(key, value, "command line") for key, value in given.items()]
        opened = open_model(str(checkpoint), "", given_keys, world)
        environment += [", ".join(f"{name} {version}" for name, version in opened.versions.items())]
        data = opened.task.open_data(("val",))
    except (CheckpointError, DataError) as e:
        remedy = "name another folder with --data-path" if isinstance(e, DataError) else e.remedy
        problem = f"not evaluated: {one_line(type(e)(e.subject, e.problem, remedy))}"
        return RunReport(run, environment, problem=problem, saved=saved)
    assert data.val is not None
    task, loader = opened.task, opened.task.loader(data.val, data.info)
    evaluation = evaluate(opened.model, loader, task.evaluator(loader, data.info), task.forward, world)
    tables = {_title(name): table for name, table in evaluation.tables.items() if name != "results"}
    pictures = {_title(name): _embedded(draw()) for name, draw in evaluation.pictures.items()}
    return RunReport(run, environment, f"{evaluation.line}, {checkpoint}", "", tables, pictures, saved)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _saved_pictures(folder: Path) -> dict[str, str]:
    """Returns the pictures of the run's last evaluation, such as reconstructions and expert load."""
    found = sorted((folder / "pictures").glob("val_*.png"))
    return {_title(path.stem.removeprefix("val_")): _embedded(Image.open(path)) for path in found}


def _environment(folder: Path) -> list[str]:
    """Returns the log lines that describe the last start of the run."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    messages = [re.sub(r"^\[[^\]]*\] ", "", line) for line in lines]
    last = {start: message for message in messages for start in START if message.startswith(start)}
    return list(last.values())


def _embedded(picture: Any) -> str:
    """Encodes an image or a Matplotlib figure as a data URL."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG")
        kind = "png"
    else:
        picture.savefig(buffer, format="svg")
        kind = "svg+xml"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(reports: Sequence[RunReport], target: Path) -> None:
    """Renders the template. Raises: ResourceError."""
    from jinja2 import Environment, StrictUndefined

    runs = [each.run for each in reports]
    head, rows = summary_table(runs)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=" and ".join(run.name for run in runs),
        head=head,
        rows=rows,
        names=[run.name for run in runs],
        differences=differences(runs),
        curves=_embedded(curves_figure(runs)),
        reports=reports,
        limit=ROWS,
    )
    with writing(target, "--output") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _run(options: argparse.Namespace) -> None:
    runs = [Run.read(folder) for folder in options.runs]
    if options.text:
        say(*table_lines(*summary_table(runs)))
        rows = differences(runs)
        if rows:
            say("", *table_lines(["key", *(run.name for run in runs)], rows))
        return
    target = options.output or options.runs[0] / "report.html"
    world = join_world(device_type=options.device)
    reports = [report_on(run, options, world) for run in runs]
    write_page(reports, target)
    for each in reports:
        say(f"{each.run.name}: {each.result or each.problem}")
    say(f"report: {target}")


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders output/<MODEL.NAME>/<TAG>")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page to write (default: report.html in the run)")
    parser.add_argument("--text", action="store_true", help="print results and differences instead of writing a page")
    parser.add_argument("--data-path", default="", metavar="FOLDER", help="data to evaluate on (default: the run's)")
    parser.add_argument("--no-evaluation", action="store_true", help="results, configurations and curves only")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the run's")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
    parser.add_device()
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.batch_size < 0 or options.workers < 0:
        parser.error("--batch-size and --workers must not be negative")
    start_logging(is_main=True)
    return run_to_exit_code(lambda: _run(options), options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
