"""Foreign weights through the program: evaluated, fine-tuned, reported."""

import csv
import hashlib
import json
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
import timm
import torch
import torch.nn.functional as F
from configs.arguments import model_arguments
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from configs.loading import load_config
from data.pipeline.device import Finish, Pixels
from data.pipeline.transforms import EvalTransform
from models.registry import build_model
from models.weights.class_maps import rows_of_1k
from tests.builders import write_photos
from tests.conftest import ROOT, accuracy, run_program

SYNSETS = ImageNetInfo("imagenet-1k").label_names()
FINETUNE = ROOT / "configs/swin/swin_tiny_patch4_window7_224_22kto1k_finetune.yaml"


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Three of ImageNet's classes, labels 850, 3 and 700, with five photographs each in val/ and one in train/."""
    root = write_photos(tmp_path_factory.mktemp("imagenet"), classes=3, train=1, val=5, size=64)
    for part in ("train", "val"):
        for i, label in enumerate((850, 3, 700)):
            (root / part / f"class_{i}").rename(root / part / SYNSETS[label])
    for number, file in enumerate(sorted((root / "val").rglob("*.jpg"))):
        file.rename(file.with_name(f"ILSVRC2012_val_{number + 1:08d}.JPEG"))
    return root


def by_hand(model, root, size, crop=True):
    """Correct answers and mean loss over val/, image by image."""
    transform, correct, losses = EvalTransform(size, interpolation="bicubic", crop=crop), 0, []
    finish = Finish(3, torch.device("cpu"))
    with torch.no_grad():
        for file in sorted((root / "val").rglob("*.JPEG")):
            label = SYNSETS.index(file.parent.name)
            pixels = torch.from_numpy(transform(file.read_bytes(), str(file)).pixels)
            logits = model(finish(Pixels(pixels[None], torch.zeros(0, 6, dtype=torch.int64))))[0]
            correct += int(logits.argmax()) == label
            losses.append(F.cross_entropy(logits, torch.tensor(label)).item())
    return correct, sum(losses) / len(losses)


def random_weights(path, cfg_path, classes, size):
    """A model with weights large enough to tell images apart, saved as the original would."""
    cfg = load_config(cfg_path, [("DATA.IMG_SIZE", size, "test")])
    torch.manual_seed(0)
    model = build_model(cfg.MODEL.TYPE, **model_arguments(cfg, classes)).eval()
    for name, p in model.named_parameters():
        if p.ndim == 1 and "norm" in name:
            torch.nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    torch.save({"model": model.state_dict()}, path)
    return model


