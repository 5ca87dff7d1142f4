"""Learning-rate schedules, as pure functions of the update; "plateau" also of the decays so far."""

import math
from bisect import bisect_right
from dataclasses import replace

from utils.training.plan import RunPlan


def learning_rate(update: int, plan: RunPlan, scale: float = 1.0, decays: int = 0) -> float:
    """Returns the learning rate of update 0, 1, ... of the run: linear warm-up, then the decay of the plan.

    Args: scale: factor of layer-wise decay, applied to the rate, or to the peak only if `plan.scale_peak`; decays: the
    number of decays of a plateau schedule so far.

    The cosine follows the paper (section 4.1). It starts after the warm-up or, without `warmup_prefix`, at update 0,
    hidden at first by the warm-up, as in runs released before October 2022. Without `warmup_prefix`, the warm-up of a
    polynomial is a factor of it, as in the released segmenters.
    """
    if plan.scale_peak:
        plan, scale = replace(plan, peak_lr=plan.peak_lr * scale), 1.0
    return scale * _unscaled(update, plan, decays)


def _unscaled(update: int, plan: RunPlan, decays: int) -> float:
    warmup = plan.warmup_updates
    if update < warmup and plan.scheduler == "poly" and not plan.warmup_prefix:
        return _poly(update, plan) * _lerp(plan.warmup_lr / plan.peak_lr, 1.0, update / warmup)
    if update < warmup:
        return plan.warmup_lr + (plan.peak_lr - plan.warmup_lr) * update / warmup
    if plan.scheduler == "plateau":
        return max(plan.min_lr, plan.peak_lr * plan.decay_rate**decays)
    return _DECAYS[plan.scheduler](update, plan)


def _lerp(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _progress(update: int, plan: RunPlan, after_warmup: bool) -> float:
    start = plan.warmup_updates if after_warmup else 0
    return min(1.0, (update - start) / max(1, plan.total_updates - start))


def _cosine(update: int, plan: RunPlan) -> float:
    cosine = math.cos(math.pi * _progress(update, plan, plan.warmup_prefix))
    return plan.min_lr + 0.5 * (plan.peak_lr - plan.min_lr) * (1 + cosine)


def _poly(update: int, plan: RunPlan) -> float:
    left = 1 - _progress(update, plan, plan.warmup_prefix)
    return plan.min_lr + (plan.peak_lr - plan.min_lr) * left**plan.power


def _linear(update: int, plan: RunPlan) -> float:
    """Decays to a hundredth of the peak, like the linear schedule of the original repository."""
    return plan.peak_lr * (1 - 0.99 * _progress(update, plan, True))


def _step(update: int, plan: RunPlan) -> float:
    return plan.peak_lr * plan.decay_rate ** (update // (plan.decay_epochs * plan.updates_per_epoch))


def _multistep(update: int, plan: RunPlan) -> float:
    return plan.peak_lr * plan.gamma ** bisect_right(sorted(plan.milestones), update / plan.updates_per_epoch)


_DECAYS = {"cosine": _cosine, "linear": _linear, "poly": _poly, "step": _step, "multistep": _multistep}
