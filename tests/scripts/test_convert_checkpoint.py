"""From each layout to each other: the same bits back, the same outputs in the libraries themselves."""

import pytest
import torch
from torchvision.models import swin_transformer

from configs.loading import load_config
from models.registry import build, model_options
from models.weights.load import find_weights
from scripts.convert_checkpoint import convert, main
from tests.tools.errors import raises
from utils.checkpoints.files import read_checkpoint
from utils.errors import CheckpointError, ConfigError

PEERS = ["timm", "torchvision", "transformers"]
SIZES = "PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4"
YAML = {
    "swin": f"MODEL: {{TYPE: swin, SWIN: {{{SIZES}}}}}",
    "swinv2": f"MODEL: {{TYPE: swinv2, SWINV2: {{{SIZES}, PRETRAINED_WINDOW_SIZES: [3, 2]}}}}",
    "swin_mlp": f"MODEL: {{TYPE: swin_mlp, SWIN_MLP: {{{SIZES}}}}}",
    "swin_moe": f"MODEL: {{TYPE: swin_moe, SWIN_MOE: {{{SIZES}, NUM_EXPERTS: 3, MOE_BLOCKS: [[1], [0]]}}}}",
}


def write(folder, family, *changes):
    """Writes a recipe, with (old, new) `changes` of its text, and random weights of seven classes as in.pth.

    Returns: the path of the recipe, and the weights.
    """
    cfg = folder / f"{family}.yaml"
    text = f"DATA: {{IMG_SIZE: 64}}\n{YAML[family]}"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    cfg.write_text(text)
    model = build(model_options(load_config(cfg)), 7)
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    torch.save({"model": model.state_dict()}, folder / "in.pth")
    return str(cfg), model.state_dict()


OPEN = ("[3, 2]", "[0, 0]")  # windows of pre-training: as in the file


def mm_of(family):
    return "mmpretrain" if family == "swinv2" else "mmdetection"


