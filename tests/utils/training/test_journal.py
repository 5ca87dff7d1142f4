"""metrics.jsonl and TensorBoard."""

import json

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
