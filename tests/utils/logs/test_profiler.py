"""The profile of a run."""

import json
import logging

import torch

from tests.tools.builders import CPU
from utils.logs import profiler
from utils.logs.profiler import Profiler


def test_a_few_updates_are_recorded_once(tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    caplog.set_level(logging.INFO)
    tracer = Profiler(tmp_path, CPU)
    for _ in range(profiler.SKIPPED + profiler.WARM_UP + profiler.RECORDED + 4):
        torch.ones(8, 8) @ torch.ones(8, 8)
        tracer.step()
    tracer.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == profiler.RECORDED
    assert "3 updates in" in caplog.text and "ProfilerStep" not in caplog.text
    _, head, *rows = caplog.messages
    assert head.startswith("operation") and any(row.startswith("aten::mm") for row in rows)
    shares = [float(row.split()[-1].rstrip("%")) for row in rows]
    rounding = 0.06 * len(shares)  # each share is rounded to a tenth
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 100 + rounding
    assert not any(line != line.rstrip() for line in caplog.messages)
    assert "USDT" not in (err := capfd.readouterr().err) and "ERROR" not in err


def test_a_run_that_ends_meanwhile_says_how_many_updates_it_recorded(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tracer = Profiler(tmp_path, CPU)
    for _ in range(profiler.SKIPPED + profiler.WARM_UP + 1):
        torch.ones(8, 8) @ torch.ones(8, 8)
        tracer.step()
    tracer.close()
    assert "1 update in" in caplog.text


def test_a_run_that_ends_before_records_nothing(tmp_path):
    tracer = Profiler(tmp_path, CPU)
    tracer.step()
    tracer.close()
    tracer.step()
    assert not (tmp_path / "trace.json").exists()
