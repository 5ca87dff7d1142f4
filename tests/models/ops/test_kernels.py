"""Whole models with the kernels in place of PyTorch's operators; on the CPU by Triton's interpreter."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from models.ops.kernels import _tried_on
from tests.conftest import ROOT
from tests.tools.builders import randomize, small
from tests.tools.errors import raises
from utils.errors import ConfigError

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def with_kernels(monkeypatch):
    """Switches the kernels on, wherever they may be used, for the rest of a test."""

    def switch():
        for module in ("attend", "layer_norm"):
            monkeypatch.setattr(f"models.ops.{module}.may_use_kernels", lambda x, dtype: x.device.type != "meta")

    return switch


@pytest.mark.seconds
@pytest.mark.parametrize("family", ["swin", "swinv2", "swin_moe"])
def test_a_model_computes_the_same_with_kernels(family, with_kernels):
    """Logits and all gradients, with stochastic depth and a map that windows do not divide."""
    model = randomize(small(family, embed_dim=16, num_heads=(1, 2), drop_path_rate=0.6)).train().to(DEVICE)
    images = torch.randn(3, 3, 20, 16, device=DEVICE)
    results = []
    for other in (model, copy.deepcopy(model)):
        torch.manual_seed(0)
        logits = other(images)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in other.parameters())])
        with torch.no_grad():
            results[-1].append(other.eval()(images))
        with_kernels()
    assert not torch.equal(results[0][0], results[1][0])  # the kernels round differently
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.seconds
@pytest.mark.parametrize("training", [True, False])
def test_norms_have_a_kernel_without_gradients(training, with_kernels, monkeypatch):
    from models.ops import norm_kernel

    model = randomize(small("swin", embed_dim=16, num_heads=(1, 2))).train(training).to(DEVICE)
    calls, launch = [], norm_kernel.layer_norm
    monkeypatch.setattr(norm_kernel, "layer_norm", lambda *a: calls.append(a) or launch(*a))
    images, results = torch.randn(2, 3, 32, 32, device=DEVICE), []
    with torch.set_grad_enabled(training), torch.autocast(DEVICE, torch.bfloat16):
        for switch in (lambda: None, with_kernels):
            switch()
            results.append(model(images).double())
    blocks = sum(len(stage.blocks) for stage in model.stages())
    assert len(calls) == (0 if training else 2 * blocks)
    assert (results[1] - results[0]).norm() < 2e-2 * results[0].norm()


@pytest.mark.seconds
@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_a_module_with_a_hook_is_called(register, with_kernels):
    model = small("swin", embed_dim=16, num_heads=(1, 2)).to(DEVICE)
    with_kernels()
    called = []
    getattr(model.stages()[0].blocks[1].attn, register)(lambda *a: called.append(1))
    model(torch.randn(1, 3, 32, 32, device=DEVICE)).sum().backward()
    assert called == [1]


def test_a_gpu_on_which_triton_does_not_start_goes_without(monkeypatch, caplog):
    monkeypatch.setattr("triton.runtime.driver", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0))
    assert not _tried_on(97)
    assert ["Triton does not start" in record.message for record in caplog.records] == [True]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (7, 5))
    assert not _tried_on(98) and len(caplog.records) == 1


@pytest.mark.parametrize("change", [{"window_size": 9}, {"num_heads": (1, 1)}, {"attn_drop_rate": 0.1}])
def test_options_unsupported_by_the_kernel_are_rejected(change):
    model = small("swin", **{"embed_dim": 32, "num_heads": (2, 4), "img_size": 64, "attention": "kernel", **change})
    with raises(ConfigError, "MODEL.ATTENTION", "64 tokens", "16 or 32 channels", "auto"):
        model.train()(torch.randn(1, 3, 64, 64, device="cpu"))


def test_an_unknown_form_is_rejected():
    with raises(ConfigError, "MODEL.ATTENTION", "'kernal'", "did you mean kernel"):
        small("swin", attention="kernal")


@pytest.mark.seconds
def test_every_kernel_compiles_for_two_generations_of_gpus(tmp_path):
    """Without a GPU; the interpreter accepts more than the compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/models/compile_kernels.py"],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * (2 * 2 + 1)
