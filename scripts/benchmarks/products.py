"""The matrix products of a step alone, an upper limit for its speed on a CPU.

The shapes of all products are recorded during a step. The same products are then computed on other matrices, one after
the other, each by MKL or by oneDNN, whichever is faster for its shape.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.ops.linear import has_onednn, laid_out_for, linear_in

TRIALS = 3  # of each form


class Product(NamedTuple):
    """left (batch, rows, inner) @ right (batch, inner, cols); `transposed`: whether left and right are, in memory."""

    batch: int
    rows: int
    inner: int
    cols: int
    transposed: tuple[bool, bool]
    dtype: torch.dtype

    @staticmethod
    def of(left: Tensor, right: Tensor) -> "Product":
        """Args: both (rows, inner) and (inner, cols), or with a batch dimension."""
        batch = left.shape[0] if left.ndim == 3 else 1
        transposed = (left.stride(-1) != 1, right.stride(-1) != 1)
        rows, inner = left.shape[-2:]
        return Product(batch, rows, inner, right.shape[-1], transposed, left.dtype)


class ProductRecorder(TorchDispatchMode):
    """Counts the matrix products of everything called within it, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        record = _RECORDED.get(func._schema.name.removeprefix("aten::"))
        if record is not None:
            self.products.update(record(result, *args))
        return result


def _product(_: Tensor, left: Tensor, right: Tensor, *rest: Any) -> list[Product]:
    return [Product.of(left, right)]


def _sum(_: Tensor, term: Tensor, left: Tensor, right: Tensor, *rest: Any) -> list[Product]:
    return [Product.of(left, right)]


def _linear(out: Tensor, x: Tensor, *rest: Any) -> list[Product]:
    rows, inner = x.numel() // x.shape[-1], x.shape[-1]  # the weight may be in oneDNN's layout
    return [Product(1, rows, inner, out.shape[-1], (False, True), x.dtype)]


def _attention(_: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[Product]:
    batch, heads, tokens, width = query.shape
    size, others = batch * heads, key.shape[2]
    scores = Product(size, tokens, width, others, (False, True), query.dtype)
    return [scores, Product(size, tokens, others, value.shape[3], (False, False), query.dtype)]


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Product]:
    channels, inner = len(weight), weight[0].numel()
    return [Product(1, out.numel() // channels, inner, channels, (False, True), x.dtype)]


def _convolution_backward(out: Any, gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Product]:
    positions, channels, inner = gradient.numel() // len(weight), len(weight), weight[0].numel()
    of_weight = Product(1, channels, positions, inner, (True, False), x.dtype)
    of_input = Product(1, positions, channels, inner, (False, False), x.dtype)
    return [product for product, made in ((of_input, out[0]), (of_weight, out[1])) if made is not None]


_RECORDED: Mapping[str, Callable[..., list[Product]]] = {
    "mm": _product,
    "bmm": _product,
    "addmm": _sum,
    "baddbmm": _sum,
    "mkldnn::_linear_pointwise": _linear,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}


class ProductTimer:
    """Times recorded products; remembers the faster form of each shape.

    Args: fixed: the right factor is a weight that does not change, and may be laid out in advance.
    """

    def __init__(self, fixed: bool) -> None:
        self._fixed = fixed
        self._faster: dict[Product, str] = {}

    def seconds(self, products: Mapping[Product, int]) -> float:
        """Returns the time of all products. Args: products: {product: how often}."""
        total = 0.0
        for product, count in products.items():
            forms = _forms(product, self._fixed)
            # stochastic depth varies the number of rows, which hardly affects the choice
            shape = product._replace(batch=1, rows=0) if not product.transposed[0] else product._replace(inner=0)
            if shape not in self._faster:
                self._faster[shape] = min(forms, key=lambda form: min(_timed(forms[form], 1) for _ in range(TRIALS)))
            run = forms[self._faster[shape]]
            run()  # the first call touches the memory
            total += _timed(run, count)
        return total


def _timed(run: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - begun


def _forms(product: Product, fixed: bool) -> dict[str, Callable[[], Any]]:
    batch, rows, inner, cols, transposed, dtype = product
    left = _matrix((batch, rows, inner), transposed[0], dtype)
    right = _matrix((batch, inner, cols), transposed[1], dtype)
    if product.batch > 1:
        out = left.new_empty(batch, rows, cols)
        return {"mkl": partial(torch.bmm, left, right, out=out)}
    left, right = left[0], right[0]
    forms: dict[str, Callable[[], Any]] = {"mkl": partial(torch.mm, left, right, out=left.new_empty(rows, cols))}
    if has_onednn(left):
        weight = laid_out_for("onednn", right.t().contiguous(), rows) if fixed else right.t()
        forms["onednn"] = partial(linear_in, "onednn", left, weight, None, False)
    return forms


def _matrix(shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype) -> Tensor:
    batch, rows, cols = shape
    if transposed:
        return torch.full((batch, cols, rows), 0.5, dtype=dtype).transpose(1, 2)
    return torch.full(shape, 0.5, dtype=dtype)
