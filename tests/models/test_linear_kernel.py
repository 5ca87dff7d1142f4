"""The kernels of linear layers beside float64; on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def deviation(values, reference):
    return ((values.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("shape", [(3, 40), (100, 128), (70, 200)], ids=str)
def test_column_sums_and_the_gradient_of_gelu(shape, dtype):
    from models.linear_kernel import column_sums, gelu_gradients

    torch.manual_seed(0)
    hidden, gradient = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    exact = hidden.double().requires_grad_()
    activated = F.gelu(exact)
    (expected,) = torch.autograd.grad(activated, exact, gradient.double())
    assert deviation(column_sums(hidden), hidden.double().sum(0)) < LIMITS[dtype]
    ours, sums = gelu_gradients(hidden, gradient)
    for values, reference in ((ours, activated), (gradient, expected), (sums, expected.sum(0))):
        assert values.dtype == dtype and deviation(values, reference.detach()) < LIMITS[dtype]
