"""How errors are worded and reported."""

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from utils.errors import (
    EXIT_CODES,
    ConfigError,
    DataError,
    RunError,
    TerminatedError,
    did_you_mean,
    listing,
    one_line,
    printable,
    report_error,
    run_to_exit_code,
)
from utils.terminal import log_to_file


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d"], "a, b, c, ...")],
)
def test_a_listing_ends_with_an_ellipsis_if_there_are_more(names, text):
    assert listing(iter(names), 3) == text


KNOWN = ["TRAIN.EPOCHS", "DATA.BATCH_SIZE", "TAG"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("TRAIN.EPOHCS", "did you mean TRAIN.EPOCHS?"),
        ("train.epochs", "did you mean TRAIN.EPOCHS?"),
        ("TRAIN.BATCH_SIZE", "did you mean DATA.BATCH_SIZE?"),  # the right name in another group
        ("tga", "did you mean TAG?"),
        ("xyz", "choose one of TRAIN.EPOCHS, DATA.BATCH_SIZE, TAG"),
    ],
)
def test_the_closest_name_is_proposed(name, answer):
    assert did_you_mean(name, KNOWN) == answer
    assert did_you_mean(name, KNOWN, "see the list") == (answer if answer.startswith("did") else "see the list")


def test_fault_56_control_characters_are_escaped():
    assert one_line(DataError("bad \x1b[31mname\x07", "\n  a\tb")) == r"bad \x1b[31mname\x07: a b"
    assert one_line(DataError("caf\x9b é", "a")) == r"caf\x9b é: a"
    assert one_line(ValueError()) == "ValueError"


def test_every_class_has_its_own_documented_exit_code():
    codes = [each.exit_code for each in RunError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 75] and set(codes) <= EXIT_CODES.keys()
    assert RunError.exit_code == 1 and 1 not in EXIT_CODES  # a bug of the program


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("X", "no such key"), 2, "error: X: no such key"),
        (ConfigError("X", "no such key", "remove it"), 2, "error: X: no such key (remove it)"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (KeyboardInterrupt("update 5 is saved"), 130, "error: interrupted: update 5 is saved"),
        (TerminatedError("SIGTERM", "terminated"), 75, "error: SIGTERM: terminated"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a"),
            7,
            "error: a: file name too long (choose a shorter name)",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            7,
            "error: a: permission denied (check its permissions, or choose another path)",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line(capsys, error, code, line):
    assert report_error(error, debug=False, speak=True) == code
    captured = capsys.readouterr()
    assert captured.err == line + "\n" and captured.out == ""


@pytest.mark.parametrize("kind", RunError.__subclasses__())
def test_an_error_survives_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("X", "problem", "remedy")))
    assert type(error) is kind and (error.subject, error.problem, error.remedy) == ("X", "problem", "remedy")


@pytest.mark.parametrize(
    ("error", "debug"),
    [
        (ConfigError("a", "x"), True),
        (ZeroDivisionError("a: x"), False),
        (FileNotFoundError(errno.ENOENT, "x", "a"), False),
        (OSError(errno.EIO, "x"), False),
    ],
)
def test_bugs_and_debugging_show_a_traceback(capsys, error, debug):
    try:
        raise error
    except Exception as raised:
        code = report_error(raised, debug=debug, speak=True)
    assert code == getattr(error, "exit_code", 1)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith(f"error: {error}\n")


def test_a_rank_that_does_not_speak_is_silent_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert report_error(DataError("a", "x"), debug=True, speak=False, detail="stacks\n") == 3
    assert capsys.readouterr() == ("", "") and not (tmp_path / "error.json").exists()


def test_fault_17_a_disk_that_can_no_longer_be_written_costs_neither_line_nor_code(capsys, caplog):
    log_to_file(Path("/dev/full"))
    for text in ("one", "two"):
        logging.getLogger().error(text)
    assert report_error(DataError("a", "x"), speak=True) == 3
    assert capsys.readouterr().err == "error: a: x\n"
    assert [message for message in caplog.messages if "No space left on device" in message] == [
        "lines are missing from the log from here on (No space left on device): /dev/full"
    ]


def test_the_log_file_gets_the_line_and_its_detail_too(tmp_path, capsys, monkeypatch):
    handler = logging.FileHandler(tmp_path / "log.txt")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    report_error(DataError("a", "bad image"), debug=False, speak=True, detail="where\n")
    handler.close()
    assert (tmp_path / "log.txt").read_text() == "where\nerror: a: bad image\n" == capsys.readouterr().err


def test_torchrun_finds_the_line_that_it_quotes(tmp_path, capsys, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    report_error(DataError("a", "bad\nimage"), speak=True)
    message = json.loads(file.read_text())["message"]  # the format of torch's error handler
    assert message["message"] == message["extraInfo"]["py_callstack"] == "error: a: bad image"
    assert message["extraInfo"]["timestamp"].isdigit()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no/folder"))
    assert report_error(DataError("a", "x"), speak=True) == 3


def test_without_a_terminal_the_exit_code_is_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert report_error(DataError("a", "x"), speak=True) == 3


def test_the_action_of_a_script_gives_its_exit_code(capsys):
    def fail():
        raise DataError("a", "no data")

    assert [run_to_exit_code(action) for action in (lambda: None, lambda: 3, fail)] == [0, 3, 3]
    assert capsys.readouterr().err == "error: a: no data\n"


def test_a_lack_of_memory_in_a_script_is_one_line(capsys):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert run_to_exit_code(fail) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --batch-size: ") and "out of memory" in line


def test_a_reader_that_has_seen_enough_is_no_error():
    script = "from utils.errors import run_to_exit_code as r; import sys; sys.exit(r(lambda: print('line\\n' * 10**6)))"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def test_long_values_are_shortened():
    line = one_line(ConfigError("TAG", f"must be short, got {'a' * 5000!r}", f"see {'b/' * 3000}c"))
    assert len(line) < 500 and line.startswith("TAG: must be short, got 'aaa") and line.endswith("b/c)")
    line = one_line(ConfigError("x " * 5000, "x " * 5000, "change it"))
    assert len(line) <= 1300 and line.endswith("(change it)")
    assert len(one_line(ValueError("x " * 5000))) <= 1500


def test_the_direction_of_the_text_is_not_changed():
    assert printable("a\u202eb\u2066c\x1b\n\té") == r"a\u202eb\u2066c\x1b" + "\n\té"


def test_text_that_the_terminal_cannot_encode_is_escaped():
    """In main.py as in the scripts."""
    main = [sys.executable, "main.py", "--cfg", "swin_tiny", "--print-config", "--tag", "caf\u00e9"]
    script = [sys.executable, "-c", "from utils.errors import run_to_exit_code as r; r(lambda: print('caf\u00e9'))"]
    for line in (main, script):
        done = subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
        assert done.returncode == 0 and rb"caf\xe9" in done.stdout, done.stderr
