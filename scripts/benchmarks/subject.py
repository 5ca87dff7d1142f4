"""One contender in a separate process: evaluation and training steps on request.

This program is measured as run by main.py, with its evaluation and training loops and process settings; other libraries
in a typical training loop, with autocast, cross-entropy, clip_grad_norm_ and torch's AdamW.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.loading import load_config
from models.backbone import PyramidOptions
from models.registry import build, forms_of, model_options
from models.weights.layouts import LAYOUTS
from scripts.benchmarks.interleave import PRODUCTS
from scripts.benchmarks.products import ProductRecorder, ProductTimer
from scripts.other_libraries import build_peer_model, logits_of
from tasks.registry import new_task
from utils.batches import Batch
from utils.cost import explain_memory, peak_memory
from utils.distributed.world import World
from utils.errors import ResourceError
from utils.precision import Precision
from utils.runtime import give_back_memory, tune_process
from utils.training.evaluate import predict
from utils.training.loop import train_epoch
from utils.training.plan import RunPlan
from utils.training.state import StateOptions, TrainState

OURS = "this program"
PEERS = ("timm", "torchvision", "transformers")
CLASSES, CLIP = 1000, 5.0


@dataclass(frozen=True)
class Setting:
    """`batch` images of `size` x `size` pixels; `threads`: CPU threads; `compiled`: a torch.compile mode, "" for none;
    `tuned`: other libraries get this program's process settings, too."""

    recipe: Path
    batch: int
    size: int
    threads: int
    compiled: str = ""
    tuned: bool = False


class Work(Protocol):
    """Measures a model: returns the seconds for `at_a_time` batches."""

    def evaluate(self, dtype: torch.dtype) -> float: ...

    def train(self, dtype: torch.dtype) -> float: ...

    def weights(self) -> int:
        """Returns the size of the weights in MiB."""
        ...


class Contender:
    """A process that measures one contender on request."""

    def __init__(self, name: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setting), daemon=True)
        self._process.start()
        theirs.close()

    @cached_property
    def exists(self) -> bool:
        """Whether its library is installed; waits until the process is ready."""
        return self._receive()

    def measure(self, task: str, dtype: torch.dtype = torch.float32) -> float:
        """Returns images/s for "evaluate" or "train", or the peak memory in MiB, including weights, for "memory"."""
        assert self.exists
        with suppress(BrokenPipeError):  # the process died, which _receive reports
            self._connection.send((task, dtype))
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()

    def join(self) -> None:
        self._process.join(10)

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as e:
            self._process.join(10)
            code = self._process.exitcode
            reason = ", probably out of memory" if code == -9 else ""
            raise ResourceError(self._name, f"the process died with code {code}{reason}", "reduce --batch-size") from e
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, name: str, setting: Setting) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.set_num_threads(setting.threads)
        if setting.tuned or name in (OURS, PRODUCTS):
            tune_process(device)
        work = _build(name, setting, device)
        give_back_memory()  # of the model that provided another library's weights
        others = 0 if device.type == "cuda" or work is None else _resident() - work.weights()
        connection.send(work is not None)
        while work is not None:
            task, dtype = connection.recv()
            if task == "memory":
                connection.send(_peak(device) - others)
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # peak of this task alone
            connection.send(setting.batch * at_a_time(device, task) / getattr(work, task)(dtype))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # all contenders share the memory
    except EOFError:
        return
    except Exception as error:  # reported by the parent process
        connection.send(explain_memory(error, device))


