"""Where log lines go: coloured to the terminal, plain to the file, from the main rank."""

import logging
import re
from functools import partial

import pytest
from termcolor import colored

from utils.terminal import EVERY_RANK, log_lines, log_to_file, start_logging

everywhere = logging.getLogger(EVERY_RANK)
log = logging.getLogger("somewhere")


@pytest.fixture(autouse=True)
def handlers():
    """pytest's own handlers are back afterwards."""
    loggers = [logging.getLogger(), everywhere]
    before = [(logger, logger.handlers, logger.level) for logger in loggers]
    yield
    for logger, own, level in before:
        for handler in logger.handlers:
            if handler not in own:
                handler.close()
        logger.handlers = own
        logger.setLevel(level)


def test_the_file_has_every_line_in_plain_text(tmp_path, capsys):
    start_logging(is_main=True)
    log.info("before the file is known")
    log_to_file(tmp_path / "log.txt")
    log.warning("careful")
    log.debug("not shown")
    log_lines(["one", "two"])
    text = (tmp_path / "log.txt").read_text()
    stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
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
