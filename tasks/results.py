"""--eval: evaluation of weights files, and tables of the results."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from yacs.config import CfgNode

from models.registry import forms_of
from tasks.base import Task, TaskData
from tasks.registry import new_task
from utils.checkpoints.broadcast import read_once
from utils.checkpoints.downloads import best_in, read_weights
from utils.cost import count_parameters
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.files import writing
from utils.preprocessing import Size
from utils.terminal import log_lines
from utils.training.evaluate import evaluate
from utils.training.objective import Evaluation, Table


@dataclass(frozen=True)
class Result:
    """The evaluation of one file; `size` in pixels."""

    name: str
    evaluation: Evaluation
    images_per_s: float
    parameters: int
    size: Size

    def lines(self) -> list[str]:
        """Returns log lines."""
        return [f"{self.evaluation.line}, {self.images_per_s:.1f} images/s", *self.evaluation.notes]


def evaluate_files(cfg: CfgNode, world: World) -> None:
    """Evaluates the files of --resume or --pretrained in turn.

    Tables are written after each file, so an error in a later file does not lose earlier results.
    Raises: CheckpointError, ConfigError, DataError, ResourceError.
    """
    results: list[Result] = []
    for name in _names(cfg):
        contents = read_once(world, lambda name=name: read_weights(name, sha256=cfg.MODEL.SHA256))  # type: ignore[misc]
        task = new_task(cfg, world, contents)
        data = task.open_data(("val",))
        model = task.build_model(data.info)
        log_lines([f"weights: {task.load(model, contents, name)}", task.describe()])
        task.precision = task.precision.chosen(forms_of(cfg, model, task.precision, world))
        results.append(_evaluate(task, data, model, name, task.input_size))
        log_lines(results[-1].lines())
        if world.is_main:
            write_tables(results, cfg.TEST.RESULTS, cfg.TEST.PER_CLASS)
            if cfg.TEST.PROBABILITIES:
                write_arrays(Path(cfg.TEST.PROBABILITIES), results[-1].evaluation.arrays())


def _names(cfg: CfgNode) -> list[str]:
    named = (cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED).split(",")
    files = [name.strip() for name in named if name.strip()]
    return [best_in(name) for name in files]


def _evaluate(task: Task, data: TaskData, model: nn.Module, name: str, size: Size) -> Result:
    assert data.val is not None
    val = task.loader(data.val, data.info)
    begun = time.perf_counter()
    evaluation = evaluate(model, val, task.evaluator(val, data.info), task.forward, task.world)
    seconds = time.perf_counter() - begun
    return Result(name, evaluation, evaluation.samples / seconds, count_parameters(model), size)


def write_tables(results: Sequence[Result], results_file: str, per_class_file: str) -> None:
    """Writes CSV files: a row per evaluated file, and the per-class metrics of the last one; "" skips a file.

    Raises: ConfigError if the task has no classes; ResourceError if a file cannot be written.
    """
    if results_file:
        own = [_results_table(result) for result in results]
        _write_csv(Path(results_file), Table(own[0].head, [row for table in own for row in table.rows]), "TEST.RESULTS")
    if per_class_file:
        table = results[-1].evaluation.tables.get("per_class")
        if table is None:
            raise ConfigError("TEST.PER_CLASS", "the task has no metrics per class", "set it to ''")
        _write_csv(Path(per_class_file), table, "TEST.PER_CLASS")


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes what an evaluation predicted for every sample to a .npz or .parquet file.

    Raises: ConfigError without probabilities, or without pyarrow; ResourceError.
    """
    key = "TEST.PROBABILITIES"
    if not arrays:
        raise ConfigError(key, "this evaluation keeps no probabilities", "set it to '', and TEST.CLASSES too")
    if path.suffix == ".npz":
        with writing(path, key) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        return
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as e:
        raise ConfigError(key, f"{path} requires pyarrow", "pip install pyarrow, or write .npz") from e
    columns = {name: list(arrays[name]) for name in ("path", "label", "probabilities")}
    table = arrow.table(columns).replace_schema_metadata({"class_names": json.dumps(arrays["class_names"])})
    with writing(path, key) as temporary:
        parquet.write_table(table, temporary)


def _results_table(result: Result) -> Table:
    evaluation, (height, width) = result.evaluation, result.size
    metrics = Table(list(evaluation.metrics), [[f"{value:.5g}" for value in evaluation.metrics.values()]])
    own = evaluation.tables.get("results", metrics)
    size = height if height == width else f"{height}x{width}"
    more = (evaluation.samples, f"{result.images_per_s:.1f}", result.parameters, size)
    head = ("name", *own.head, "samples", "images_per_s", "parameters", "size")
    return Table(head, [(result.name, *row, *more) for row in own.rows])


def _write_csv(path: Path, table: Table, option: str) -> None:
    text = io.StringIO(newline="")
    rows: list[Sequence[Any]] = [table.head, *table.rows]
    csv.writer(text, lineterminator="\n").writerows(rows)
    with writing(path, option) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
