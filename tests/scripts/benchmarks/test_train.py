"""The whole program is timed by its own log."""

import argparse

import pytest

from scripts.benchmarks import train
from tests.conftest import ROOT
from utils.errors import ResourceError

OPTIONS = argparse.Namespace(model="swin_tiny", batch_size=2, size=32, threads=1)


@pytest.mark.seconds
def test_the_program_trains_on_random_pixels_and_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "UPDATES", 2)
    recipe = ROOT / "configs" / "swin_tiny.yaml"
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(f"BASE: [{recipe}]\nMODEL: {{NAME: t, SWIN: {{EMBED_DIM: 12, NUM_HEADS: [1, 2, 3, 4]}}}}\n")
    assert train._program(tiny, OPTIONS, str(tmp_path), 1) > 0
    with pytest.raises(ResourceError, match="the training ended early: error: no such configuration"):
        train._program(tmp_path / "none.yaml", OPTIONS, str(tmp_path), 1)
