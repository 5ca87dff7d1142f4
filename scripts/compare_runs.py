"""Compares runs: where their configurations differ, what they reached, and their curves in one picture.

python scripts/compare_runs.py output/swin_tiny/default output/swin_tiny/longer --picture curves.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from scripts.run_folder import SUMMARY_HEAD, Run, curves_figure, differences
from utils.errors import run_to_exit_code
from utils.files import writing
from utils.script_parser import ScriptParser
from utils.terminal import table_lines


def compare(folders: Sequence[Path], picture: Path | None) -> None:
    """Prints the tables, and draws the curves into `picture`. Raises: DataError, ResourceError."""
    runs = [Run.read(folder) for folder in folders]
    print("\n".join(table_lines(SUMMARY_HEAD, [run.summary() for run in runs])))
    rows = differences(runs)
    if rows:
        print("\n".join(["", *table_lines(["key", *(run.name for run in runs)], rows)]))
    if picture:
        with writing(picture, "--picture") as temporary:
            curves_figure(runs).savefig(temporary, dpi=110, format="png")
        print(f"\ncurves: {picture}")


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders output/<MODEL.NAME>/<TAG>")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="PNG of the curves to write")
    options = parser.parse_args(argv)
    return run_to_exit_code(lambda: compare(options.runs, options.picture))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
