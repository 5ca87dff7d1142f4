"""Distillation losses against the formulas of DeiT and timm, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import nn

from tasks.classification.distillation import DistillationOptions, distillation_loss
from tasks.classification.labels import ClassInfo
from tests.tools.builders import FLOAT32, batches, evaluation_of, objective, small, train_state
from utils.batches import Batch
from utils.precision import choose_precision

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
TAUGHT = torch.tensor([[0.0, 4.0, 2.0], [6.0, 1.0, 1.0]])
SOFT, HARD = DistillationOptions("soft", 0.3, 2.0), DistillationOptions("hard", 0.3)


def distillation(options, teacher, precision=FLOAT32, **more):
    task = objective(precision=precision, **more)
    task._distillation, task._teacher = options, teacher
    return task


def test_soft_is_the_divergence_at_a_temperature_summed_over_classes_and_averaged_over_the_batch():
    total = 0.0
    for own, theirs in zip(LOGITS.tolist(), TAUGHT.tolist(), strict=True):
        p, q = ([torch.e ** (x / 2) / sum(torch.e ** (y / 2) for y in row) for x in row] for row in (theirs, own))
        total += sum(a * (torch.log(torch.tensor(a)) - torch.log(torch.tensor(b))) for a, b in zip(p, q, strict=True))
    assert distillation_loss(LOGITS, TAUGHT, SOFT).item() == pytest.approx(2**2 * total.item() / 2, rel=1e-5)
    assert distillation_loss(TAUGHT, TAUGHT, SOFT).item() == 0.0


def test_hard_is_the_cross_entropy_with_the_most_probable_class_at_any_temperature():
    expected = -(LOGITS.log_softmax(1)[0, 1] + LOGITS.log_softmax(1)[1, 0]) / 2
    for temperature in (1.0, 3.0):
        options = DistillationOptions("hard", temperature=temperature)
        torch.testing.assert_close(distillation_loss(LOGITS, TAUGHT, options), expected)


def test_both_losses_are_computed_in_float32():
    for options in (SOFT, HARD):
        assert distillation_loss(LOGITS.bfloat16(), TAUGHT.bfloat16(), options).dtype == torch.float32


@pytest.mark.parametrize("options", [SOFT, HARD])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_parts_are_named_and_weighted(options, alpha):
    model, teacher, (batch,) = small(), small("swinv2").eval(), batches(1)
    options = DistillationOptions(options.kind, alpha, options.temperature)
    losses = distillation(options, teacher).loss(model, batch)
    assert list(losses) == ["loss", "base", "distillation"]
    base = F.cross_entropy(model(batch.images), batch.targets, label_smoothing=0.1)
    part = distillation_loss(model(batch.images), teacher(batch.images), options)
    assert losses["base"].item() == base.item() and losses["distillation"].item() == part.item()
    assert losses["loss"].item() == pytest.approx((1 - alpha) * base.item() + alpha * part.item(), rel=1e-6)
    if alpha in (0.0, 1.0):
        assert losses["loss"].item() == (part if alpha else base).item()


def test_soft_targets_of_mixed_images_are_the_base_s():
    model, (batch,) = small(), batches(1)
    mixed = torch.full((4, 5), 0.2)
    batch = Batch(batch.images, mixed)
    losses = distillation(SOFT, lambda images: torch.zeros(len(images), 5)).loss(model, batch)
    assert losses["base"].item() == F.cross_entropy(model(batch.images), mixed).item()


def test_soft_equals_timm_s_and_gradients_reach_the_student_alone():
    student, teacher, (batch,) = small(), small("swinv2").eval(), batches(1)
    for model in (student, teacher):
        model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    held = DistillationTeacher(teacher)
    theirs = LogitDistillationTask(student, held, nn.CrossEntropyLoss(), task_loss_weight=0.7, temperature=2.0)
    expected = theirs(batch.images, batch.targets)["loss"]
    (wanted,) = torch.autograd.grad(expected, student.head.weight)

    @torch.no_grad()
    def taught(images):
        assert not teacher.training and torch.equal(images, batch.images)
        return teacher(images)

    loss = distillation(SOFT, taught, smoothing=0.0).loss(student, batch)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(student.head.weight.grad, wanted)
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_both_models_run_in_the_chosen_precision():
    half, (batch,), seen = choose_precision(torch.device("cpu"), True, "bfloat16"), batches(1), []

    def teacher(images):
        seen.append((images @ images.mT).dtype)
        return torch.zeros(len(images), 5)

    losses = distillation(SOFT, teacher, half).loss(small(), batch)
    assert seen == [torch.bfloat16] and {value.dtype for value in losses.values()} == {torch.float32}


def test_evaluation_and_checkpoints_are_the_student_s():
    model, work = small(), batches(3)
    own, base = (evaluation_of(task, model, work) for task in (distillation(SOFT, small("swinv2")), objective()))
    assert own.metrics == base.metrics
    assert set(train_state(model).state_dict()["model"]) == set(model.state_dict())


@pytest.mark.seconds
def test_the_teacher_is_opened_for_the_classes_of_the_data_in_training_only(monkeypatch):
    opened = []
    monkeypatch.setattr(
        "tasks.classification.task.open_teacher", lambda cfg, new, seen, world, names: opened.append(names)
    )
    given = {"DISTILLATION__KIND": "hard", "DISTILLATION__WEIGHTS": "FILE", "MODEL__SWIN__EMBED_DIM": 24}
    info = ClassInfo(class_names=("a", "b"))
    objective(**given).build_model(info)
    assert opened == [("a", "b")]
    objective(**given).build_model(None)  # to measure its speed
    objective(**given, EVAL_MODE=True, MODEL__RESUME="x.pth").build_model(info)
    objective(MODEL__SWIN__EMBED_DIM=24).build_model(info)
    assert len(opened) == 1
