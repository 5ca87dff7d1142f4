"""The window attention operator."""

import pytest
import torch

from models.swin import TableWindowAttention
from tests.tools.builders import small

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.seconds
def test_it_is_what_autograd_and_the_compiler_expect():
    from models.ops.window_operator import window_attention

    qkv, bias = torch.randn(2, 8, 8, 3 * 2 * 16, device=DEVICE), torch.randn(2, 16, 16, device=DEVICE)
    for scales in (None, torch.tensor([10.0, 30.0], device=DEVICE, requires_grad=True)):
        given = (qkv.requires_grad_(), bias.requires_grad_(), scales, 0.25, 4, 2, 2)
        torch.library.opcheck(window_attention, given)


@pytest.mark.seconds
def test_compiled_attention_computes_the_same():
    torch.manual_seed(0)
    attention = TableWindowAttention(32, 2, 4, 2, form="kernel").to(DEVICE)
    x = torch.randn(2, 8, 8, 32, device=DEVICE, requires_grad=True)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    results = []
    for run in (attention, compiled):
        out = run(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *attention.parameters()])])
    torch.testing.assert_close(*results)


@pytest.mark.seconds
def test_an_exported_model_consists_of_torch_operators_alone():
    model = small("swin", embed_dim=32, num_heads=(2, 4), attention="kernel").eval().to(DEVICE)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32, device=DEVICE),))
    assert "swin_trainer" not in str(program.graph)
