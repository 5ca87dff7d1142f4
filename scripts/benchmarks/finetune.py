"""Compares the fine-tuning recipe on small datasets with training from scratch, a linear probe, and timm's defaults."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "finetune.yaml"
STRENGTHS = 9  # of the probe's regularisation, chosen by cross-validation
Arguments = list[str | Path]


@dataclass(frozen=True)
class Experiment:
    """`cfg`: the recipe; `weights`: where fine-tuning starts; `data`: folder with train/ and val/; `output`: a folder
    for runs."""

    cfg: Path
    weights: Path
    data: Path
    seed: int
    output: Path

    def finetune(self) -> float:
        return self._train("--pretrained", self.weights)

    def scratch(self) -> float:
        """Trains all weights at the rate of the head."""
        return self._train("--opts", "MODEL.PRETRAINED", "", "TRAIN.BACKBONE_LR", "1.0")

    def probe(self) -> float:
        """Fits a logistic regression to the features of the pre-trained model."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        folds = StratifiedKFold(3, shuffle=True, random_state=self.seed)
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        search = GridSearchCV(regression, {"logisticregression__C": np.logspace(-5, 3, STRENGTHS)}, cv=folds)
        classifier = search.fit(*self._features("train"))
        return 100 * float(classifier.score(*self._features("val")))

    def timm(self) -> float:
        """Fine-tunes by the defaults of timm's train.py."""
        result = self.output / "timm.json"
        arguments: Arguments = [
            "--weights",
            self.weights,
            "--data",
            self.data,
            "--seed",
            str(self.seed),
            "--json",
            result,
        ]
        _call("-m", "scripts.benchmarks.timm_defaults", *arguments)
        return json.loads(result.read_text())["top1"]

    def _train(self, *options: str | Path) -> float:
        """Trains by the recipe; returns the best top-1 on the validation split, %."""
        run: Arguments = [
            "--cfg",
            self.cfg,
            "--data-path",
            self.data,
            "--output",
            self.output,
            "--seed",
            str(self.seed),
        ]
        _call("main.py", *run, "--tag", "run", *options)
        (metrics,) = self.output.rglob("metrics.jsonl")
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        return max(record["top1"] for record in records if record["kind"] == "val")

    def _features(self, split: str) -> tuple[np.ndarray, list[str]]:
        file = self.output / f"{split}.npz"
        source: Arguments = ["--model", self.weights, "--features", "pooled", "--output", file]
        _call("scripts/predict.py", self.data / split, *source)
        found = np.load(file)
        return found["features"], [Path(path).parent.name for path in found["paths"]]


CONTENDERS: dict[str, Callable[[Experiment], float]] = {
    "finetune": Experiment.finetune,
    "from scratch": Experiment.scratch,
    "linear probe": Experiment.probe,
    "timm's defaults": Experiment.timm,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, nargs="+", metavar="FOLDER", help="a dataset with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="pre-trained weights")
    parser.add_argument("--cfg", type=Path, default=RECIPE, metavar="FILE", help="a recipe for these weights")
    parser.add_argument(
        "--seeds", type=int, default=3, dest="rounds", metavar="N", help="number of seeds, from 0 (default: 3)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time, with one thread each (default: 1)"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the top-1 validation accuracy in % by dataset, contender and seed, with a summary table."""
    plan = [
        (data, name, seed) for seed in range(options.rounds) for data in options.data for name in options.contenders
    ]

    def measured(data: Path, name: str, seed: int) -> float:
        with tempfile.TemporaryDirectory() as output:
            top1 = CONTENDERS[name](Experiment(options.cfg, options.weights, data, seed, Path(output)))
        print(f"{data.name} {name} seed {seed}: {top1:.2f}", flush=True)
        return top1

    rows: dict[str, dict[str, list[float]]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for (data, name, _), top1 in zip(plan, pool.map(lambda each: measured(*each), plan), strict=True):
            rows.setdefault(data.name, {}).setdefault(name, []).append(top1)
    setting = f"top-1 on the validation split, %: mean of {options.rounds} seeds (lowest to highest)"
    return {"setting": setting, "tables": {"Fine-tuning": table(rows)}, "rows": rows}


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Formats the rows as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for data, found in rows.items():
        cells = (f"{statistics.mean(own):.1f} ({min(own):.1f} to {max(own):.1f})" for own in found.values())
        lines.append(f"| {data} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _call(*arguments: str | Path) -> None:
    """Runs Python in the program's folder on one thread. Raises: ResourceError with the end of its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ResourceError(str(arguments[0]), f"failed: {' '.join(tail)}", "run it alone to see why")
