"""From each layout to each other: the same bits back, the same outputs in the libraries themselves."""

import pytest
import torch
from torchvision.models import swin_transformer

from configs.arguments import model_arguments
from configs.loading import load_config
from models.errors import WeightsError
from models.registry import build_model
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_weights
from scripts.convert_checkpoint import convert, main
from scripts.peers import build_peer
from tests.conftest import ROOT
from utils.checkpoints.files import read_checkpoint

PEERS = ["timm", "torchvision", "transformers"]
YAML = {
    "swin": "MODEL: {TYPE: swin, SWIN: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4],"
    " WINDOW_SIZE: 4}}",
    "swinv2": "MODEL: {TYPE: swinv2, SWINV2: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4],"
    " WINDOW_SIZE: 4, PRETRAINED_WINDOW_SIZES: [3, 2]}}",
    "swin_mlp": "MODEL: {TYPE: swin_mlp, SWIN_MLP: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4],"
    " WINDOW_SIZE: 4}}",
}


def write(tmp_path, family):
    cfg = tmp_path / f"{family}.yaml"
    cfg.write_text(f"DATA: {{IMG_SIZE: 64}}\n{YAML[family]}")
    model = build_model(family, **model_arguments(load_config(cfg), 7))
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    torch.save({"model": model.state_dict()}, tmp_path / "in.pth")
    return cfg, model.state_dict()


def mm_of(family):
    return "mmpretrain" if family == "swinv2" else "mmdetection"


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("layout", [*PEERS, "mmpretrain"])
@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("windows", ["[3, 2]", "[0, 0]"])
def test_there_and_back_gives_the_same_bits(tmp_path, family, layout, ending, windows):
    cfg, weights = write(tmp_path, family)
    cfg.write_text(cfg.read_text().replace("[3, 2]", windows))
    there, back = tmp_path / f"new/there.{ending}", tmp_path / "back.pth"
    if family == "swinv2" and windows == "[3, 2]" and (layout == "torchvision" or (layout, ending) == LOSES_WINDOWS):
        with pytest.raises(WeightsError, match="window of pre-training"):
            convert(str(cfg), str(tmp_path / "in.pth"), there, layout)
        assert not there.exists()
        return
    lines = convert(str(cfg), str(tmp_path / "in.pth"), there, layout)
    assert (f"{layout}'s output is equal" if layout in PEERS else f"{mm_of(family)} is not installed") in lines[-1]
    assert (
        f"{layout if layout in PEERS else mm_of(family)} layout" in convert(str(cfg), str(there), back, "original")[0]
    )
    again = find_weights(read_checkpoint(back), "x").weights
    assert again.keys() == weights.keys() and all(torch.equal(again[k], v) for k, v in weights.items())
    assert sorted(p.name for p in there.parent.iterdir()) == [there.name]


LOSES_WINDOWS = ("transformers", "pth")


@pytest.mark.parametrize("layout", ["original", "timm", "transformers", "mmpretrain"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_window_of_pre_training_comes_along(tmp_path, layout, ending):
    """A V2 model made for another window answers the same from the converted file, in a config that leaves it open."""
    cfg, weights = write(tmp_path, "swinv2")
    torch.save({"model": weights, "pretrained_windows": [3, 2]}, tmp_path / "in.pth")
    cfg.write_text(cfg.read_text().replace("[3, 2]", "[0, 0]"))
    if (layout, ending) == LOSES_WINDOWS:
        with pytest.raises(WeightsError, match=r"name a \.safetensors file"):
            convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / f"out.{ending}", layout)
        return
    convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / f"out.{ending}", layout)
    found = find_weights(read_checkpoint(tmp_path / f"out.{ending}"), "x")
    assert found.windows == (3, 2)


@pytest.mark.parametrize("out", ["out.safetensors", "out.pth"])
@pytest.mark.parametrize("layout", ["original", "timm", "mmpretrain"])
def test_known_windows_and_class_names_come_along(tmp_path, layout, out):
    """Also windows that are the model's own: another model may load the file."""
    cfg, weights = write(tmp_path, "swinv2")
    cfg.write_text(cfg.read_text().replace("[3, 2]", "[0, 0]"))
    names = list("abcdefg")
    torch.save({"model": weights, "pretrained_windows": [4, 4], "class_names": names}, tmp_path / "in.pth")
    convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / out, layout)
    contents = read_checkpoint(tmp_path / out)
    assert find_weights(contents, "x").windows == (4, 4) and contents["class_names"] == names


