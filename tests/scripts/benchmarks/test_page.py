"""docs/benchmarks.md, from results."""

import json

from scripts.benchmarks.page import benchmarks_page


def _row(name, median, ratio=1.0):
    speeds = {"median": median, "slowest": median - 1, "fastest": median + 1, "rounds": 7}
    return {"name": name, **speeds, "ratio": ratio, "lowest_ratio": ratio - 0.1, "highest_ratio": ratio + 0.1}


def _result(gpu=None, **fields):
    machine = {"processor": "Some CPU", "cores": 2, "gpu": gpu, "date": "2026-01-02"}
    return machine | {"versions": {"python": "3.11", "torch": "2.11.0", "timm": "1.0.31"}} | fields


def test_each_machine_has_a_section_with_the_fastest_modes(tmp_path):
    steps = [_row("this program", 5.0, 0.5), _row("this program, compiled", 1234.0, 1.3), _row("timm", 10.0)]
    memory = {"this program": 80.0, "this program, compiled": 90.0, "timm": 200.0, "transformers": 100.0}
    rows = {"swin_tiny, training step, bf16": steps, "swin_tiny, peak memory of a training step, bf16, MiB": memory}
    slow = [_row("this program", 7.04), _row("timm", 5), _row("matrix products alone", 9, 1.5)]
    results = {
        "gpu": _result("NVIDIA X", batch_size=128, rows=rows),
        "cpu": _result(batch_size=16, tuned_peers=True, rows={"swin_tiny, evaluation, fp32": slow}),
        "cpu_data": _result(rows=[_row("this program", 50.0, 2.0), _row("torchvision", 25.0)]),
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "known_gaps.md").write_text("## Known gaps\n")
    (tmp_path / "method.md").write_text("## Method\n")
    page = benchmarks_page(tmp_path)
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == [
        "# Benchmarks",
        "## Some CPU, 2 CPU cores",
        "### Models",
        "### Training input",
        "## NVIDIA X, 2 CPU cores",
        "### Models",
        "### Peak memory of a training step",
        "## Known gaps",
        "## Method",
    ]
    assert page.count("2026-01-02: torch 2.11.0, timm 1.0.31") == 2
    assert "| swin_tiny | training step | bf16 | 128 | 7 | 1,234 | timm | 10.0 | 1.30 | 1.20 | 1.40 |  |" in page
    assert "| swin_tiny | evaluation | fp32 | 16 | 7 | 7.0 | timm, tuned | 5.0 | 1.00 | 0.90 | 1.10 | 1.50 |" in page
    assert "| swin_tiny | bf16 | 128 | 90 | transformers | 100 | 0.90 |" in page
    assert "| 7 | 50.0 | torchvision | 25.0 | 2.00 | 1.90 | 2.10 |" in page
