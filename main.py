"""Train, fine-tune and evaluate Swin Transformers: torchrun main.py --cfg configs/swin_tiny.yaml --data-path FOLDER"""

import sys
from functools import partial

from configs.options import check_command_line, parse_command_line
from utils.distributed.signals import Interrupt
from utils.openmp import wait_briefly

interrupt = Interrupt()
if __name__ == "__main__":  # before the slow imports
    interrupt.install()
    wait_briefly()
    check_command_line(sys.argv[1:])

from yacs.config import CfgNode

from configs.loading import config_differences, config_of_weights, dump_config, load_config, shared_config
from data.loaders import PipelineOptions, build_eval_loader, build_train_loader
from data.sources.open import SourceOptions, chosen_classes, open_sources, open_val
from models.registry import fresh_model, model_options, new_model, preprocessing_of
from models.teacher import open_teacher
from models.weights.class_maps import known_classes, real_labels
from models.weights.load import load_contents
from utils.checkpoints.broadcast import read_once
from utils.checkpoints.downloads import local_file, read_weights
from utils.checkpoints.released import released_url
from utils.cost import explain_memory
from utils.distributed.world import World, join_world, launched_rank
from utils.evaluation.reports import Evaluated, ReportOptions, assess, report
from utils.precision import Precision
from utils.preprocessing import Preprocessing
from utils.runs.dry_run import dry_run
from utils.runs.folder import RunFolder
from utils.runs.provenance import Provenance, versions
from utils.runs.resume import StartOptions, find_start
from utils.runs.session import Session, SessionOptions
from utils.runs.throughput import log_throughput
from utils.terminal import log_lines, start_logging
from utils.training.loop import train_epoch
from utils.training.plan import RunPlan
from utils.training.state import StateOptions, TrainState
from utils.training.tasks import new_objective


def train(cfg: CfgNode, world: World) -> None:
    """Trains from the newest checkpoint, or from the start, to the last epoch."""
    options = model_options(cfg)
    pipeline = PipelineOptions.from_config(cfg, options.in_chans, preprocessing_of(options))
    sources = open_sources(SourceOptions.from_config(cfg), world)
    plan = RunPlan.from_config(cfg, world.size, len(sources.train))
    folder = RunFolder.from_config(cfg, world)
    folder.acquire(dump_config(cfg), partial(config_differences, cfg))
    provenance = Provenance(dump_config(cfg), plan.shape.global_batch, pipeline.preprocessing, *sources.identity())
    batches = build_train_loader(sources.train, plan.shape, world, pipeline)
    model = new_model(cfg, options, len(sources.class_names), world.device)
    fetch = partial(local_file, released_url=released_url, sha256=cfg.MODEL.SHA256)
    load = partial(load_contents, tables=cfg.MODEL.TABLE_INTERPOLATION)
    start = find_start(StartOptions.from_config(cfg), folder, provenance, world, load=load, fetch=fetch)
    start.load_weights(model)
    precision = Precision.from_config(cfg, world.device)
    state = TrainState.build(model, StateOptions.from_config(cfg), precision, world)
    log_lines([*state.describe(), *plan.describe(), str(pipeline)])
    start.restore(state, plan)
    val = None if sources.val is None else build_eval_loader(sources.val, world, pipeline, interrupt.interruptible)
    gallery = val or build_eval_loader(sources.train, world, pipeline)
    teacher = partial(open_teacher, cfg, config_of_weights, pipeline.preprocessing, world)
    objective = new_objective(cfg, val, gallery, precision, world, teacher)
    saving = SessionOptions.from_config(cfg, objective.best)
    if cfg.DRY_RUN:
        return dry_run(state, batches, objective, plan, folder, saving.keep, world)
    with Session(state, plan, folder, world, saving, provenance, interrupt, sources.train.name) as run:
        while state.epoch < plan.epochs:
            train_epoch(state, run.watch(batches.epoch(state.epoch, state.step)), objective, plan, run.after_update)
            run.end_epoch(objective)


def evaluate(cfg: CfgNode, world: World) -> None:
    """Evaluates the files that were named, and writes only the tables that were asked for."""
    options, reports = model_options(cfg), ReportOptions.from_config(cfg)
    precision, rows = Precision.from_config(cfg, world.device), []
    for name in reports.files:
        contents = read_once(world, partial(read_weights, name, released_url=released_url, sha256=cfg.MODEL.SHA256))
        own = Preprocessing.stored(contents) or preprocessing_of(options)
        pipeline = PipelineOptions.from_config(cfg, options.in_chans, own)
        val = open_val(SourceOptions.from_config(cfg), world, *known_classes(contents))
        model = new_model(cfg, options, len(val.class_names), world.device)
        loaded = load_contents(model, contents, name, tables=cfg.MODEL.TABLE_INTERPOLATION)
        log_lines([f"weights: {loaded}", str(pipeline)])
        batches = build_eval_loader(val, world, pipeline)
        if cfg.TASK != "classification":
            evaluation = new_objective(cfg, batches, batches, precision, world).evaluate(model)
            log_lines([evaluation.line] if evaluation else [])
            continue
        samples = Evaluated(val.class_names, val.name, pipeline.val.size)
        real = real_labels(val.class_names) if reports.real else None
        allowed = chosen_classes(reports.classes, val)
        rows.append((name, assess(model, batches, samples, allowed=allowed, precision=precision, world=world)))
        report(rows, samples, reports, real, world)


def main(argv: list[str]) -> int:
    """Returns the exit code (utils/errors.py)."""
    world, code = World(rank=launched_rank()), 0
    start_logging(world.is_main)
    try:
        cfg = load_config(*parse_command_line(argv))
        world = interrupt.join(join_world(cfg.TIMEOUT_MINUTES, cfg.DEVICE))
        world.check_equal({**shared_config(cfg), **versions()}, "use one command and the same versions everywhere")
        run = partial(log_throughput, fresh_model) if cfg.THROUGHPUT_MODE else evaluate if cfg.EVAL_MODE else train
        run(cfg, world)
        world.leave()
    except (Exception, KeyboardInterrupt) as error:
        code = world.end_together(explain_memory(error, world.device), debug="--debug" in argv)
    interrupt.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