def _resident() -> int:
    """Returns the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def _peak(device: torch.device) -> int:
    """Returns the peak in MiB; on a GPU including the memory pools of CUDA graphs, which tensors do not show."""
    if device.type != "cuda":
        return peak_memory(device)
    torch.cuda.empty_cache()
    return max(peak_memory(device), torch.cuda.memory_reserved() // 2**20)


def at_a_time(device: torch.device, task: str) -> int:
    """Returns the number of batches per measurement."""
    if device.type == "cuda":
        return 12  # keeps a GPU busy while the CPU reads a result
    return 3 if task == "evaluate" else 1  # an evaluation computes what is derived from weights only once


def _build(name: str, setting: Setting, device: torch.device) -> Work | None:
    """Builds the contender, with the same weights for all; None if its library is not installed."""
    options = model_options(load_config(setting.recipe))
    assert isinstance(options, PyramidOptions)
    torch.manual_seed(0)
    model = build(replace(options, img_size=setting.size), CLASSES)
    if name == OURS:
        return Ours(model.to(device), setting)
    if name == PRODUCTS:
        return Products(model.to(device), setting)
    weights = {key: value.clone() for key, value in LAYOUTS[name].from_original(model.state_dict()).items()}
    peer = build_peer_model(name, model.options, weights)  # type: ignore[arg-type]
    return None if peer is None else Peer(peer.to(device), setting)


def _random_batch(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.randn(setting.batch, 3, setting.size, setting.size, device=device)
    return images, torch.randint(CLASSES, (setting.batch,), device=device)


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    if device.type == "cuda":
        work()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _seconds_of_all(device: torch.device, task: str, work: Callable[[], Any]) -> float:
    """Returns the time in seconds for `at_a_time` batches. Args: work: processes one batch."""
    return _seconds(device, lambda: [work() for _ in range(at_a_time(device, task))])


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


class Ours:
    def __init__(self, model: nn.Module, setting: Setting):
        given = {"DATA.BATCH_SIZE": setting.batch, "DATA.IMG_SIZE": setting.size, "MODEL.LABEL_SMOOTHING": 0.0}
        cfg = load_config(setting.recipe, [(key, value, "benchmark") for key, value in given.items()])
        self._cfg = cfg
        self._dtype: torch.dtype | None = None
        self._device = next(model.parameters()).device
        self._world = World(device=self._device)
        self._plan = RunPlan.from_config(cfg, 1, 10**6)
        self._state = TrainState.build(
            model, StateOptions.from_config(cfg), Precision(self._device.type, torch.float32), self._world
        )
        if setting.compiled:
            self._state.wrapped = torch.compile(model, mode=setting.compiled)  # type: ignore[assignment]
        self._task = new_task(cfg, self._world)
        self._batch = Batch(*_random_batch(setting, self._device))

    def weights(self) -> int:
        return _bytes(self._state.model) // 2**20

    def _prepare(self, dtype: torch.dtype) -> None:
        """Chooses the forms of the operators at the first call, when no other contender runs."""
        if dtype != self._dtype:
            self._dtype, self._task.precision = dtype, Precision(self._device.type, dtype)
            forms_of(self._cfg, self._state.model, self._task.precision, self._world)

    def evaluate(self, dtype: torch.dtype) -> float:
        self._prepare(dtype)
        return _seconds(self._device, partial(self._evaluation, at_a_time(self._device, "evaluate")))

    def train(self, dtype: torch.dtype) -> float:
        self._prepare(dtype)
        return _seconds(self._device, partial(self._epoch, at_a_time(self._device, "train")))

    def _evaluation(self, count: int) -> None:
        for _ in predict(self._state.wrapped, [self._batch] * count, self._task.forward, self._world):
            pass

    def _epoch(self, count: int) -> None:
        train_epoch(self._state, [self._batch] * count, self._task, self._plan, lambda update: None)


class Products(Ours):
    """The matrix products of this program's steps alone, on the CPU."""

    def __init__(self, model: nn.Module, setting: Setting):
        super().__init__(model, setting)
        self._fixed, self._changing = ProductTimer(fixed=True), ProductTimer(fixed=False)

    def evaluate(self, dtype: torch.dtype) -> float:
        return at_a_time(self._device, "evaluate") * self._products(dtype, self._evaluation, self._fixed)

    def train(self, dtype: torch.dtype) -> float:
        return at_a_time(self._device, "train") * self._products(dtype, self._epoch, self._changing)

    def _products(self, dtype: torch.dtype, work: Callable[[int], None], timer: ProductTimer) -> float:
        """Returns the seconds for one batch."""
        self._prepare(dtype)
        with ProductRecorder() as recorder:
            work(1)
        return timer.seconds(recorder.products)


class Peer:
    def __init__(self, model: nn.Module, setting: Setting):
        self._device = next(model.parameters()).device
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
        self._model: Any = torch.compile(model, mode=setting.compiled) if setting.compiled else model
        self._images, self._targets = _random_batch(setting, self._device)

    def weights(self) -> int:
        return _bytes(self._model) // 2**20

    def evaluate(self, dtype: torch.dtype) -> float:
        precision = Precision(self._device.type, dtype)
        self._model.eval()

        @torch.inference_mode()
        def work() -> None:
            with precision.autocast():
                self._model(self._images)

        return _seconds_of_all(self._device, "evaluate", work)

    def train(self, dtype: torch.dtype) -> float:
        precision = Precision(self._device.type, dtype)
        self._model.train()

        def work() -> None:
            with precision.autocast():
                logits = logits_of(self._model(self._images))
            F.cross_entropy(logits.float(), self._targets).backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

        return _seconds_of_all(self._device, "train", work)