def test_what_a_library_cannot_build_is_refused(tmp_path):
    """torchvision keeps its window where the last map is smaller; timm always norms its patches."""
    for change, layout in (("IMG_SIZE: 8", "torchvision"), ("PATCH_NORM: false", "timm")):
        cfg, _ = write(tmp_path, "swin")
        text = cfg.read_text()
        text = text.replace("IMG_SIZE: 64", change) if "IMG" in change else text.replace("WINDOW", f"{change}, WINDOW")
        cfg.write_text(text)
        model = build_model("swin", **model_arguments(load_config(cfg), 7))
        torch.save({"model": model.state_dict()}, tmp_path / "in.pth")
        with pytest.raises(WeightsError, match=f"{layout} cannot build this model"):
            convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / "out.pth", layout)
        assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_torchvision_takes_the_file_strictly(tmp_path, family):
    cfg, _ = write(tmp_path, family)
    cfg.write_text(cfg.read_text().replace("[3, 2]", "[0, 0]"))
    convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / "out.pth", "torchvision")
    v2 = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    peer = swin_transformer.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=7, **(v2 if family == "swinv2" else {})
    )
    peer.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))


def test_half_precision_stays_and_other_sizes_are_refused(tmp_path):
    cfg, weights = write(tmp_path, "swin")
    torch.save({"model": {k: v.half() for k, v in weights.items()}}, tmp_path / "in.pth")
    convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / "out.safetensors", "transformers")
    found = find_weights(read_checkpoint(tmp_path / "out.safetensors"), "x")
    assert all(v.dtype == torch.half and torch.equal(v, weights[k].half()) for k, v in found.weights.items())
    for change in ("WINDOW_SIZE: 2", "WINDOW_SIZE: 4, IN_CHANS: 4"):
        other = tmp_path / "other.yaml"
        other.write_text(cfg.read_text().replace("WINDOW_SIZE: 4", change))
        with pytest.raises(WeightsError, match="of another size than the configuration"):
            convert(str(other), str(tmp_path / "in.pth"), tmp_path / "bad.pth", "timm")
    assert not (tmp_path / "bad.pth").exists()


@pytest.mark.parametrize("out", ["folder.pth", "a.onnx", "a"])
def test_a_bad_name_for_the_output_is_refused_at_once(tmp_path, capsys, out):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["--cfg", "c.yaml", "in.pth", str(tmp_path / out), "--to", "timm"])
    assert caught.value.code == 2 and "name" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    cfg, _ = write(tmp_path, "swin")
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file/out.pth")
    assert main(["--cfg", str(cfg), str(tmp_path / "in.pth"), out, "--to", "timm"]) == 7
    assert f"cannot write the file (File exists): {out}" in capsys.readouterr().err


REAL = {
    "torchvision": ["swin_tiny", "swin_small", "swin_base", "swinv2_tiny", "swinv2_small", "swinv2_base"],
    "transformers": ["swin_tiny", "swinv2_tiny", "swin/swin_base_patch4_window12_384_22kto1k_finetune"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout, names in REAL.items() for name in names])
def test_real_sizes_give_the_peers_outputs(layout, name):
    """fp32 logits equal to 1e-5 (V2: 1e-4), with weights that went through the layout."""
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    arguments = model_arguments(cfg, 100)
    torch.manual_seed(0)
    model = build_model(cfg.MODEL.TYPE, **arguments).eval()
    for p in model.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=0.5, std=0.1)
    stored = LAYOUTS[layout].from_original(model.state_dict())
    peer = build_peer(layout, cfg.MODEL.TYPE, arguments, stored)
    images = torch.randn(1, 3, cfg.DATA.IMG_SIZE, cfg.DATA.IMG_SIZE)
    tolerance = 1e-4 if cfg.MODEL.TYPE == "swinv2" else 1e-5
    with torch.no_grad():
        torch.testing.assert_close(model(images), peer(images), atol=tolerance, rtol=tolerance)
    again = build_model(cfg.MODEL.TYPE, **arguments)
    load_weights(again, find_weights(stored, "x"))
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())


def test_swin_mlp_stays_in_the_original_layout(tmp_path, capsys):
    cfg, _ = write(tmp_path, "swin_mlp")
    arguments = ["--cfg", str(cfg), str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to"]
    assert main([*arguments, "original"]) == 0
    assert main([*arguments, "timm"]) == 4
    assert "error: timm has no Swin-MLP" in capsys.readouterr().err


def test_a_headless_file_is_converted_without_a_head(tmp_path):
    cfg, weights = write(tmp_path, "swin")
    torch.save({k: v for k, v in weights.items() if not k.startswith("head")}, tmp_path / "in.pth")
    convert(str(cfg), str(tmp_path / "in.pth"), tmp_path / "out.pth", "mmdetection")
    found = find_weights(read_checkpoint(tmp_path / "out.pth"), "x")
    assert found.layout.name == "mmdetection" and not any("head" in name for name in found.weights)
