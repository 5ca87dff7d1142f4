"""Train, fine-tune and evaluate Swin Transformers: torchrun main.py --cfg configs/swin_tiny.yaml --data-path FOLDER"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from configs import arguments
from configs.loading import dump_config, load_config
from configs.options import parse_command_line
from data.loaders import Randomness, build_eval_loader, build_train_loader
from data.sources.open import chosen_classes, open_sources
from models.registry import build_model, prepare
from models.weights.class_maps import class_names_of, real_labels
from models.weights.load import load_contents
from models.weights.released import weights_address
from utils.checkpoints.downloads import local_file
from utils.checkpoints.files import read_checkpoint
from utils.distributed import World, join_world
from utils.errors import show_error
from utils.evaluation.reports import assess, report, write_tables
from utils.precision import Precision, choose_precision
from utils.profiling import describe_model, measure_throughput
from utils.seeding import derive, seed_all, seed_host
from utils.training.journal import log_lines, start_logging
from utils.training.loop import evaluate, train_epoch
from utils.training.plan import RunPlan
from utils.training.session import OutputFolder, Session, Start, start_from
from utils.training.state import TrainState, new_state

log = logging.getLogger("main")


def train(cfg: CfgNode, world: World) -> None:
    """Train from where this run stands to its last epoch."""
    with world.one_first():  # makes the list of samples that the others then find
        sources = open_sources(**arguments.source_arguments(cfg), share=world.share)
    plan = RunPlan.from_config(cfg, world.size, len(sources.train))
    folder = OutputFolder(Path(cfg.OUTPUT, cfg.MODEL.NAME, cfg.TAG), world)
    folder.claim(dump_config(cfg), partial(arguments.config_differences, cfg))
    facts = {**sources.identity(), "global_batch": plan.global_batch, "config": dump_config(cfg)}
    state = first_state(cfg, plan, facts, folder, world)
    seeds = Randomness(cfg.SEED, seed_all, seed_host, derive)
    batches = build_train_loader(sources.train, plan, world, seeds, **arguments.train_loader_arguments(cfg))
    val = build_eval_loader(sources.val, world, **arguments.eval_loader_arguments(cfg))
    session = Session(state, plan, folder, world, facts=facts, **arguments.session_arguments(cfg))
    while state.epoch < plan.epochs:
        watched = session.watch(batches.epoch(state.epoch, state.step))
        train_epoch(state, watched, plan, cfg.MODEL.LABEL_SMOOTHING, session.after_update)
        session.end_epoch(
            evaluate(state.evaluated, session.interruptible(val), len(sources.class_names), state.precision, world)
        )
    session.finish()


def first_state(cfg: CfgNode, plan: RunPlan, facts: dict, folder: OutputFolder, world: World) -> TrainState:
    """Where training goes on: the newest checkpoint of this run, else --resume, else --pretrained, else scratch."""
    model, precision = fresh_model(cfg, len(facts["class_names"]), world)
    state = new_state(model, world, precision, **arguments.state_arguments(cfg))
    log_lines([*state.describe(), *plan.describe()])
    fetch = partial(local_file, world=world, address=weights_address, sha256=cfg.MODEL.SHA256)
    start = Start(load=load_contents, fetch=fetch, expected=facts, **arguments.start_arguments(cfg))
    start_from(start, state, plan, folder, world)
    return state


def fresh_model(cfg: CfgNode, classes: int, world: World) -> tuple[nn.Module, Precision]:
    """The model of the configuration, initialised from the seed, and how it computes."""
    seed_all("model", cfg.SEED)
    model = build_model(cfg.MODEL.TYPE, **arguments.model_arguments(cfg, classes)).to(world.device)
    prepare(model, **arguments.preparation_arguments(cfg))
    log.info(describe_model(model, arguments.seen_size(cfg)))
    return model, choose_precision(world.device, **arguments.amp_arguments(cfg))


def evaluate_only(cfg: CfgNode, world: World) -> None:
    """Evaluate the files named, and write what tables were asked for; nothing else is written."""
    rows = []
    for path in arguments.evaluated_files(cfg):
        contents = read_checkpoint(local_file(path, world, address=weights_address, sha256=cfg.MODEL.SHA256))
        with world.one_first():
            val = open_sources(**arguments.source_arguments(cfg, training=False) | class_names_of(contents)).val
        model, precision = fresh_model(cfg, len(val.class_names), world)
        log.info("weights: %s", load_contents(model, contents, path))
        batches = build_eval_loader(val, world, **arguments.eval_loader_arguments(cfg))
        rows.append((path, assess(model, batches, val, chosen_classes(cfg.TEST.CLASSES, val), precision, world)))
        log_lines(report(rows[-1][1], val, real_labels() if cfg.TEST.REAL else None))
        if world.is_main:
            write_tables(rows, val, cfg.TEST.RESULTS, cfg.TEST.PER_CLASS)


def throughput(cfg: CfgNode, world: World) -> None:
    """Images per second of the forward pass, on random images and with fresh weights: neither moves the speed."""
    model, precision = fresh_model(cfg, cfg.MODEL.NUM_CLASSES or 1000, world)
    log.info(measure_throughput(model, cfg.DATA.BATCH_SIZE, cfg.DATA.IMG_SIZE, precision).line())


def main(argv: list[str]) -> int:
    """Returns the exit code (utils/errors.py)."""
    world = World(rank=int(os.environ.get("RANK", 0)))
    start_logging(world.is_main)
    try:
        command = parse_command_line(argv)
        cfg = load_config(command.cfg, command.overrides)
        world = join_world()
        (throughput if cfg.THROUGHPUT_MODE else evaluate_only if cfg.EVAL_MODE else train)(cfg, world)
        world.leave()
    except (Exception, KeyboardInterrupt) as error:
        return world.end_together(show_error(error, debug="--debug" in argv, aloud=world.speaks_first("error")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
