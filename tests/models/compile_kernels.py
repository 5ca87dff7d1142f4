"""Compiles the kernels for GPUs that need not be present, without the interpreter; prints a line for each."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.ops import norm_kernel, window_kernel


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
        pointers = {"x": "*bf16", "weight": "*fp32", "bias": "*fp32", "out": "*bf16"}
        compile_for(capability, norm_kernel._norm, pointers, {"ROWS": 32, "COLS": 128}, "eps")


if __name__ == "__main__":
    main()
