"""Parsing of --device."""

import re

CHOICES = "auto, cpu, cuda, cuda:N (the GPU of that number, also just N) or mps"


def parse_device(text: str) -> str:
    """Returns "auto", "cpu", "cuda", "cuda:N" or "mps"; a number is that of a GPU. Raises: ValueError."""
    name = f"cuda:{text}" if re.fullmatch(r"\d{1,4}", text) else text
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?|mps", name):
        raise ValueError(f"must be one of {CHOICES}")
    return name
