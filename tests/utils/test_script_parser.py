"""Mistakes on the command line of a script."""

import pytest

from utils.script_parser import ScriptParser


@pytest.mark.parametrize(
    ("arguments", "subject"), [(["--unknown"], "tool"), (["pack", "--count", "x"], "--count"), ([], "tool")]
)
def test_a_mistake_is_one_line_and_code_2(arguments, subject, capsys):
    parser = ScriptParser("Packs.\n\n    pack FOLDER", prog="tool")
    parser.add_subparsers(required=True).add_parser("pack").add_argument("--count", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"error: {subject}: ") and line.endswith("--help)")
    assert "\n    pack FOLDER" in parser.format_help()
