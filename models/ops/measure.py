"""Measures the forms of the operators of a model on this machine; see models/ops/forms.py.

The result is cached by processor, torch version and threads, and stored in checkpoints: a resumed run uses the same
forms, so that its results do not depend on a measurement.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from models.ops.attend import attend
from models.ops.forms import FORMS, Forms, Request, recorded_requests, use_forms
from models.ops.linear import fused_mlp_in, has_onednn, laid_out_for, linear_in
from utils.distributed.world import World
from utils.errors import count, one_line
from utils.files import cache_folder, write_text
from utils.precision import MEASURED, Precision, relative_speed
from utils.runtime import device_name

log = logging.getLogger(__name__)
ROUNDS = 5
# a form must take less than this fraction of the default's time: smaller gains of single calls did not carry over to
# whole models, where calls compete for the cache
GAIN = 0.85
SECONDS = 2.0  # for all operators of a model
SMALL = 10**8  # multiply-adds for one image, see `_operations`; Swin-T has 10**9
OPERATIONS = 1e8  # multiply-adds of a measured call: milliseconds
Runs = dict[str, Callable[[], object]]
Timer = Callable[[Callable[[], object]], float]


def choose_forms(
    model: nn.Module, images: Tensor, precision: Precision, world: World, stored: Mapping[str, str] | None = None
) -> Forms:
    """Selects and applies the fastest form of each operator of a model for a run on the CPU, the same on all ranks.

    Args: images (1, C, H, W), on the model's device; stored: the forms of the run that is resumed, which are kept.
    Returns: {key: form}, to store in a checkpoint; empty (all defaults) on other devices, for compiled models and for
    small ones, which gain less than the measurement takes.
    """
    forms = dict(stored or {})
    # the run's device: under FSDP, the model is still on the CPU here
    if stored is None and world.device.type == "cpu" and model._compiled_call_impl is None:
        requests = _requests_of(model, images, precision)
        if _operations(requests) >= SMALL:
            forms = world.main_only(lambda: _known_or_measured(requests))
    use_forms(forms)
    return forms


def measured_precision(precision: Precision, world: World) -> Forms:
    """Returns the faster dtype for matrix products on the main rank's CPU, bfloat16 or float32, to store in a
    checkpoint. Args: precision: bfloat16 if this rank's CPU supports it."""

    def measure() -> str:
        if precision.dtype != torch.bfloat16:
            return "float32"
        file = cache_file()
        known = _read(file)
        if MEASURED not in known:
            known[MEASURED] = "bfloat16" if relative_speed(torch.bfloat16) >= 1 else "float32"
            _write(file, known)
        return known[MEASURED]

    return {MEASURED: world.main_only(measure)}


def _requests_of(model: nn.Module, images: Tensor, precision: Precision) -> dict[str, Request]:
    training = model.training
    model.eval()
    try:
        with recorded_requests() as requests:
            for gradients in (False, True):
                with torch.set_grad_enabled(gradients), precision.autocast():
                    model(images)
    finally:
        model.train(training)
    return requests


def _operations(requests: Mapping[str, Request]) -> int:
    """Returns the multiply-adds of the linear layers for one image, counting layers of the same size once."""
    linear = [request for request in requests.values() if request.operator.startswith("linear")]
    return sum(request.rows * math.prod(request.sizes) for request in linear)


def _known_or_measured(requests: Mapping[str, Request]) -> Forms:
    file = cache_file()
    known = _read(file)
    missing = {key: request for key, request in requests.items() if key not in known}
    if missing:
        begun = time.perf_counter()
        known |= measure_forms(missing)
        _write(file, known)
        log.info("measured the forms of %s in %.1f s", count(len(missing), "operator"), time.perf_counter() - begun)
    forms = {key: known[key] for key in requests}
    other = [f"{key}: {form}" for key, form in forms.items() if form != FORMS[key.split()[0]][0]]
    if other:
        log.info("faster than the default on this machine: %s", ", ".join(sorted(other)))
    return forms


