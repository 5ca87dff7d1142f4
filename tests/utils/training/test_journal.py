"""metrics.jsonl and TensorBoard."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.training.journal import Journal


def test_lines_beyond_the_checkpoint_are_removed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2}\n{"update": 3}\n{"upd')
    Journal(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n{"update": 2}\n'


def test_records_and_scalars_at_their_update(tmp_path):
    journal = Journal(tmp_path, 0)
    journal.write({"update": 5, "loss": 0.5}, {"train/loss": 0.5})
    journal.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"update": 5, "loss": 0.5}
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert (event.step, event.value) == (5, 0.5)


def test_other_ranks_write_nothing(tmp_path):
    journal = Journal(None, 0)
    journal.write({"update": 5}, {"x": 1.0})
    journal.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["", "null", "[1]", '{"loss": 1}', "text"])
def test_lines_without_an_update_are_removed(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": 1}}\n{line}\n')
    Journal(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n'


def test_fault_55_tensorboard_shows_no_update_twice(tmp_path):
    first = Journal(tmp_path, 0)
    for update in (1, 2, 3):
        first.write({"update": update}, {"loss": float(update)})
    first.close()
    resumed = Journal(tmp_path, 1)  # from a checkpoint at update 1
    for update in (2, 3):
        resumed.write({"update": update}, {"loss": 10.0 * update})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_values_that_json_cannot_represent_are_an_error(tmp_path):
    journal = Journal(tmp_path, 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write({"update": 1, "loss": float("nan")}, {})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
