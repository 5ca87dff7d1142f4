"""Weights from elsewhere through the program: evaluated, fine-tuned, reported."""

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
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

import main
from configs.loading import load_config
from data.pipeline.device import Normalize
from data.pipeline.sample import stack
from data.pipeline.transforms import EvalTransform, EvalTransformOptions
from data.sources.base import Record
from models.registry import build, build_model, model_options
from models.weights.class_maps import rows_of_1k
from tests.conftest import ROOT, accuracy, run_program
from tests.tools.builders import CPU, small, write_photos
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import CheckpointError
from utils.preprocessing import Preprocessing, image_size

SYNSETS = ImageNetInfo("imagenet-1k").label_names()
SWIN_TINY = ROOT / "configs/swin_tiny.yaml"
FINETUNE = ROOT / "configs/swin/swin_tiny_patch4_window7_224_22kto1k_finetune.yaml"
NARROW = ("MODEL.SWIN.EMBED_DIM", 24)  # a quarter of Swin-T's


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Three of ImageNet's classes, labels 850, 3 and 700, five photographs of each in val/ and one in train/."""
    root = write_photos(tmp_path_factory.mktemp("imagenet"), classes=3, train=1, val=5, size=64)
    for part in ("train", "val"):
        for i, label in enumerate((850, 3, 700)):
            (root / part / f"class_{i}").rename(root / part / SYNSETS[label])
    for number, file in enumerate(sorted((root / "val").rglob("*.jpg"))):
        file.rename(file.with_name(f"ILSVRC2012_val_{number + 1:08d}.JPEG"))
    return root


def by_hand(model, root, size, crop=True, names=SYNSETS):
    """Returns correct answers and mean loss over val/, without the program's loaders and metrics."""
    transform = EvalTransform(EvalTransformOptions(size=image_size(size), crop=crop))
    files = sorted((root / "val").rglob("*.*"))
    samples = [transform(Record(file.read_bytes(), None, str(file))) for file in files]
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    images = Normalize(Preprocessing(), CPU)(stack(samples))
    with torch.no_grad():
        logits = model(images)
    return int((logits.argmax(1) == labels).sum()), F.cross_entropy(logits, labels).item()


def random_weights(path, cfg_path, classes, *overrides):
    """Saves a model with weights large enough to tell images apart, as the original would; returns the model."""
    cfg = load_config(cfg_path, [(*override, "test") for override in overrides])
    torch.manual_seed(0)
    model = build(model_options(cfg), classes).eval()
    for name, p in model.named_parameters():
        if p.ndim == 1 and "norm" in name:
            torch.nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    torch.save({"model": model.state_dict()}, path)
    return model


def evaluate(cfg, weights, data, results, *overrides):
    """Evaluates in this process; returns the rows of TEST.RESULTS."""
    given = {"MODEL.RESUME": str(weights), "DATA.DATA_PATH": str(data), "TEST.RESULTS": str(results)}
    given |= {"EVAL_MODE": True, "AMP_ENABLE": False, "DATA.NUM_WORKERS": 0, **dict(overrides)}
    main.evaluate_files(load_config(cfg, [(key, value, "test") for key, value in given.items()]), World())
    return list(csv.DictReader(results.open()))


