"""Foreign files: what is read, and what is refused before it costs anything."""

import argparse
import datetime
import importlib
import os
import subprocess
import sys
import types
import zipfile
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from yacs.config import CfgNode

from tests.tools.errors import raises
from utils.checkpoints.safe_load import load_tensors
from utils.errors import CheckpointError

STATE = {"norm.weight": torch.arange(4.0)}


def test_safetensors_and_pth_hold_the_same(tmp_path):
    torch.save({"model": STATE}, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "a.safetensors")
    assert torch.equal(load_tensors(tmp_path / "a.pth")["model"]["norm.weight"], STATE["norm.weight"])
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["norm.weight"], STATE["norm.weight"])


def test_notes_in_the_head_of_a_safetensors_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for note, found in (('{"class_names": ["a"]}', ["a"]), ("[1]", None), ("tiny", None)):
        save_file(STATE, path, metadata={"format": "pt", "swin": note})
        assert load_tensors(path).get("class_names") == found
    save_file(STATE, path, metadata={"format": "pt", "swin": '{"preprocessing": {}}'})
    with raises(CheckpointError, path, "corrupt"):
        load_tensors(path)


def test_a_configuration_pickled_by_the_original_is_read_as_plain_values(tmp_path):
    cfg = CfgNode({"TRAIN": {"EPOCHS": 300}})
    cfg.freeze()
    torch.save({"model": STATE, "config": cfg, "epoch": 299}, tmp_path / "a.pth")
    contents = load_tensors(tmp_path / "a.pth")
    assert not isinstance(contents["config"], CfgNode) and contents["config"]["TRAIN"]["EPOCHS"] == 300


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"\xff" * 8 + b"{}", (10**12).to_bytes(8, "little") + b"{", b"\x02" + bytes(7) + b"{}"]
)
def test_fault_20_malformed_safetensors_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    if content.endswith(b"\x00{}"):  # the one that is well-formed, and empty
        assert load_tensors(path) == {}
        return
    with raises(CheckpointError, path):
        load_tensors(path)


@pytest.mark.seconds
def test_fault_20_a_zip_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(200 << 20))
    assert path.stat().st_size < 1 << 20
    with raises(CheckpointError, path, "209,715,2"):
        load_tensors(path)


def test_fault_20_a_tensor_that_claims_more_than_it_holds_is_refused(tmp_path):
    torch.save({"model": {"norm.weight": torch.zeros(1).expand(10**12)}}, tmp_path / "a.pth")
    with raises(CheckpointError, tmp_path / "a.pth", "model.norm.weight", "storage"):
        load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("odd", [torch.zeros(3, device="meta"), torch.eye(3).to_sparse()])
def test_tensors_without_plain_values_are_refused(tmp_path, odd):
    torch.save({"model": {"norm.weight": odd}}, tmp_path / "a.pth")
    with raises(CheckpointError, tmp_path / "a.pth", "model.norm.weight", "dense"):
        load_tensors(tmp_path / "a.pth")


def test_what_timm_puts_beside_its_weights_is_read(tmp_path):
    beside = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(81.2), "best": np.float32(3)}
    torch.save({"state_dict": STATE, **beside}, tmp_path / "a.pth")
    contents = load_tensors(tmp_path / "a.pth")
    assert contents["metric"] == 81.2 and contents["args"].lr == 0.1


def test_damaged_bytes_never_end_in_a_traceback(tmp_path):
    generator = torch.Generator().manual_seed(0)
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "good.pth", _use_new_zipfile_serialization=False)
    good, path = (tmp_path / "good.pth").read_bytes(), tmp_path / "bad.pth"
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for place in torch.randint(len(bad), (4,), generator=generator).tolist():
            bad[place] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(bad)
        try:
            load_tensors(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_objects_of_libraries_next_to_the_weights_are_read_as_placeholders(tmp_path):
    """As mmengine's history, NumPy's random state, paths and dates; the classes are not imported."""
    others = {
        "random_state": np.random.default_rng(0).bit_generator.state,
        "legacy": np.random.get_state(),
        "array": np.arange(3),
        "path": Path("/data"),
        "date": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "counts": Counter("ab"),
        "log": defaultdict(list, loss=[1.0]),
        "queue": deque([1, 2], 3),
    }
    for name, value in others.items():
        torch.save({"state_dict": STATE, name: value}, tmp_path / f"{name}.pth")
        contents = load_tensors(tmp_path / f"{name}.pth")
        assert torch.equal(contents["state_dict"]["norm.weight"], STATE["norm.weight"])


def test_an_object_of_a_library_is_not_run(tmp_path, monkeypatch):
    """The stand-in for a class of mmengine, which is not installed."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.history = [1.0]

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"state_dict": STATE, "message_hub": {"loss": HistoryBuffer()}}, tmp_path / "a.pth")
    monkeypatch.undo()
    contents = load_tensors(tmp_path / "a.pth")
    assert "mmengine" not in sys.modules and not isinstance(contents["message_hub"]["loss"], HistoryBuffer)


@pytest.mark.parametrize("call", [os.system, eval, subprocess.run, importlib.import_module])
def test_what_no_library_stores_is_refused(tmp_path, call):
    class Attack:
        def __reduce__(self):
            return call, (f"touch {tmp_path}/done",)

    torch.save({"state_dict": STATE, "x": Attack()}, tmp_path / "a.pth")
    with raises(CheckpointError, tmp_path / "a.pth", call.__name__):
        load_tensors(tmp_path / "a.pth")
    assert not (tmp_path / "done").exists()


def test_the_contents_of_a_file_are_checked(tmp_path):
    """See test_contents.py for what is checked."""
    looped = {"state_dict": STATE}
    looped["x"] = looped
    ours = {"model": STATE, "optimizer": {}, "counters": {"step": None, "update": -1}, "means": {}}
    for contents in (looped, ours):
        torch.save(contents, tmp_path / "a.pth")
        with raises(CheckpointError, tmp_path / "a.pth"):
            load_tensors(tmp_path / "a.pth")
    torch.save({"state_dict": STATE, "best": 81.2, "counters": [1]}, tmp_path / "a.pth")
    assert load_tensors(tmp_path / "a.pth").keys() == {"state_dict"}