# what cannot store a window of pre-training
LOSES_WINDOWS = ("transformers", "pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("layout", [*PEERS, "mmpretrain"])
@pytest.mark.parametrize(("family", "windows"), [("swin", None), ("swinv2", "[3, 2]"), ("swinv2", "[0, 0]")])
def test_there_and_back_gives_the_same_bits(tmp_path, family, layout, ending, windows):
    cfg, weights = write(tmp_path, family, *([("[3, 2]", windows)] if windows else []))
    there, back = tmp_path / f"new/there.{ending}", tmp_path / "back.pth"
    if windows == "[3, 2]" and (layout == "torchvision" or (layout, ending) == LOSES_WINDOWS):
        with raises(CheckpointError, "--to" if layout == "torchvision" else there, "pre-training window"):
            convert(cfg, str(tmp_path / "in.pth"), there, layout)
        assert not there.exists()
        return
    lines = convert(cfg, str(tmp_path / "in.pth"), there, layout)
    name = layout if layout in PEERS else mm_of(family)
    compared = f"outputs equal {name}'s to" if layout in PEERS else f"outputs not compared: {layout} is not installed"
    assert lines[-1].startswith(f"verified: bit-identical when read back; {compared}")
    assert f"{name} layout" in convert(cfg, str(there), back, "original")[0]
    again = find_weights(read_checkpoint(back), "x").weights
    assert again.keys() == weights.keys() and all(torch.equal(again[k], v) for k, v in weights.items())
    assert sorted(p.name for p in there.parent.iterdir()) == [there.name]


@pytest.mark.parametrize("layout", ["original", "timm", "transformers", "mmpretrain"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_window_of_pre_training_is_stored(tmp_path, layout, ending):
    """The converted file of a V2 model for other windows gives the same model in a recipe that leaves it open."""
    cfg, weights = write(tmp_path, "swinv2", OPEN)
    torch.save({"model": weights, "pretrained_windows": [3, 2]}, tmp_path / "in.pth")
    if (layout, ending) == LOSES_WINDOWS:
        with raises(CheckpointError, tmp_path / f"out.{ending}", ".safetensors"):
            convert(cfg, str(tmp_path / "in.pth"), tmp_path / f"out.{ending}", layout)
        return
    convert(cfg, str(tmp_path / "in.pth"), tmp_path / f"out.{ending}", layout)
    found = find_weights(read_checkpoint(tmp_path / f"out.{ending}"), "x")
    assert found.windows == (3, 2)


@pytest.mark.parametrize("out", ["out.safetensors", "out.pth"])
@pytest.mark.parametrize("layout", ["original", "timm", "mmpretrain"])
def test_known_windows_class_names_and_preprocessing_are_stored(tmp_path, layout, out):
    """Also windows equal to the model's: another model may load the file."""
    cfg, weights = write(tmp_path, "swinv2", OPEN, ("IMG_SIZE: 64", "IMG_SIZE: 64, MEAN: [0.1, 0.2, 0.3]"))
    names = list("abcdefg")
    torch.save({"model": weights, "pretrained_windows": [4, 4], "class_names": names}, tmp_path / "in.pth")
    convert(cfg, str(tmp_path / "in.pth"), tmp_path / out, layout)
    contents = read_checkpoint(tmp_path / out)
    assert find_weights(contents, "x").windows == (4, 4) and contents["class_names"] == names
    assert contents["preprocessing"] == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize("layout", ["torchvision", "transformers"])
def test_a_pth_file_of_tensors_alone_reports_the_loss_of_class_names(tmp_path, layout):
    cfg, weights = write(tmp_path, "swin")
    torch.save({"model": weights, "class_names": list("abcdefg")}, tmp_path / "in.pth")
    lines = convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.pth", layout)
    assert "(it cannot store the class names)" in lines[1]
    assert all(isinstance(value, torch.Tensor) for value in read_checkpoint(tmp_path / "out.pth").values())


@pytest.mark.parametrize(
    ("change", "layout"),
    [(("IMG_SIZE: 64", "IMG_SIZE: 8"), "torchvision"), (("WINDOW_SIZE", "PATCH_NORM: false, WINDOW_SIZE"), "timm")],
)
def test_a_model_that_a_library_cannot_build_is_rejected(tmp_path, change, layout):
    """torchvision keeps its window where the last map is smaller; timm always norms its patches."""
    cfg, _ = write(tmp_path, "swin", change)
    with raises(CheckpointError, "--to", layout):
        convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.pth", layout)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("family", "change", "layout", "names"),
    [
        ("swinv2", None, "mmdetection", ["mmdetection", "Swin V2", "mmpretrain"]),
        ("swin", "APE: true", "timm", ["timm", "absolute position embedding"]),
        ("swin", "APE: true", "torchvision", ["torchvision", "absolute position embedding"]),
        ("swin", "QK_SCALE: 0.5", "transformers", ["transformers", "QK_SCALE"]),
    ],
)
def test_a_model_that_a_layout_cannot_represent_is_rejected(tmp_path, family, change, layout, names):
    cfg, _ = write(tmp_path, family, *([("WINDOW_SIZE", f"{change}, WINDOW_SIZE")] if change else []))
    with raises(CheckpointError, "--to", *names):
        convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.pth", layout)
    assert not (tmp_path / "out.pth").exists()


def test_a_recipe_of_a_timm_model_is_rejected(tmp_path):
    write(tmp_path, "swin")
    (tmp_path / "timm.yaml").write_text("MODEL: {TYPE: timm, TIMM: {NAME: resnet10t}}")
    with raises(ConfigError, "--cfg", tmp_path / "timm.yaml", "Swin"):
        convert(str(tmp_path / "timm.yaml"), str(tmp_path / "in.pth"), tmp_path / "out.pth", "timm")


@pytest.mark.parametrize("name", ["mmpretrain", "mmsegmentation", "swin2mmseg"])
def test_a_library_with_the_layout_of_another_keeps_its_name(tmp_path, capsys, name):
    cfg, _ = write(tmp_path, "swin")
    assert main(["--cfg", cfg, str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to", name]) == 0
    out = capsys.readouterr().out
    assert f"in the layout of {name}" in out and f"{name} is not installed" in out and "mmdetection" not in out


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_torchvision_loads_the_file_strictly(tmp_path, family):
    cfg, _ = write(tmp_path, family, *([OPEN] if family == "swinv2" else []))
    convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.pth", "torchvision")
    v2 = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    peer = swin_transformer.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=7, **(v2 if family == "swinv2" else {})
    )
    peer.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))


def test_half_precision_is_preserved_and_other_sizes_are_rejected(tmp_path):
    cfg, weights = write(tmp_path, "swin")
    torch.save({"model": {k: v.half() for k, v in weights.items()}}, tmp_path / "in.pth")
    convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.safetensors", "transformers")
    found = find_weights(read_checkpoint(tmp_path / "out.safetensors"), "x")
    assert all(v.dtype == torch.half and torch.equal(v, weights[k].half()) for k, v in found.weights.items())
    (tmp_path / "others").mkdir()
    for change in ("WINDOW_SIZE: 2", "WINDOW_SIZE: 4, IN_CHANS: 4"):
        other, _ = write(tmp_path / "others", "swin", ("WINDOW_SIZE: 4", change))
        with raises(CheckpointError, tmp_path / "in.pth", " for ", "--cfg"):
            convert(other, str(tmp_path / "in.pth"), tmp_path / "bad.pth", "timm")
    assert not (tmp_path / "bad.pth").exists()


@pytest.mark.parametrize("out", ["folder.pth", "a.onnx", "a"])
def test_a_bad_name_for_the_output_is_rejected_at_once(tmp_path, capsys, out):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["--cfg", "c.yaml", "in.pth", str(tmp_path / out), "--to", "timm"])
    assert caught.value.code == 2 and "name" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    cfg, _ = write(tmp_path, "swin")
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file/out.pth")
    assert main(["--cfg", cfg, str(tmp_path / "in.pth"), out, "--to", "timm"]) == 7
    assert capsys.readouterr().err.startswith(f"error: {out}: ")


@pytest.mark.parametrize(("family", "title"), [("swin_mlp", "Swin-MLP"), ("swin_moe", "Swin-MoE")])
def test_a_family_of_no_other_library_stays_in_the_original_layout(family, title, tmp_path, capsys):
    cfg, _ = write(tmp_path, family)
    arguments = ["--cfg", cfg, str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--to"]
    assert main([*arguments, "original"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert main([*arguments, "timm"]) == 4
    assert f"error: --to: timm has no {title}" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["mmdetection", "timm"])
def test_a_headless_file_is_converted_without_a_head(tmp_path, layout):
    cfg, weights = write(tmp_path, "swin")
    torch.save({k: v for k, v in weights.items() if not k.startswith("head")}, tmp_path / "in.pth")
    lines = convert(cfg, str(tmp_path / "in.pth"), tmp_path / "out.pth", layout)
    found = find_weights(read_checkpoint(tmp_path / "out.pth"), "x")
    assert found.layout.name == layout and not any("head" in name for name in found.weights)
    assert ("outputs equal timm's" in lines[-1]) == (layout == "timm")
