"""Where log lines go: coloured to the terminal, plain to the file, from the main rank."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from functools import partial

import pytest
from termcolor import colored

from tests.conftest import ROOT, environment
from utils import terminal
from utils.terminal import EVERY_RANK, duration, log_lines, log_to_file, start_logging, table_lines, track

everywhere = logging.getLogger(EVERY_RANK)
log = logging.getLogger("somewhere")


def test_the_file_has_every_line_in_plain_text(tmp_path, capsys):
    start_logging(is_main=True)
    log.info("before the file is known")
    log_to_file(tmp_path / "log.txt")
    log.warning("careful")
    log.debug("not shown")
    log_lines(["one", "two"])
    text = (tmp_path / "log.txt").read_text()
    stamp = r"\[\d\d-\d\d \d\d:\d\d:\d\d\] "
    lines = ["before the file is known", "careful", "one", "two"]
    assert re.fullmatch("".join(f"{stamp}{line}\n" for line in lines), text)
    out = capsys.readouterr().out
    assert all(out.count(line) == 1 for line in lines) and "not shown" not in out


def test_a_file_is_appended_to(tmp_path):
    (tmp_path / "log.txt").write_text("of the first start\n")
    start_logging(is_main=True)
    log_to_file(tmp_path / "log.txt")
    log.info("of the second")
    assert (tmp_path / "log.txt").read_text().splitlines()[0] == "of the first start"
    assert "of the second" in (tmp_path / "log.txt").read_text()


def test_colours_are_for_the_terminal_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.terminal.colored", partial(colored, force_color=True))
    start_logging(is_main=True)
    log_to_file(tmp_path / "log.txt")
    log.warning("careful")
    assert "\x1b[" in capsys.readouterr().out and "\x1b" not in (tmp_path / "log.txt").read_text()


def test_other_ranks_show_warnings_of_one_logger_only(capsys):
    start_logging(is_main=False)
    log.error("of another rank")
    everywhere.info("skipped nothing")
    everywhere.warning("skipped an image")
    out = capsys.readouterr().out
    assert "skipped an image" in out and "nothing" not in out and "of another rank" not in out


def test_the_main_rank_shows_that_logger_once(capsys):
    start_logging(is_main=True)
    everywhere.warning("skipped an image")
    assert capsys.readouterr().out.count("skipped an image") == 1


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    start_logging(is_main=True)
    with pytest.raises(OSError, match="No such file"):
        log_to_file(tmp_path / "gone/log.txt")


def test_durations_are_short():
    assert [duration(s) for s in (0.9, 65, 86399, 86400, 200_000)] == [
        "0:00:00",
        "0:01:05",
        "23:59:59",
        "1d 0h",
        "2d 7h",
    ]


def test_a_table_is_aligned():
    rows = [["cat", 99.5, 1], ["elephant", 7.0, 12]]
    assert table_lines(["name", "top1", "n"], rows) == [
        "name       top1   n",
        "cat       99.50   1",
        "elephant   7.00  12",
    ]
    assert table_lines(["name"], []) == ["name"]


def test_cells_are_folded_to_the_width_of_the_terminal():
    rows = [["datasets/digits/val/8/[0028].png", "tabby, tabby cat", 0.86], ["a.png", "8", 0.5]]
    head = ["image", "class 1", "probability 1"]
    assert max(map(len, table_lines(head, rows))) > 60  # no terminal here
    narrow = table_lines(head, rows, width=40)
    assert max(map(len, narrow)) <= 40 and "0.86" in narrow[1]
    many = table_lines(["image", *["class", "prob."] * 20], [["a.png", *["tabby cat", 0.25] * 20]], width=80)
    assert len(many) == 2 and many[1].count("tabby cat") == many[1].count("0.25") == 20  # too many to be folded
    tight = table_lines([*["name"] * 4, *["probability_1"] * 3], [[*["tabby cat"] * 4, *[0.25] * 3]], width=80)
    assert len(tight) == 3 and max(map(len, tight)) <= 80  # the columns are narrower than usual
    assert table_lines(["a"], [["x\ty\u2028z"]]) == ["a", "x y\u2028z"]
    pieces = [re.split("  +", line)[0] for line in narrow[1:-1]]
    assert "".join(pieces) == rows[0][0] and all(each.endswith(("/", ".", "png")) for each in pieces), narrow
    keys = table_lines(["key", "a"], [["TRAIN.LR_SCHEDULER.WARMUP_PREFIX", "x" * 30]], width=40)
    assert [line.split()[0] for line in keys[1:3]] == ["TRAIN.LR_SCHEDULER.", "WARMUP_PREFIX"], keys


def test_without_a_terminal_progress_is_a_line_now_and_then(caplog, monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: float(next(now)))
    with caplog.at_level(logging.INFO):
        assert list(track("abcdef", "evaluating", 6, "batches")) == list("abcdef")
    assert caplog.messages == [
        "evaluating: 3 of 6 batches, 0:00:30 left",
        "evaluating: 6 of 6 batches, 0:00:00 left",
    ]


SHOW = """
import logging, sys
from utils.terminal import IN_BAR, SUMMARY, Bar, start_logging, track
start_logging(True)
log = logging.getLogger("x")
log.info("before")
with Bar("epoch 3", 1251, "", 100) as bar:
    for step in range(3):
        bar.advance(1, f"loss 6.90{step}1, 312 img/s, run 12:01:22, epoch")
        bar._progress.refresh()
        log.info("[0/300][10/1251] for the file", extra=IN_BAR)
    log.warning("a warning above the bar")
    log.info("x" * 150)
for _ in track(range(3), "evaluating", 3, "batches"):
    pass
log.info("epoch 3: Acc@1 81.3", extra=SUMMARY)
"""


def on_terminal(columns, **variables):
    """Returns what a terminal of that width gets to see."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # where these variables are set, they take precedence
    variables = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24", **variables}
    child = subprocess.Popen([sys.executable, "-c", SHOW], stdout=theirs, stderr=theirs, env=environment(**variables))
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    assert child.wait() == 0, seen
    os.close(ours)
    return seen.decode()


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_stays_on_its_line_below_the_log(columns):
    seen = on_terminal(columns)
    assert "\x1b[36m" in seen  # a summary is coloured
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    lines = re.split(r"[\r\n]+", plain)
    bars = [line for line in lines if line.startswith("epoch 3")]
    assert bars and all(len(line) <= columns for line in bars)
    assert any(re.search(r"━ +103/1251 +loss 6.9021, 312 img/s, run 12:01:22, epoch", line) for line in bars)
    assert any(line.endswith("] a warning above the bar") for line in lines)
    stamp = r"\[\d\d:\d\d:\d\d\]" if columns == 80 else r"\[\d\d-\d\d \d\d:\d\d:\d\d\]"
    assert any(re.fullmatch(f"{stamp} epoch 3: Acc@1 81.3", line) for line in lines), lines
    assert "x" * 150 in plain and "for the file" not in plain


def test_no_color_is_honoured():
    seen = on_terminal(80, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*[39]\d(;|m)", seen) and "epoch 3: Acc@1 81.3" in seen


def test_names_do_not_control_the_terminal_or_the_log(tmp_path, capsys):
    start_logging(is_main=True)
    log_to_file(tmp_path / "log.txt")
    log.info("class %s", "\x1b]0;title\x07cat\u202e")
    expected = r"class \x1b]0;title\x07cat\u202e"
    assert expected in (tmp_path / "log.txt").read_text() and expected in capsys.readouterr().out
    assert table_lines(["name"], [["\x1b[2Jdog"]])[1] == r"\x1b[2Jdog"
