"""The matrix products of a step, as recorded and timed."""

from math import prod

import torch

from models.ops.linear import Linear
from scripts.benchmarks import products
from scripts.benchmarks.products import Product, ProductRecorder, ProductTimer
from tests.tools.builders import small
from utils.eval_cache import keep_derived

FLOAT = torch.float32


def test_products_are_recorded_forward_and_backward():
    x, layer = torch.randn(2, 5, 4, requires_grad=True), Linear(4, 3)
    with ProductRecorder() as recorder:
        layer(x).sum().backward()
    sizes = sorted((p.rows, p.inner, p.cols) for p in recorder.products.elements())
    assert sizes == [(3, 10, 4), (10, 3, 4), (10, 4, 3)]
    with torch.no_grad(), keep_derived(), ProductRecorder() as recorder:
        layer(x)  # with a weight in oneDNN's layout
        torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 2, 6, 7, 8))
        torch.nn.functional.conv2d(torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4), stride=4)
    sizes = [(p.batch, p.rows, p.inner, p.cols) for p in recorder.products.elements()]
    assert sizes == [(1, 10, 4, 3), (12, 7, 8, 7), (12, 7, 7, 8), (1, 8, 48, 5)]


def test_a_training_step_has_three_products_for_each_of_the_forward_pass():
    """But for the images, which get no gradient."""
    model, images = small(depths=(1, 1), num_heads=(1, 2)).train(), torch.randn(2, 3, 32, 32)
    with ProductRecorder() as recorder:
        model(images).sum().backward()
    forward = ProductRecorder()
    with torch.no_grad(), forward:
        model.eval()(images)
    first = 2 * (32 // model.options.patch_size) ** 2 * 3 * model.options.patch_size**2 * model.options.embed_dim
    assert _operations(recorder) == 3 * _operations(forward) - first


def _operations(recorder):
    return sum(count * prod(p[:4]) for p, count in recorder.products.items())


def test_each_product_is_timed_in_its_faster_form(monkeypatch):
    calls = []
    clock = {"mkl": 2.0, "onednn": 1.0}
    monkeypatch.setattr(
        products, "_forms", lambda product, fixed: {form: lambda f=form: calls.append(f) for form in clock}
    )
    monkeypatch.setattr(products, "_timed", lambda run, count: run() or count * clock[calls[-1]])
    timer = ProductTimer(fixed=True)
    some = Product(1, 8, 4, 3, (False, True), FLOAT)
    assert timer.seconds({some: 5, some._replace(rows=9): 2, some._replace(cols=6): 1}) == 8.0
    assert calls.count("mkl") == 2 * products.TRIALS  # once for each shape but for the rows


def test_the_forms_compute_the_product():
    for fixed in (False, True):
        for transposed in ((False, True), (True, False), (False, False)):
            forms = products._forms(Product(1, 6, 5, 4, transposed, FLOAT), fixed)
            assert set(forms) == {"mkl", "onednn"}
            for run in forms.values():
                torch.testing.assert_close(run(), torch.full((6, 4), 5 * 0.25))
    assert products._forms(Product(3, 6, 5, 4, (False, True), FLOAT), True)["mkl"]().shape == (3, 6, 4)
