"""What a GPU adds: half precision, the kernels within models, compiled models, nccl, the program from end to end."""

import json
from dataclasses import replace

import pytest
import torch

from models.registry import build, build_model, model_options
from models.weights.layouts import LAYOUTS
from scripts.exported_model import Exported
from scripts.other_libraries import build_peer_model
from tests.conftest import accuracy, run_program
from tests.tools.builders import configured, randomize

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
GPU = torch.device("cuda")
SMALL = {"img_size": 56, "embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "window_size": 7, "num_classes": 10}
KERNEL = ("--opts", "MODEL.SWIN.EMBED_DIM", 32)  # 16 channels per head


def deviation(values, reference):
    return ((values.double() - reference.double()).norm() / reference.double().norm()).item()


def run(model, images, dtype, compiled=None):
    """Returns the logits, and the gradients of all parameters. Args: compiled: what computes the logits."""
    model.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits = (compiled or model)(images)
    logits.float().square().sum().backward()
    return [logits.detach().float(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("name", ["swin_tiny", "swinv2_tiny"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_logits_are_those_of_timm(name, dtype, limit):
    """Both in their fastest form, beside the same model in float32 on the CPU."""
    options = replace(model_options(configured(f"{name}.yaml")), drop_path_rate=0.0)
    ours = randomize(build(options, 100))
    weights = LAYOUTS["timm"].from_original({key: value.clone() for key, value in ours.state_dict().items()})
    theirs = build_peer_model("timm", ours.options, weights).eval()
    side = options.img_size[0]
    images = torch.randn(4, 3, side, side)
    with torch.no_grad():
        exact = ours(images)
        ours, theirs, images = ours.to(GPU), theirs.to(GPU), images.to(GPU)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            results = [model(images).cpu() for model in (ours, theirs)]
    deviations = [deviation(logits, exact) for logits in results]
    assert deviations[0] < max(limit, 1.5 * deviations[1])


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_every_form_of_attention_is_as_near_to_float32(family):
    """Outputs and gradients in bfloat16."""
    images = torch.randn(8, 3, 56, 56, device=GPU)
    model = randomize(build_model(family, **SMALL, drop_path_rate=0.0)).to(GPU).train()
    exact = run(model, images, torch.float32)
    found = {}
    for form in ("explicit", "fused", "kernel", "auto"):
        other = build_model(family, **SMALL, drop_path_rate=0.0, attention=form).to(GPU).train()
        other.load_state_dict(model.state_dict())
        found[form] = [deviation(*pair) for pair in zip(run(other, images, torch.bfloat16), exact, strict=True)]
    for name, *each in zip(["logits", *dict(model.named_parameters())], *found.values(), strict=True):
        assert max(each) < max(5 * each[0], 2e-2), name


def test_auto_takes_the_kernel_in_half_precision_only(monkeypatch):
    import models.ops.window_kernel as kernel

    calls = []
    launch = kernel._launch
    monkeypatch.setattr(kernel, "_launch", lambda *a: calls.append(a[0].dtype) or launch(*a))
    model = build_model("swin", **SMALL).to(GPU).eval()
    images = torch.randn(2, 3, 56, 56, device=GPU)
    for dtype, count in ((torch.float32, 0), (torch.bfloat16, 4), (torch.float16, 4)):
        calls.clear()
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            model(images)
        assert calls == [dtype] * count


@pytest.mark.parametrize("family", ["swin", "swinv2", "swin_moe"])
def test_stochastic_depth_skips_the_same_samples_on_every_device(family):
    """At a rate at which some branch keeps none: the parameters without gradient are the same."""
    images = torch.randn(4, 3, 56, 56)
    model = randomize(build_model(family, **SMALL, drop_path_rate=0.8)).train()
    for seed in range(3):
        results = []
        for device, dtype in (("cpu", torch.float32), (GPU, torch.bfloat16)):
            torch.manual_seed(seed)
            results.append(run(model.to(device), images.to(device), dtype))
        for ours, reference in zip(results[1], results[0], strict=True):
            assert (ours == 0).all().item() == (reference == 0).all().item()
        assert family == "swin_moe" or deviation(results[1][0].cpu(), results[0][0]) < 3e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_trains_resumes_and_evaluates(tiny_yaml, photos, tmp_path, dtype):
    """float16 with a loss scale; one process under torchrun, by nccl; the second run repeats the last epoch."""
    common = ("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path)
    options = (*KERNEL, "AMP_DTYPE", dtype)
    first = run_program(*common, *options, processes=1, fresh=True)
    assert first.code == 0, first.err
    assert torch.cuda.get_device_name() in first.out
    folder = tmp_path / "tiny/default"
    start = folder / "checkpoints/ckpt_epoch_0.pth"
    second = run_program(*common, "--tag", "second", "--resume", start, *options, fresh=True)
    assert second.code == 0, second.err
    metrics = [(folder.parent / tag / "metrics.jsonl").read_text().splitlines() for tag in ("default", "second")]
    losses = [json.loads(lines[-1])["loss"] for lines in metrics]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    evaluated = run_program(*common, "--eval", "--resume", folder, *options, fresh=True)
    assert evaluated.code == 0 and accuracy(evaluated.out)[1] == 15, evaluated.err


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_cuda_graphs_compute_the_same(family):
    """Outputs and gradients of steps with new images each, beside the same compiled model without graphs."""
    model = randomize(build_model(family, **SMALL, drop_path_rate=0.0)).to(GPU).train()
    plain, graphs = torch.compile(model), torch.compile(model, mode="reduce-overhead")
    for _ in range(4):  # the first ones compile and record
        images = torch.randn(8, 3, 56, 56, device=GPU)
        expected = run(model, images, torch.bfloat16, plain)
        for ours, reference in zip(run(model, images, torch.bfloat16, graphs), expected, strict=True):
            assert deviation(ours, reference) < 2e-2


def test_cuda_graphs_draw_the_skipped_samples_anew():
    model = build_model("swin", **SMALL, drop_path_rate=0.5).to(GPU).train()
    graphs = torch.compile(model, mode="reduce-overhead")
    images = torch.randn(8, 3, 56, 56, device=GPU)
    logits = []
    for seed in (0, 1, 2, 3, 4, 3, 4):
        torch.manual_seed(seed)
        logits.append(run(model, images, torch.bfloat16, graphs)[0])
    assert torch.equal(logits[3], logits[5]) and torch.equal(logits[4], logits[6])
    assert not torch.equal(logits[3], logits[4])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_trains(tiny_yaml, photos, tmp_path, mode):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path),
        *(*KERNEL, "TRAIN.EPOCHS", 3, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COMPILE", True, "TRAIN.COMPILE_MODE", mode),
        fresh=True,
    )
    assert done.code == 0 and f"mode {mode}" in done.out, done.err


def test_throughput_is_measured_on_the_gpu():
    done = run_program("--cfg", "swin_tiny", "--throughput", "--batch-size", 64, fresh=True)
    assert done.code == 0 and "mixed bfloat16" in done.out, done.err


def test_an_exported_model_takes_images_of_any_device():
    """It is computed on the CPU: the constants of the file are there."""
    model = Exported(lambda images: images @ torch.eye(2), batch=0).to("cuda")
    assert model(torch.ones(1, 2, device="cuda")).tolist() == [[1.0, 1.0]]
