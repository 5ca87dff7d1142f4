"""Train, fine-tune and evaluate Swin Transformers: torchrun main.py --cfg configs/swin_tiny.yaml --data-path FOLDER"""

import sys

from utils.distributed.launcher import watch_launcher
from utils.distributed.signals import Interrupt
from utils.home import ensure_home
from utils.imports import begin_imports, end_imports
from utils.openmp import shares_cores, wait_briefly
from utils.rank import launched_rank

interrupt = Interrupt()
if __name__ == "__main__":  # before anything slow is imported
    interrupt.install()
    interrupt.end_if_blocked()
    watch_launcher(interrupt.before_exit)
    ensure_home(warn=launched_rank() == 0)

from configs.options import check_command_line, parse_command_line

if __name__ == "__main__":
    if shares_cores(check_command_line(sys.argv[1:])):
        wait_briefly()
    begin_imports(show=launched_rank() == 0)

from yacs.config import CfgNode

from configs.loading import load_config, shared_config
from models.registry import forms_of
from tasks.base import TrainingData
from tasks.registry import new_task
from tasks.results import evaluate_files
from utils.batches import check_smallest_batch
from utils.cost import explain_memory
from utils.distributed.world import World, join_world
from utils.preprocessing import image_size
from utils.runs.dry_run import dry_run
from utils.runs.folder import RunFolder
from utils.runs.provenance import Provenance, versions
from utils.runs.resume import find_start
from utils.runs.session import Session
from utils.runs.session_options import SessionOptions
from utils.runs.stored_config import stored_config
from utils.runs.throughput import log_throughput
from utils.terminal import log_lines, start_logging
from utils.training.loop import train_epoch
from utils.training.plan import RunPlan
from utils.training.state import StateOptions, TrainState

if __name__ == "__main__":
    end_imports(show=launched_rank() == 0)


def train(cfg: CfgNode, world: World) -> None:
    """Trains from the newest checkpoint, or from the start, to the end of the plan."""
    task = new_task(cfg, world)  # data, model, loss and metrics of TASK
    data = task.open_data()
    plan = RunPlan.from_config(cfg, world.size, data.train_size)
    with RunFolder.open(cfg, world) as folder:  # first: fails before anything slow
        batches = TrainingData(task, data, plan, interrupt.interruptible)  # workers start while the model is built
        model = task.build_model(data.info)
        check_smallest_batch(model, plan.shape, image_size(cfg.DATA.IMG_SIZE))
        start = find_start(cfg, folder, Provenance.of(cfg, plan, task.preprocessing, data.info), world)
        start.load_weights(model, task.load)  # before sharding replaces the parameters
        forms = forms_of(cfg, model, task.precision, world, start.stored_forms)
        task.precision = task.precision.chosen(forms)
        state = TrainState.build(model, StateOptions.from_config(cfg), task.precision, world, forms)
        log_lines([*state.describe(), *plan.describe(), task.describe()])
        start.restore(state, plan, task.load)
        if cfg.DRY_RUN:
            return dry_run(state, batches, task, plan, folder, cfg.TRAIN.KEEP_CHECKPOINTS)
        options = SessionOptions.from_config(cfg)
        with Session(state, plan, folder, batches, start.provenance, interrupt, options) as session:
            while not state.finished(plan):
                epoch = session.watch(batches.epoch(state.epoch, state.step))
                train_epoch(state, epoch, task, plan, session.after_update)
                session.end_epoch()


def measure(cfg: CfgNode, world: World) -> None:
    """Logs the throughput of a newly initialised model."""
    log_throughput(cfg, new_task(cfg, world).build_model(None))


def main(argv: list[str]) -> int:
    """Returns the exit code (utils/errors.py)."""
    world, code = World(rank=launched_rank()), 0
    start_logging(world.is_main)
    try:
        command = parse_command_line(argv)
        cfg = load_config(*command)
        world = interrupt.join(join_world(cfg.TIMEOUT_MINUTES, cfg.DEVICE))
        if not command.cfg:
            cfg = stored_config(cfg, command.overrides, world)
        world.check_equal({**shared_config(cfg), **versions()}, "use one command and the same versions everywhere")
        run = measure if cfg.THROUGHPUT_MODE else evaluate_files if cfg.EVAL_MODE else train
        run(cfg, world)
        world.leave()
    except (Exception, KeyboardInterrupt) as error:
        code = world.end_together(explain_memory(error, world.device), debug="--debug" in argv)
    interrupt.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
