"""metrics.jsonl and TensorBoard."""

import errno
import json
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from tests.tools.errors import raises
from utils.errors import ResourceError
from utils.logs import metrics_file as module
from utils.logs.metrics_file import MetricsFile, read_records, refuse_reserved


def test_lines_beyond_the_checkpoint_are_removed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2}\n{"update": 3}\n{"upd')
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n{"update": 2}\n'


def test_an_epoch_is_recorded_once_if_its_evaluation_is_repeated(tmp_path):
    """The newest checkpoint is one of the last update, from before the evaluation."""
    lines = ['{"kind": "val", "update": 1}\n', '{"kind": "train", "update": 2}\n', '{"kind": "val", "update": 2}\n']
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)
    MetricsFile(tmp_path, 2, evaluated=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])


def test_records_and_scalars_at_their_update(tmp_path):
    journal = MetricsFile(tmp_path, 0)
    journal.write({"update": 5, "loss": 0.5}, {"train/loss": 0.5})
    journal.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"update": 5, "loss": 0.5}
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert (event.step, event.value) == (5, 0.5)


def test_other_ranks_write_nothing(tmp_path):
    journal = MetricsFile(None, 0)
    journal.write({"update": 5}, {"x": 1.0})
    journal.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["", "null", "[1]", '{"loss": 1}', "text"])
def test_lines_without_an_update_are_removed(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": 1}}\n{line}\n')
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n'


def test_fault_55_tensorboard_shows_no_update_twice(tmp_path, monkeypatch):
    # files of one second are read in the order of this number, as text
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    first = MetricsFile(tmp_path, 0)
    for update in (1, 2, 3):
        first.write({"update": update}, {"loss": float(update)})
    first.close()
    resumed = MetricsFile(tmp_path, 1)  # from a checkpoint at update 1
    for update in (2, 3):
        resumed.write({"update": update}, {"loss": 10.0 * update})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_values_that_json_cannot_represent_are_an_error(tmp_path):
    journal = MetricsFile(tmp_path, 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write({"update": 1, "loss": float("nan")}, {})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.fixture
def failing(monkeypatch):
    """Makes the next appends fail, after half a line was written."""
    monkeypatch.setattr(module, "PAUSE", 0.001)
    original, left = open, [0]

    class Half:
        def __init__(self, path):
            self.file = original(path, "a")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[: len(text) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode="r", **more):
        if mode == "a" and left[0] > 0:
            left[0] -= 1
            return Half(path)
        return original(path, mode, **more)

    monkeypatch.setattr("builtins.open", opened)

    def fail(times):
        left[0] = times

    return fail


def test_a_line_that_could_not_be_written_is_tried_again_and_written_once(tmp_path, failing):
    journal = MetricsFile(tmp_path, 0)
    journal.write({"update": 1}, {})
    failing(2)
    journal.write({"update": 2, "loss": 0.5}, {})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n{"update": 2, "loss": 0.5}\n'


def test_fault_15_metrics_that_can_never_be_written_end_the_run(tmp_path, failing):
    journal = MetricsFile(tmp_path, 0)
    journal.write({"update": 1}, {})
    failing(99)
    with raises(ResourceError, tmp_path / "metrics.jsonl", "No space left on device", "OUTPUT"):
        journal.write({"update": 2}, {})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n'  # not half a line


def test_fault_55_a_folder_of_tensorboard_that_is_not_writable_is_a_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file, not a folder")
    journal = MetricsFile(tmp_path, 0)
    journal.write({"update": 1}, {"train/loss": 0.5})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n'
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("TensorBoard cannot be started (") and "training continues" in message


def test_fault_55_an_event_file_that_fails_later_is_given_up_with_one_warning(tmp_path, caplog, monkeypatch):
    journal = MetricsFile(tmp_path, 0)
    journal.write({"update": 1}, {"train/loss": 0.5})

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", refuse)
    for update in (2, 3):
        journal.write({"update": update}, {"train/loss": 0.5})
    journal.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard failed and is disabled ([Errno 28] No space left on device); training continues"
    ]


def test_fault_55_an_event_file_that_fails_when_it_is_closed_is_a_warning(tmp_path, caplog, monkeypatch):
    journal = MetricsFile(tmp_path, 0)

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", refuse)
    journal.close()
    assert "disabled ([Errno 5] Input/output error)" in caplog.text


def test_names_of_fields_are_refused_for_parts_and_metrics():
    refuse_reserved(["loss", "distance", "top1"])
    with pytest.raises(ValueError, match=r"lr, update: .*metrics\.jsonl"):
        refuse_reserved(["update", "loss", "lr"])


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "train", "epoch": 0, "update": 3, "loss": \xff1}',
        b'{"kind": "train\xff", "epoch": 0, "update": 3}',
        b'{"kind": "train", "epoch": "0", "update": 3}',
        b'{"kind": "train", "epoch": 0, "update": 3, "loss": [1]}',
        b"[" * 3000,
        b"5",
        b"",
    ],
)
def test_corrupt_lines_are_dropped(tmp_path, line):
    whole = [{"kind": "train", "epoch": 0, "update": n, "loss": 0.5} for n in (1, 2)]
    lines = [json.dumps(record).encode() for record in whole]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], line, lines[1], b""]))
    assert read_records(tmp_path / "metrics.jsonl") == whole
    MetricsFile(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(each + b"\n" for each in lines)
