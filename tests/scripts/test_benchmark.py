"""The command line of the benchmarks; no test asserts a speed."""

import pytest

from scripts.benchmark import main


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--images", "7", "--batch-size", "8"], ["--odd"]])
def test_impossible_arguments_are_rejected(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err