def measure_forms(requests: Mapping[str, Request], seconds: Timer | None = None) -> Forms:
    """Times the forms of each request in turn and returns the fastest.

    Args: seconds: returns how long a call takes.
    """
    seconds, last = seconds or _seconds, time.perf_counter() + SECONDS
    found = {}
    for key, request in requests.items():
        with torch.random.fork_rng(devices=[]):
            runs = prepare(request)
        default = next(iter(runs))
        found[key] = _fastest(runs, seconds, last) if time.perf_counter() < last else default
    return found


def _fastest(runs: Runs, seconds: Timer, last: float) -> str:
    """Args: last: the time after which no round begins, except for one warm-up and one measured round."""
    times: dict[str, list[float]] = {form: [] for form in runs}
    for number in range(1 + ROUNDS):
        if number > 1 and time.perf_counter() > last:
            break
        for form, run in runs.items():
            if form in times:
                try:
                    times[form].append(seconds(run))
                except Exception as e:  # a kernel that this processor lacks
                    log.warning("the form %s of an operator fails here and is not used: %s", form, one_line(e))
                    del times[form]
    default = next(iter(runs))
    if default not in times:
        return min(times, key=lambda form: median(times[form][1:]), default=default)
    best = {form: (median(each[1:]), min(each[1:])) for form, each in times.items()}
    middle, least = best[default]
    # other work on the machine slows some calls down, but speeds none up
    faster = [form for form, own in best.items() if own[0] < GAIN * middle and own[1] < least]
    return min(faster, key=best.__getitem__, default=default)


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def prepare(request: Request) -> Runs:
    """Returns a call of each form of the operator, on random values; with gradients it includes the backward pass."""
    operator, sizes, rows, dtype, device = request
    create = partial(torch.randn, dtype=dtype, device=device)
    if operator == "attention":
        tokens, heads, width = sizes
        qkv = create(1, _bounded(rows, 2 * tokens * tokens * heads * width), tokens, 3 * heads * width)
        bias = torch.randn(1, heads, tokens, tokens, device=device)
        runs: Runs = {form: partial(attend, qkv, bias, 0.2, form=form) for form in FORMS[operator]}
    else:
        out, inner = sizes
        x, weight, bias = create(_bounded(rows, out * inner), inner), create(out, inner), create(out)
        if operator == "mlp":
            leaves = [each.requires_grad_() for each in (x, weight, bias, create(inner, out), create(inner))]
            return {form: partial(_with_gradients, form, leaves) for form in FORMS[operator]}
        forms = FORMS[operator] if has_onednn(x) else ("plain",)
        weights = {form: laid_out_for(form, weight, len(x)) for form in forms}  # as in an evaluation
        runs = {
            form: partial(linear_in, form, x, own, bias, operator == "linear_gelu") for form, own in weights.items()
        }
    return {form: torch.no_grad()(run) for form, run in runs.items()}


def _with_gradients(form: str, leaves: Sequence[Tensor]) -> None:
    with torch.enable_grad():
        out = fused_mlp_in(form, *leaves)
        out.backward(torch.ones_like(out))


def _bounded(rows: int, operations: int) -> int:
    """Returns the number of rows in eight samples, or fewer if the call would take too long."""
    return max(1, min(8 * rows, int(OPERATIONS / operations)))


def cache_file() -> Path:
    """Returns the file of measured forms for this processor, torch version and number of threads."""
    machine = f"{device_name(torch.device('cpu'))} {torch.__version__}"
    name = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return cache_folder("forms") / f"{name}.json"


def _read(file: Path) -> Forms:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    fits = isinstance(found, dict)
    return {key: form for key, form in found.items() if form in FORMS.get(key.split(" ")[0], ())} if fits else {}


def _write(file: Path, forms: Mapping[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(dict(sorted(forms.items())), indent=1))
    except OSError as e:
        log.warning("measured forms cannot be cached in %s: %s", file.parent, one_line(e))
