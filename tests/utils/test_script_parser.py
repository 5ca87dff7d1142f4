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


def test_devices_are_those_of_the_program(capsys):
    parser = ScriptParser("Packs.", prog="tool")
    parser.add_device()
    assert parser.parse_args(["--device", "1"]).device == "cuda:1" and parser.parse_args([]).device == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "gpu"])
    assert "error: --device: must be one of auto, cpu" in capsys.readouterr().err
