"""Writes a self-contained HTML page about one run, or several side by side.

    python scripts/report.py output/quickstart/default
    python scripts/report.py output/swin_tiny/default output/swin_tiny/longer --output comparison.html
    python scripts/report.py output/swin_tiny/default output/swin_tiny/longer --text

The page contains results, dates and durations, curves, differences of the configurations, the first training batch,
and tables and pictures from evaluating the best checkpoint of every run: for a classifier the accuracy per class, the
confusion matrix and the most confident mistakes. With --text, results and differences are printed instead.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.schema import KEYS
from scripts.open_model import open_model
from scripts.report_page import as_html, environment, facts, heading, in_order, log_lines, saved_pictures
from scripts.run_folder import Run, curve_figures, differences, summary_table
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


@dataclass(frozen=True)
class RunReport:
    """The column about one run. `problem`: why its checkpoint could not be evaluated; `tables` and `pictures` of the
    evaluation, by heading; `saved`: pictures written by the run."""

    run: Run
    facts: Mapping[str, str]
    environment: list[str]
    result: str = ""
    problem: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    saved: Mapping[str, str] = field(default_factory=dict)


def report_on(run: Run, options: argparse.Namespace, world: World) -> RunReport:
    """Evaluates the best checkpoint of a run, else the last one. Raises: ConfigError."""
    lines = log_lines(run.folder)
    report = RunReport(run, facts(run), environment(lines), saved=saved_pictures(run.folder))
    if options.no_evaluation:
        return replace(report, problem="not evaluated: --no-evaluation")
    folder = run.folder / "checkpoints"
    found = (follow(folder / name) for name in ("best.pth", "last.pth"))
    checkpoint = next((path for path in found if path.exists()), None)
    if checkpoint is None:
        return replace(report, problem=f"not evaluated: no checkpoint in {run.name}/checkpoints")
    given = {"DATA.NUM_WORKERS": options.workers, "DATA.ON_BAD_IMAGE": "skip"}
    given |= {"DATA.BATCH_SIZE": options.batch_size} if options.batch_size else {}
    given |= {"DATA.DATA_PATH": options.data_path} if options.data_path else {}
    try:
        given_keys = [(key, value, "command line") for key, value in given.items()]
        opened = open_model(str(checkpoint), "", given_keys, world)
        data = opened.task.open_data(("val",))
    except (CheckpointError, DataError) as e:
        remedy = "name another folder with --data-path" if isinstance(e, DataError) else e.remedy
        return replace(report, problem=f"not evaluated: {one_line(type(e)(e.subject, e.problem, remedy))}")
    assert data.val is not None
    task, loader = opened.task, opened.task.loader(data.val, data.info)
    evaluation = evaluate(opened.model, loader, task.evaluator(loader, data.info), task.forward, world)
    below = f"{opened.cfg.DATA.DATA_PATH}/"  # paths are shown relative to the data
    tables = {heading(name): shortened(table, below) for name, table in evaluation.tables.items() if name != "results"}
    return replace(
        report,
        environment=[*report.environment, ", ".join(f"{name} {version}" for name, version in opened.versions.items())],
        result=f"{evaluation.line}, {checkpoint.relative_to(run.folder)}",
        tables=tables,
        pictures={heading(name): as_html(draw()) for name, draw in evaluation.pictures.items()},
    )


def shortened(table: Table, below: str) -> Table:
    """Returns a table whose texts do not begin with `below`."""
    rows = [[cell.removeprefix(below) if isinstance(cell, str) else cell for cell in row] for row in table.rows]
    return Table(table.head, rows)


def overview(reports: Sequence[RunReport]) -> list[list[Any]]:
    """Returns rows of a title and a cell per run: results, dates, durations, learning rates, evaluations."""
    head, rows = summary_table([each.run for each in reports])
    own = [dict(zip(head[1:], row[1:], strict=True)) for row in rows]
    columns = [
        {**results, **each.facts, "evaluated": each.result or each.problem}
        for results, each in zip(own, reports, strict=True)
    ]
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def write_page(reports: Sequence[RunReport], target: Path) -> None:
    """Renders the template. Raises: ResourceError."""
    from jinja2 import Environment, StrictUndefined

    runs = [each.run for each in reports]
    shown = {key for key in KEYS if not KEYS[key].per_machine}
    changed = {key for run in runs for key in shown & run.config.keys() if run.config[key] != KEYS[key].default}
    headings = (name for each in reports for part in (each.pictures, each.tables, each.saved) for name in part)
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=runs[0].name if len(runs) == 1 else f"Comparison of {len(runs)} runs",
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        names=[run.name for run in runs],
        overview=overview(reports),
        differences=differences(runs),
        plots=[as_html(figure) for figure in curve_figures(runs)],
        headings=in_order(headings),
        reports=reports,
        changed=[[key, *(run.config.get(key, "") for run in runs)] for key in KEYS if key in changed],
        limit=ROWS,
    )
    with writing(target, "--output") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _run(options: argparse.Namespace) -> None:
    runs = Run.read_all(options.runs)
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
