"""Tests; by default on the CPU, with CUDA_VISIBLE_DEVICES=0 also those marked cuda."""

import os

# bit-equality is promised on CPUs, and two ranks do not fit on one GPU
if not os.environ.setdefault("CUDA_VISIBLE_DEVICES", ""):
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