@pytest.mark.slow
def test_a_22k_file_is_evaluated_and_fine_tuned_with_the_mapped_head(imagenet, tmp_path):
    """The first evaluation of a run that does not move (learning rate 0) is that of the head mapped by hand."""
    source = random_weights(tmp_path / "22k.pth", FINETUNE, 21841, 56)
    head = torch.nn.Linear(768, 1000)
    rows = torch.tensor(rows_of_1k())
    head.weight.data, head.bias.data = source.head.weight.data[rows], source.head.bias.data[rows]
    source.head = head
    correct, loss = by_hand(source, imagenet, 56)

    common = ["--cfg", FINETUNE, "--disable_amp", "--opts", "DATA.IMG_SIZE", 56, "DATA.NUM_WORKERS", 1]
    done = run_program(*common, "--eval", "--resume", tmp_path / "22k.pth", "--data-path", imagenet)
    assert done.code == 0, done.err
    assert "head mapped from 22K to 1K classes" in done.out and accuracy(done.out) == (correct, 15)

    data = tmp_path / "data"
    (data / "val").parent.mkdir()
    (data / "val").symlink_to(imagenet / "val")
    for synset in SYNSETS:
        (data / "train" / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(synset), 99, 7)).save(data / "train" / synset / "a.png")
    still = ["TRAIN.BASE_LR", 0, "TRAIN.WARMUP_LR", 0, "TRAIN.MIN_LR", 0, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    done = run_program(
        *(*common, *still, "--pretrained", tmp_path / "22k.pth", "--data-path", data, "--output", tmp_path / "out"),
        processes=2,
    )
    assert done.code == 0, done.err
    metrics = next((tmp_path / "out").rglob("metrics.jsonl")).read_text().splitlines()
    val = json.loads(metrics[-1])
    assert (val["correct1"], val["count"]) == (correct, 15) and val["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_released_v2_file_is_evaluated_as_the_readme_says(imagenet, tmp_path):
    cfg = ROOT / "configs/swinv2_tiny.yaml"
    model = random_weights(tmp_path / "v2.pth", cfg, 1000, 256)
    correct, _ = by_hand(model, imagenet, 256)
    tables = ["TEST.RESULTS", tmp_path / "r.csv", "TEST.PER_CLASS", tmp_path / "c.csv", "TEST.REAL", True]
    done = run_program(
        *("--eval", "--cfg", cfg, "--resume", f"{tmp_path / 'v2.pth'},{tmp_path / 'v2.pth'}", "--data-path", imagenet),
        *("--disable_amp", "--opts", "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 8, *tables),
    )
    assert done.code == 0, done.err
    assert accuracy(done.out) == (correct, 15) and done.out.count(" * Acc@1") == 2 and "ReaL Acc@1" in done.out
    assert len(list(csv.DictReader((tmp_path / "r.csv").open()))) == 2
    assert {r["class"] for r in csv.DictReader((tmp_path / "c.csv").open())} == {SYNSETS[i] for i in (850, 3, 700)}


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory):
    """A small Swin for images of 64 pixels, with random weights of 1000 classes."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(
        "DATA: {IMG_SIZE: 64, NUM_WORKERS: 0}\nMODEL: {SWIN: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2],"
        " NUM_HEADS: [2, 4], WINDOW_SIZE: 8}}\n"
    )
    model = random_weights(folder / "w.pth", folder / "small.yaml", 1000, 64)
    return folder / "small.yaml", folder / "w.pth", model


def test_other_test_sizes_and_crops_are_those_by_hand(imagenet, small_recipe, tmp_path):
    cfg, weights, model = small_recipe
    losses = set()
    for size, crop in ((64, True), (96, True), (50, True), (64, False)):
        options = ["TEST.IMG_SIZE", size, "TEST.CROP", crop, "TEST.RESULTS", tmp_path / "r.csv"]
        done = run_program(
            "--eval", "--cfg", cfg, "--resume", weights, "--data-path", imagenet, "--disable_amp", "--opts", *options
        )
        assert done.code == 0, done.err
        row = next(csv.DictReader((tmp_path / "r.csv").open()))
        correct, loss = by_hand(model, imagenet, size, crop)
        assert accuracy(done.out) == (correct, 15) and row["size"] == str(size)
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-5)
        losses.add(row["loss"])
    assert len(losses) == 4


def test_a_bad_file_after_a_good_one_loses_no_results(imagenet, small_recipe, tmp_path):
    cfg, weights, _ = small_recipe
    done = run_program(
        *("--eval", "--cfg", cfg, "--resume", f"{weights}, gone.pth,", "--data-path", imagenet),
        *("--opts", "TEST.RESULTS", tmp_path / "r.csv"),
    )
    assert done.code == 4 and "gone.pth" in done.error
    assert [row["name"] for row in csv.DictReader((tmp_path / "r.csv").open())] == [str(weights)]


def test_weights_behind_an_address_are_fetched_by_one_process(imagenet, small_recipe, tmp_path):
    cfg, weights, model = small_recipe
    asked = []

    class Counting(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(weights.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = run_program(
        *("--eval", "--cfg", cfg, "--resume", f"http://127.0.0.1:{server.server_port}/w.pth"),
        *("--data-path", imagenet, "--disable_amp"),
        processes=2,
        TORCH_HOME=str(tmp_path),
    )
    server.shutdown()
    assert done.code == 0, done.err
    assert asked == ["/w.pth"] and accuracy(done.out) == (by_hand(model, imagenet, 64)[0], 15)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in done.out and [p.name for p in (tmp_path / "hub/checkpoints").iterdir()] == [
        f"w-{hashlib.sha256(f'http://127.0.0.1:{server.server_port}/w.pth'.encode()).hexdigest()[:8]}.pth"
    ]


def test_a_safetensors_file_of_timm_with_some_classes(imagenet, tmp_path):
    """Only the classes that val/ holds may win: the best of them by hand."""
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224").eval()
    save_file(peer.state_dict(), tmp_path / "timm.safetensors")
    present = [3, 700, 850]

    class Only(torch.nn.Module):
        def forward(self, images):
            logits = peer(images)
            return torch.full_like(logits, -1e9).index_copy(1, torch.tensor(present), logits[:, present])

    done = run_program(
        *("--eval", "--cfg", ROOT / "configs/swin_tiny.yaml", "--resume", tmp_path / "timm.safetensors"),
        *("--data-path", imagenet, "--disable_amp", "--opts", "TEST.CLASSES", "present", "DATA.NUM_WORKERS", 0),
    )
    assert done.code == 0, done.err
    correct, loss = by_hand(Only(), imagenet, 224)
    assert "timm layout" in done.out and accuracy(done.out) == (correct, 15)
    assert f"loss {loss:.3f}" in done.out or f"loss {loss:.4f}" in done.out


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_of_colour_images_fit_other_channels(tiny_yaml, photos, tmp_path, channels):
    cfg = load_config(tiny_yaml)
    torch.save(build_model("swin", **model_arguments(cfg, 3)).state_dict(), tmp_path / "w.pth")
    common = ["--cfg", tiny_yaml, "--data-path", photos, "--opts", "MODEL.SWIN.IN_CHANS", channels]
    done = run_program(*common, "TRAIN.EPOCHS", 1, "--pretrained", tmp_path / "w.pth", "--output", tmp_path)
    assert done.code == 0, done.err
    assert f"filters of 3 input channels made {channels}" in done.out
    trained = accuracy(done.out)
    done = run_program(*common, "--eval", "--resume", tmp_path / "tiny/default/checkpoints/last.pth")
    assert done.code == 0 and accuracy(done.out) == trained


def test_a_file_of_another_family_is_named(imagenet, tmp_path):
    random_weights(tmp_path / "v2.pth", ROOT / "configs/swinv2_tiny.yaml", 1000, 256)
    arguments = ["--eval", "--resume", tmp_path / "v2.pth", "--data-path", imagenet]
    done = run_program("--cfg", ROOT / "configs/swin_tiny.yaml", *arguments)
    assert done.code == 4 and "holds Swin V2, the model is Swin V1" in done.error and "swinv2" in done.error


def test_a_released_name_that_does_not_exist_is_refused_with_the_nearest(imagenet):
    done = run_program(
        *(
            "--eval",
            "--cfg",
            ROOT / "configs/swin_tiny.yaml",
            "--resume",
            "hub:swin_tiny_window7",
            "--data-path",
            imagenet,
        )
    )
    assert done.code == 4 and "did you mean swin_tiny" in done.error


@pytest.mark.parametrize("freeze", ["1", "all"])
def test_frozen_parts_do_not_move(tiny_yaml, photos, tmp_path, freeze):
    cfg = load_config(tiny_yaml)
    model = build_model("swin", **model_arguments(cfg, 3))
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--pretrained", tmp_path / "w.pth"),
        *("--opts", "TRAIN.EPOCHS", 1, "TRAIN.FREEZE", freeze, "TRAIN.LAYER_DECAY", 0.8),
        processes=2,
    )
    assert done.code == 0, done.err
    trained = torch.load(tmp_path / "tiny/default/checkpoints/last.pth", weights_only=True)["model"]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, trained[name])}
    assert "head.weight" in moved and not any(name.startswith(("patch_embed", "layers.0")) for name in moved)
    assert any(name.startswith("layers.1") for name in moved) == (freeze == "1")


def test_a_timm_transformer_at_another_test_size(tiny_yaml, photos, tmp_path):
    model = build_model("timm", model_name="vit_tiny_patch16_224", img_size=32, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    common = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--opts", "TEST.IMG_SIZE", 64]
    common += ["MODEL.TYPE", "timm", "MODEL.TIMM.NAME", "vit_tiny_patch16_224"]
    done = run_program(*common, "--eval", "--resume", tmp_path / "w.pth")
    assert done.code == 0 and "resized by timm" in done.out, done.err
    done = run_program(*common)
    assert done.code == 2 and "one size only: TEST.IMG_SIZE" in done.error


def test_peers_of_timm_train_in_the_same_loop(tiny_yaml, photos, tmp_path):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path),
        *("--opts", "MODEL.TYPE", "timm", "MODEL.TIMM.NAME", "resnet10t", "TRAIN.EPOCHS", 1),
    )
    assert done.code == 0, done.err
    assert "ResNet: 4," in done.out
