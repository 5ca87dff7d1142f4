"""docs/benchmarks.md, from the results that `scripts/benchmark.py --json` wrote to docs/benchmarks/."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.benchmarks.interleave import PRODUCTS
from scripts.benchmarks.subject import OURS

HEAD = """# Benchmarks

A ratio is this program's speed relative to the fastest of the other libraries (timm, torchvision, transformers) in the
same round, on the same machine, with the same weights, batch size and threads: above 1, this program is faster. Figures
are medians over n rounds; lowest and highest are the extreme rounds. "Products alone" is the ratio that the matrix
products of the step reach alone, each by MKL or oneDNN, whichever is faster: a limit for any arrangement of them.
"tuned": the other library has this program's process settings. This page is generated from `docs/benchmarks/*.json`,
which also contain the speeds of all contenders, by `python -m scripts.doc_tables`.
"""
HEADS = {
    "Models": (
        "model | step | type | batch | n | images/s | fastest other | images/s | ratio | lowest | highest"
        " | products alone"
    ),
    "Peak memory of a training step": "model | type | batch | MiB | lowest other | MiB | ratio",
    "Training input": "n | images/s | fastest other | images/s | ratio | lowest | highest",
}


def benchmarks_page(folder: Path) -> str:
    """Returns the page. Args: folder: contains the results, and its last sections, `known_gaps.md` and `method.md`."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    machines = dict.fromkeys(_machine(result) for result in results)
    sections = [_section(name, [r for r in results if _machine(r) == name]) for name in machines]
    texts = [(folder / name).read_text() for name in ("known_gaps.md", "method.md")]
    return "\n".join([HEAD, *sections, *texts])


def _machine(result: dict[str, Any]) -> str:
    return f"{result['gpu'] or result['processor']}, {result['cores']} CPU cores"


def _section(machine: str, results: list[dict[str, Any]]) -> str:
    speeds, memory, data = [], [], []
    for result in results:
        if isinstance(result["rows"], list):
            data.append(_speed(result["rows"]))
            continue
        for key, rows in result["rows"].items():
            model, step, dtype = key.split(", ")[:3]
            if isinstance(rows, list):
                tuned = ", tuned" if result.get("tuned_peers") else ""
                speeds.append([model, step, dtype, result["batch_size"], *_speed(rows, tuned), _limit(rows)])
            else:
                memory.append([model, dtype, result["batch_size"], *_least(rows)])
    dates = sorted({f"{r['date']}: {_versions(r['versions'])}" for r in results})
    tables = zip(HEADS.items(), (speeds, memory, data), strict=True)
    parts = [f"### {title}\n\n{_table(head, rows)}\n" for (title, head), rows in tables if rows]
    return "\n".join([f"## {machine}\n", *(f"{line}\n" for line in dates), *parts])


def _versions(versions: dict[str, str]) -> str:
    names = ("torch", "torchvision", "timm", "transformers")
    return ", ".join(f"{name} {versions[name]}" for name in names if name in versions)


def _speed(rows: list[dict[str, Any]], tuned: str = "") -> list[str]:
    """Returns the cells for this program's fastest mode, from n to the highest ratio. Args: tuned: a note on peers."""
    ours = max((row for row in rows if _is_ours(row["name"])), key=lambda row: row["median"])
    peers = (row for row in rows if not _is_ours(row["name"]) and row["name"] != PRODUCTS)
    peer = max(peers, key=lambda row: row["median"])
    ratios = (f"{ours[key]:.2f}" for key in ("ratio", "lowest_ratio", "highest_ratio"))
    return [ours["rounds"], _images(ours["median"]), peer["name"] + tuned, _images(peer["median"]), *ratios]


def _limit(rows: list[dict[str, Any]]) -> str:
    return next((f"{row['ratio']:.2f}" for row in rows if row["name"] == PRODUCTS), "")


def _least(memory: dict[str, float]) -> list[str]:
    """Returns the cells for this program's last, and fastest, mode."""
    ours = [value for name, value in memory.items() if _is_ours(name)][-1]
    peer = min((name for name in memory if not _is_ours(name)), key=lambda name: memory[name])
    return [f"{ours:,.0f}", peer, f"{memory[peer]:,.0f}", f"{ours / memory[peer]:.2f}"]


def _is_ours(name: str) -> bool:
    return name.startswith(OURS)


def _images(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    lines = [f"| {head} |", "|---" * len(head.split("|")) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
