"""Train, fine-tune and evaluate Swin Transformers: torchrun main.py --cfg configs/swin_tiny.yaml --data-path FOLDER"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

import torch
from yacs.config import CfgNode

from configs import arguments
from configs.loading import dump_config, load_config
from configs.options import parse_command_line
from data.loaders import build_eval_loader, build_train_loader
from data.sources import Sources, open_sources
from models.pretrained import count_classes, find_weights, load_weights
from models.registry import build_model
from utils.checkpoint import read_checkpoint
from utils.distributed import World, join_world
from utils.engine import evaluate, train_epoch
from utils.errors import PlanError, show_error
from utils.precision import choose_precision
from utils.profiling import describe_model, measure_throughput
from utils.run_logger import start_logging
from utils.run_plan import RunPlan
from utils.seeding import derive, seed_all
from utils.session import OutputFolder, Session, start_from, versions
from utils.train_state import TrainState, new_state

log = logging.getLogger("main")


def train(cfg: CfgNode, world: World) -> None:
    """Train from where this run stands to its last epoch."""
    sources = open_sources(**arguments.source_arguments(cfg))
    plan = RunPlan.from_config(cfg, world.size, len(sources.train))
    folder = OutputFolder(Path(cfg.OUTPUT, cfg.MODEL.NAME, cfg.TAG), world)
    folder.claim(dump_config(cfg), partial(arguments.config_differences, cfg))
    state = first_state(cfg, sources, plan, folder, world)
    facts = {**identity(sources, plan), "config": dump_config(cfg), "versions": versions()}
    session = Session(state, plan, folder, world, facts=facts, **arguments.session_arguments(cfg))

    seeds = {"seed": cfg.SEED, "seed_all": seed_all, "derive": derive}
    batches = build_train_loader(sources.train, plan, world, **seeds, **arguments.train_loader_arguments(cfg))
    val = build_eval_loader(sources.val, world, **arguments.eval_loader_arguments(cfg))
    while state.epoch < plan.epochs:
        session.start_epoch()
        watched = session.progress.watch(batches.epoch(state.epoch, state.step))
        train_epoch(state, watched, plan, cfg.MODEL.LABEL_SMOOTHING, session.after_update)
        session.end_epoch(evaluate(state.evaluated, val, len(sources.class_names), state.precision, world))
    session.finish()


def first_state(cfg: CfgNode, sources: Sources, plan: RunPlan, folder: OutputFolder, world: World) -> TrainState:
    """Model and optimizer where training goes on: checkpoint of this run, else --resume, --pretrained, scratch."""
    seed_all("model", cfg.SEED)
    model = build_model(cfg.MODEL.TYPE, **arguments.model_arguments(cfg, len(sources.class_names))).to(world.device)
    model.set_grad_checkpointing(cfg.TRAIN.USE_CHECKPOINT)
    precision = choose_precision(cfg.AMP_ENABLE, cfg.AMP_DTYPE, world.device)
    state = new_state(model, world, precision, **arguments.state_arguments(cfg))
    for line in (*describe_model(model, cfg.DATA.IMG_SIZE), *state.describe(), *plan.describe()):
        log.info(line)
    expected = identity(sources, plan)
    if not start_from(
        state, folder, world, load_weights=load_weights, expected=expected, **arguments.start_arguments(cfg)
    ):
        state.begin(cfg.TRAIN.START_EPOCH, plan.updates_per_epoch)
        if cfg.MODEL.PRETRAINED:
            weights, _ = find_weights(read_checkpoint(Path(cfg.MODEL.PRETRAINED)), cfg.MODEL.PRETRAINED)
            log.info("weights: %s (--pretrained)", load_weights(model, weights, cfg.MODEL.PRETRAINED, new_head=True))
            state.average_from_here()
        else:
            log.info("weights: fresh (no checkpoint in the output folder, no --resume, no --pretrained)")
    return state


def identity(sources: Sources, plan: RunPlan) -> dict:
    """What a checkpoint must share with the run that goes on from it."""
    names, data = list(sources.class_names), sources.fingerprint()
    return {"class_names": names, "global_batch": plan.global_batch, "data_fingerprint": data}


def evaluate_only(cfg: CfgNode, world: World) -> None:
    """Evaluate one file; nothing is written."""
    path = cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED
    if not path:
        raise PlanError("nothing to evaluate: --eval: name the weights with --resume FILE")
    contents = read_checkpoint(Path(path))
    weights, place = find_weights(contents, path)
    classes = count_classes(weights, path)
    sources = open_sources(**arguments.source_arguments(cfg, evaluated=(classes, contents.get("class_names"))))
    model = build_model(cfg.MODEL.TYPE, **arguments.model_arguments(cfg, classes)).to(world.device)
    log.info("weights: %s (%s of the file)", load_weights(model, weights, path), place)
    precision = choose_precision(cfg.AMP_ENABLE, cfg.AMP_DTYPE, world.device)
    val = build_eval_loader(sources.val, world, **arguments.eval_loader_arguments(cfg))
    log.info(evaluate(model, val, classes, precision, world).line())


def throughput(cfg: CfgNode, world: World) -> None:
    """Images per second of the forward pass, on random images; the weights do not matter."""
    model = build_model(cfg.MODEL.TYPE, **arguments.model_arguments(cfg, cfg.MODEL.NUM_CLASSES or 1000)).to(
        world.device
    )
    precision = choose_precision(cfg.AMP_ENABLE, cfg.AMP_DTYPE, world.device)
    size = cfg.DATA.IMG_SIZE
    images = torch.randn(cfg.DATA.BATCH_SIZE, 3, size, size, device=world.device)
    for line in (
        *describe_model(model, size),
        *measure_throughput(model, images, precision).describe(images, precision),
    ):
        log.info(line)


def main(argv: list[str]) -> int:
    """Returns the exit code (utils/errors.py)."""
    world = World(rank=int(os.environ.get("RANK", 0)))
    start_logging(world.is_main)
    debug = "--debug" in argv
    try:
        command = parse_command_line(argv)
        cfg = load_config(command.cfg, command.overrides)
        world = join_world()
        work = throughput if cfg.THROUGHPUT_MODE else evaluate_only if cfg.EVAL_MODE else train
        work(cfg, world)
    except (Exception, KeyboardInterrupt) as error:
        return show_error(error, debug, aloud=world.speaks_first("error"))
    world.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
