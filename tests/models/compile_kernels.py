"""Compiles the kernels for GPUs that need not be there, outside the interpreter; prints a line for each."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models import residual_kernel, window_kernel

NUMBERS, FACTORS = "*i64", "*fp32"


def compile_for(capability: int, kernel: Any, pointers: dict[str, str], constants: dict[str, Any], floats: str) -> None:
    """Args: pointers, constants: of the arguments with these names; floats: the name of one; the others are int32."""
    types = {**dict.fromkeys(constants, "constexpr"), **pointers, floats: "fp32"}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    print(kernel.__name__, capability, *pointers.values(), *constants.values())


def main() -> None:
    for capability in (80, 90):
        for cosine in (False, True):
            sizes = {"WIDTH": 32, "SIDE": 7, "BLOCK": 64}
            constants = {**sizes, "COSINE": cosine, "COSINE_PRECISION": "tf32x3", "PRECISION": "ieee"}
            half = dict.fromkeys(("qkv", "out", "gradient", "d_qkv"), "*bf16")
            sums = dict.fromkeys(("bias", "scales", "d_bias", "d_scales"), "*fp32")
            compile_for(capability, window_kernel._forward, {**half, **sums}, constants, "scale")
            compile_for(capability, window_kernel._backward, {**half, **sums}, constants, "scale")
        main_branch = dict.fromkeys(("x", "of_all", "d_x", "gradient"), "*fp32")
        branch = dict.fromkeys(("of_normed", "branch", "d_branch"), "*bf16")
        sums = dict.fromkeys(("weight", "bias", "means", "inverses", "d_weight", "d_bias"), "*fp32")
        samples = {"numbers": NUMBERS, "places": NUMBERS, "factors": FACTORS}
        pointers = {**main_branch, **branch, **sums, **samples}
        tile = {"ROWS": 32, "COLS": 128}
        for out, kernel, constants in (
            ("*bf16", residual_kernel._norm_forward, {**tile, "CHOSEN": True}),
            ("", residual_kernel._norm_backward, {**tile, "CHOSEN": True}),
            ("*fp32", residual_kernel._add_forward, tile),
            ("", residual_kernel._add_backward, tile),
        ):
            compile_for(capability, kernel, {**pointers, "out": out}, constants, "eps")


if __name__ == "__main__":
    main()
