"""Reports of updates without a finite gradient."""

import errno
import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from utils.distributed.world import World
from utils.runs import skipped_updates
from utils.runs.skipped_updates import write_incident

OWN = {"losses": {"loss": None, "part": 0.5}, "samples": ["photo_3", "photo_4"]}


def write(folder, update=7, world=None):
    write_incident(folder / f"update_{update}.json", world or World(), {"update": update, "epoch": 1}, OWN)


@dataclass(frozen=True)
class Two(World):
    """A rank that gathers another one's value after its own."""

    size: int = 2
    theirs: list[Any] = field(default_factory=list)

    def gather_objects(self, value):
        return [value, *self.theirs]


def test_a_report_holds_details_losses_and_the_names_of_samples_of_all_ranks(tmp_path):
    theirs = {"losses": {"loss": 1.0}, "samples": ["photo_9"]}
    write(tmp_path / "incidents", world=Two(theirs=[theirs]))
    (file,) = (tmp_path / "incidents").iterdir()
    assert file.name == "update_7.json"
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {
        "update": 7,
        "epoch": 1,
        "ranks": [OWN, theirs],
    }


def test_other_ranks_send_and_write_nothing(tmp_path):
    write(tmp_path / "incidents", world=Two(rank=1))
    assert not (tmp_path / "incidents").exists()


def test_the_number_of_reports_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(skipped_updates, "MOST", 3)
    for update in range(5):
        write(tmp_path, update)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"update_{i}.json" for i in range(3)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write(tmp_path)
    assert (
        "cannot write a report (" in caplog.text
        and "update_7.json" in caplog.text
        and os.strerror(number) in caplog.text
    )
    assert not list(tmp_path.iterdir())