@pytest.mark.seconds
def test_a_22k_file_is_evaluated_and_fine_tuned_with_the_mapped_head(imagenet, tmp_path, caplog):
    """With learning rate 0, the evaluation after an epoch equals the head mapped by hand."""
    sizes = (("DATA.IMG_SIZE", 56), NARROW)
    source = random_weights(tmp_path / "22k.pth", FINETUNE, 21841, *sizes)
    head = torch.nn.Linear(source.num_features, 1000)
    rows = torch.tensor(rows_of_1k())
    head.weight.data, head.bias.data = source.head.weight.data[rows], source.head.bias.data[rows]
    source.head = head
    correct, loss = by_hand(source, imagenet, 56)

    with caplog.at_level("INFO"):
        (row,) = evaluate(FINETUNE, tmp_path / "22k.pth", imagenet, tmp_path / "r.csv", *sizes)
    assert "head mapped from 22K to 1K classes" in caplog.text
    assert row["top1"] == f"{100 * correct / 15:.3f}" and float(row["loss"]) == pytest.approx(loss, rel=1e-4)

    data = tmp_path / "data"
    (data / "val").parent.mkdir()
    (data / "val").symlink_to(imagenet / "val")
    for synset in SYNSETS:
        (data / "train" / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(synset), 99, 7)).save(data / "train" / synset / "a.png")
    still = ["TRAIN.BASE_LR", 0, "TRAIN.WARMUP_LR", 0, "TRAIN.MIN_LR", 0, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    done = run_program(
        *("--cfg", FINETUNE, "--disable_amp", "--pretrained", tmp_path / "22k.pth"),
        *("--data-path", data, "--output", tmp_path / "out", "--opts", "DATA.NUM_WORKERS", 0, *still),
        *(part for override in sizes for part in override),
        processes=2,
    )
    assert done.code == 0, done.err
    metrics = next((tmp_path / "out").rglob("metrics.jsonl")).read_text().splitlines()
    val = json.loads(metrics[-1])
    assert (val["correct1"], val["count"]) == (correct, 15) and val["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_released_v2_file_is_evaluated_as_in_the_readme(imagenet, tmp_path):
    cfg, narrow = ROOT / "configs/swinv2_tiny.yaml", ("MODEL.SWINV2.EMBED_DIM", 24)
    model = random_weights(tmp_path / "v2.pth", cfg, 1000, narrow)
    correct, _ = by_hand(model, imagenet, 256)
    tables = ["TEST.RESULTS", tmp_path / "r.csv", "TEST.PER_CLASS", tmp_path / "c.csv", "TEST.REAL", True]
    done = run_program(
        *("--eval", "--cfg", cfg, "--resume", f"{tmp_path / 'v2.pth'},{tmp_path / 'v2.pth'}", "--data-path", imagenet),
        *("--disable_amp", "--opts", "DATA.NUM_WORKERS", 0, "DATA.BATCH_SIZE", 8, *tables, *narrow),
    )
    assert done.code == 0, done.err
    assert accuracy(done.out) == (correct, 15) and done.out.count("] Acc@1") == 2 and "ReaL Acc@1" in done.out
    assert len(list(csv.DictReader((tmp_path / "r.csv").open()))) == 2
    assert {r["class"] for r in csv.DictReader((tmp_path / "c.csv").open())} == {SYNSETS[i] for i in (850, 3, 700)}


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory):
    """A recipe of a small Swin for images of 64 pixels, with random weights of 1000 classes, and the model."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(
        "DATA: {IMG_SIZE: 64, NUM_WORKERS: 0}\nMODEL: {SWIN: {PATCH_SIZE: 4, EMBED_DIM: 16, DEPTHS: [2, 2],"
        " NUM_HEADS: [2, 4], WINDOW_SIZE: 8}}\n"
    )
    model = random_weights(folder / "w.pth", folder / "small.yaml", 1000)
    return folder / "small.yaml", folder / "w.pth", model


@pytest.mark.seconds
def test_other_test_sizes_and_crops_are_those_by_hand(imagenet, small_recipe, tmp_path):
    cfg, weights, model = small_recipe
    losses = set()
    for size, crop in ((64, True), (96, True), (50, True), ([48, 80], True), (64, False), ([48, 80], False)):
        test = (("TEST.IMG_SIZE", size), ("TEST.CROP", crop))
        (row,) = evaluate(cfg, weights, imagenet, tmp_path / "r.csv", *test)
        correct, loss = by_hand(model, imagenet, size, crop)
        assert row["samples"] == "15" and row["top1"] == f"{100 * correct / 15:.3f}"
        assert row["size"] == ("48x80" if isinstance(size, list) else str(size))
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-5)
        losses.add(row["loss"])
    assert len(losses) == 6


def test_a_head_of_1000_classes_evaluates_other_data_with_its_first_outputs(photos, small_recipe, tmp_path):
    """As the original does: it always builds 1000 outputs, and labels the folders from 0."""
    cfg, weights, model = small_recipe
    (row,) = evaluate(cfg, weights, photos, tmp_path / "r.csv")
    correct, loss = by_hand(lambda images: model(images)[:, :3], photos, 64, names=["class_0", "class_1", "class_2"])
    assert row["top1"] == f"{100 * correct / 15:.3f}" and float(row["loss"]) == pytest.approx(loss, abs=1e-5)


def test_a_bad_file_after_a_good_one_loses_no_results(imagenet, small_recipe, tmp_path):
    cfg, weights, _ = small_recipe
    done = run_program(
        *("--eval", "--cfg", cfg, "--resume", f"{weights}, gone.pth,", "--data-path", imagenet),
        *("--opts", "TEST.RESULTS", tmp_path / "r.csv"),
    )
    assert done.code == 4 and "gone.pth" in done.error
    assert [row["name"] for row in csv.DictReader((tmp_path / "r.csv").open())] == [str(weights)]


def test_a_file_of_another_family_and_an_unknown_released_name_are_rejected(imagenet, small_recipe, tmp_path):
    cfg, _, _ = small_recipe
    torch.save(small("swinv2", num_classes=1000).state_dict(), tmp_path / "v2.pth")
    with raises(CheckpointError, tmp_path / "v2.pth", "a Swin V2", "a Swin V1", "MODEL.TYPE swinv2"):
        evaluate(cfg, tmp_path / "v2.pth", imagenet, tmp_path / "r.csv")
    with pytest.raises(CheckpointError, match=r"(?=.*swin_tiny_window7)(?=.*did you mean swin_tiny)"):
        evaluate(cfg, "hub:swin_tiny_window7", imagenet, tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_weights_behind_a_url_are_downloaded_by_one_process(imagenet, small_recipe, tmp_path):
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
    assert asked == ["/w.pth"]
    assert accuracy(done.out) == (by_hand(model, imagenet, 64)[0], 15)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in done.out and [p.name for p in (tmp_path / "hub/checkpoints").iterdir()] == [
        f"w-{hashlib.sha256(f'http://127.0.0.1:{server.server_port}/w.pth'.encode()).hexdigest()[:8]}.pth"
    ]


@pytest.mark.seconds
def test_a_safetensors_file_of_timm_with_some_classes(imagenet, tmp_path, caplog):
    """Predictions are restricted to the classes in val/: the best of them by hand."""
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=NARROW[1]).eval()
    save_file(peer.state_dict(), tmp_path / "timm.safetensors")
    present = torch.tensor([3, 700, 850])

    def restricted(images):
        logits = peer(images)
        return torch.full_like(logits, -1e9).index_copy(1, present, logits[:, present])

    chosen = (NARROW, ("TEST.CLASSES", "present"))
    with caplog.at_level("INFO"):
        (row,) = evaluate(SWIN_TINY, tmp_path / "timm.safetensors", imagenet, tmp_path / "r.csv", *chosen)
    correct, loss = by_hand(restricted, imagenet, 224)
    assert "timm layout" in caplog.text and row["top1"] == f"{100 * correct / 15:.3f}"
    assert float(row["loss"]) == pytest.approx(loss, abs=2e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_colour_images_fit_other_channels(tiny_yaml, photos, tmp_path, channels):
    torch.save(build(model_options(load_config(tiny_yaml)), 3).state_dict(), tmp_path / "w.pth")
    plain = ["AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", 0] if channels == 4 else []
    common = ["--cfg", tiny_yaml, "--data-path", photos, "--opts", "MODEL.SWIN.IN_CHANS", channels, *plain]
    done = run_program(*common, "TRAIN.EPOCHS", 1, "--pretrained", tmp_path / "w.pth", "--output", tmp_path)
    assert done.code == 0, done.err
    assert f"filters for 3 input channels adapted to {channels}" in done.out
    last = tmp_path / "tiny/default/checkpoints/last.pth"
    same = (("MODEL.SWIN.IN_CHANS", channels), ("AMP_ENABLE", True))
    (row,) = evaluate(tiny_yaml, last, photos, tmp_path / "r.csv", *same)
    correct, count = accuracy(done.out)
    assert row["top1"] == f"{100 * correct / count:.3f}" and row["samples"] == str(count)


@pytest.mark.parametrize("freeze", ["1", "all"])
def test_frozen_parts_do_not_move(tiny_yaml, photos, tmp_path, freeze):
    model = build(model_options(load_config(tiny_yaml)), 3)
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


def test_a_timm_transformer_is_evaluated_at_another_size(tiny_yaml, photos, tmp_path, caplog):
    """Its position embedding is resized; training with another test size: tests/models/test_registry.py."""
    name = "vit_tiny_patch16_224"
    torch.save(build_model("timm", name=name, img_size=(32, 32), num_classes=3).state_dict(), tmp_path / "w.pth")
    timm_model = (("MODEL.TYPE", "timm"), ("MODEL.TIMM.NAME", name), ("TEST.IMG_SIZE", 64))
    with caplog.at_level("INFO"):
        (row,) = evaluate(tiny_yaml, tmp_path / "w.pth", photos, tmp_path / "r.csv", *timm_model)
    assert "resized by timm" in caplog.text and (row["size"], row["samples"]) == ("64", "15")


def test_peers_of_timm_train_in_the_same_loop(tiny_yaml, photos, tmp_path):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path),
        *("--opts", "MODEL.TYPE", "timm", "MODEL.TIMM.NAME", "resnet10t", "TRAIN.EPOCHS", 1),
    )
    assert done.code == 0, done.err
    assert "ResNet: 4," in done.out
