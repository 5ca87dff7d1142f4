"""Registry of tasks by TASK."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from yacs.config import CfgNode

from configs.schema import add_task
from configs.values import TaskKeys
from tasks.base import Task
from utils.distributed.world import World

_added: dict[str, type[Task]] = {}


def task_class(name: str) -> type[Task]:
    """Returns the class of a task: `TASK` of tasks/<name>/task.py, or a registered one."""
    return _added[name] if name in _added else import_module(f"tasks.{name}.task").TASK


def new_task(cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> Task:
    """Returns the task of a configuration. Args: contents: see `Task`. Raises: ConfigError."""
    return task_class(cfg.TASK)(cfg, world, contents)


def register(task: type[Task], keys: TaskKeys | None = None) -> None:
    """Registers a task from outside of tasks/; call it before the configuration is loaded."""
    _added[task.name] = task
    add_task(task.name, keys or TaskKeys())
