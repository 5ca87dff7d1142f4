"""Exported files are opened with what they say of themselves."""

import pytest
import torch

from scripts.exported_model import Exported, open_exported
from tests.tools.errors import raises
from utils.errors import CheckpointError


def test_a_fixed_batch_is_padded():
    seen = []
    model = Exported(lambda images: (seen.append(len(images)), images.flatten(1).sum(1, keepdim=True))[1], batch=4)
    for count in (1, 4, 6):
        images = torch.randn(count, 3, 2, 2)
        torch.testing.assert_close(model(images), images.flatten(1).sum(1, keepdim=True))
    assert seen == [4, 4, 4, 4]
    assert Exported(lambda images: images, batch=0)(torch.ones(7, 1)).shape == (7, 1)


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_other_files_are_rejected(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    with raises(CheckpointError, path, "No such file"):
        open_exported(path)
    path.write_bytes(b"nothing")
    with raises(CheckpointError, path, "not an "):
        open_exported(path)


def test_a_file_without_notes_is_rejected(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "bare.pt2")
    with raises(CheckpointError, tmp_path / "bare.pt2", "scripts/export.py"):
        open_exported(tmp_path / "bare.pt2")
