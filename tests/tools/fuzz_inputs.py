"""Inputs for tests/tools/fuzz.py: for each kind, a valid input, and the command that reads it."""

import copy
import io
import os
import random
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from configs.options import OPTIONS
from configs.schema import KEYS
from tests.tools.mutations import mutated_bytes, mutated_command, mutated_text, mutated_value

ROOT = Path(__file__).resolve().parents[2]
MAIN, PREDICT, REPORT, PREPARE = (
    ROOT / name for name in ("main.py", "scripts/predict.py", "scripts/report.py", "scripts/prepare_data.py")
)
RECIPE = """
DATA: {IMG_SIZE: 16, BATCH_SIZE: 4, NUM_WORKERS: 0, INTERPOLATION: bicubic}
MODEL:
  NAME: tiny
  TYPE: swin
  DROP_PATH_RATE: 0.2
  SWIN: {PATCH_SIZE: 2, EMBED_DIM: 8, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}
TRAIN:
  EPOCHS: 2
  WARMUP_EPOCHS: 0
  BASE_LR: 0.05
  LR_SCHEDULER:
    NAME: step
    MULTISTEPS: [3, 5]
AUG:
  AUTO_AUGMENT: rand-m9-mstd0.5-inc1
  SCALE: [0.5, 1.0]
PRINT_FREQ: 2
"""
# format, mode and suffix of the images
IMAGES = [
    *(
        ("JPEG", "RGB", ".jpg"),
        ("JPEG", "CMYK", ".jpg"),
        ("PNG", "RGB", ".png"),
        ("PNG", "P", ".png"),
        ("PNG", "I;16", ".png"),
    ),
    *(
        ("GIF", "P", ".gif"),
        ("TIFF", "RGB", ".tif"),
        ("TIFF", "F", ".tif"),
        ("WEBP", "RGBA", ".webp"),
        ("BMP", "L", ".bmp"),
    ),
    ("PPM", "RGB", ".ppm"),
]
Command = tuple[Path, list[object], dict[str, str]]


class Material:
    """What all inputs are made of: images, a run and its checkpoints, a server."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder, self.photos, self.recipe = folder, folder / "photos", folder / "tiny.yaml"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
        self._server.answers = {}  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_ENDPOINT": self.address}
        self.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        self.recipe.write_text(RECIPE)
        draw = np.random.default_rng(0)
        for split, count in (("train", 6), ("val", 3)):
            for label in ("cat", "dog"):
                (self.photos / split / label).mkdir(parents=True)
                for number in range(count):
                    pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(self.photos / split / label / f"{number}.jpg")
        self.run = folder / "output/tiny/default"
        self.checkpoint = self.run / "checkpoints/best.pth"

    def training(self) -> tuple[Path, list[object]]:
        """Returns the command that makes the run."""
        return MAIN, ["--cfg", self.recipe, "--data-path", self.photos, "--output", self.folder / "output"]

    def load_run(self) -> None:
        self.contents = torch.load(self.checkpoint, weights_only=True)

    def serve(self, path: str, answer: "Answer") -> str:
        """Returns the URL under which the server gives this answer."""
        self._server.answers[path] = answer  # type: ignore[attr-defined]
        return f"{self.address}/{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Answer:
    """What the server sends: a body, and how."""

    def __init__(self, body: bytes, draw: random.Random | None):
        self.body, self.status, self.length, self.headers = body, 200, str(len(body)), {}
        if draw is None:
            return
        how = draw.randrange(7)
        if how == 0:
            self.body, self.headers = b"<html>sign in</html>", {"Content-Type": "text/html"}
        elif how == 1:
            self.status = draw.choice([204, 301, 302, 307, 401, 403, 404, 416, 429, 500, 503])
            self.headers = {"Location": draw.choice(["/loop", "", "x" * 5000, "file:///etc/passwd", "http://[::1"])}
        elif how == 2:
            self.length = draw.choice(["-1", "x", str(len(body) * 2), "99999999999999999999", "1"])
        elif how == 3:
            self.body, self.length = body[: draw.randrange(len(body))], draw.choice([str(len(body)), ""])
        elif how == 4:
            self.headers = {
                "ETag": draw.choice(['"../../x"', "x" * 5000, ""]),
                "X-Repo-Commit": "../x",
                "X-Linked-Size": "x",
            }
        else:
            self.body = mutated_bytes(body, draw)


class Served(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.lstrip("/").split("?")[0])  # type: ignore[attr-defined]
        if self.path == "/loop":
            answer = Answer(b"", None)
            answer.status, answer.headers = 302, {"Location": "/loop"}
        if answer is None:
            self.send_error(404)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.length:
            self.send_header("Content-Length", answer.length)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.body)

    do_HEAD = do_GET


def _yaml(folder: Path, material: Material, draw: random.Random | None) -> Command:
    texts = [RECIPE, (ROOT / "configs/swin_tiny.yaml").read_text(), (ROOT / "configs/quickstart_moe.yaml").read_text()]
    (folder / "base.yaml").write_text(RECIPE)
    text = draw.choice([*texts, "BASE: [base.yaml]\nTAG: x\nTRAIN:\n  EPOCHS: 3\n"]) if draw else RECIPE
    (folder / "c.yaml").write_bytes(mutated_text(text, draw) if draw else text.encode())
    return MAIN, ["--cfg", folder / "c.yaml", "--print-config"], {}


def _command(folder: Path, material: Material, draw: random.Random | None) -> Command:
    line = ["--cfg", str(material.recipe), "--data-path", str(material.photos), "--output", "out", "--tag", "x"]
    line += ["--opts", "TRAIN.EPOCHS", "3", "AUG.SCALE", "[0.3, 1.0]"]
    last = "--print-config" if draw is None or draw.random() < 0.6 else "--dry-run"
    mutated = mutated_command(line, [*OPTIONS, *KEYS], draw) if draw else line
    return MAIN, [last, *(word.replace("\0", "") for word in mutated)], {}


def _image(folder: Path, material: Material, draw: random.Random | None) -> Command:
    kind, mode, suffix = draw.choice(IMAGES) if draw else IMAGES[0]
    pixels = np.random.default_rng(draw.randrange(100) if draw else 0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    image, stream = Image.fromarray(pixels).convert("I" if mode == "I;16" else mode), io.BytesIO()
    image.convert(mode).save(stream, kind, **({"exif": _exif()} if kind in ("JPEG", "PNG", "WEBP") else {}))
    data = mutated_bytes(stream.getvalue(), draw) if draw else stream.getvalue()
    if draw is None or draw.random() < 0.5:
        (folder / f"a{suffix}").write_bytes(data)
        return PREDICT, [folder / f"a{suffix}", "--model", material.run], {}
    root = Path(shutil.copytree(material.photos, folder / "photos"))
    (root / "train/cat" / f"a{suffix}").write_bytes(data)
    more = draw.choice([[], ["MODEL.SWIN.IN_CHANS", "4", "AUG.AUTO_AUGMENT", "none"], ["DATA.EXIF", "apply"]])
    line = ["--cfg", material.recipe, "--data-path", root, "--output", folder / "out", "--dry-run"]
    return MAIN, [*line, "--opts", "AUG.COLOR_JITTER", "0", *more], {}


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    return exif


def _archive(folder: Path, material: Material, draw: random.Random | None) -> Command:
    kind = draw.choice(["zip", "tar"]) if draw else "zip"
    for split in ("train", "val"):
        stream = io.BytesIO()
        files = sorted((material.photos / split).rglob("*.jpg"))
        if kind == "zip":
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if draw and draw.random() < 0.5 else 0) as archive:
                for file in files:
                    archive.write(file, file.relative_to(material.photos / split))
        else:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for file in files:
                    archive.add(file, str(file.relative_to(material.photos / split)))
        data = mutated_bytes(stream.getvalue(), draw) if draw and split == "train" else stream.getvalue()
        (folder / f"{split}.{kind}").write_bytes(data)
    line = ["--cfg", material.recipe, "--data-path", folder, "--output", folder / "out", "--dry-run"]
    return MAIN, [*line, *(["--zip"] if kind == "zip" else ["--opts", "DATA.DATASET", "tar"])], {}


def _lists(folder: Path, material: Material, draw: random.Random | None) -> Command:
    for split in ("train", "val"):
        (folder / split).symlink_to(material.photos / split)
        files = sorted((material.photos / split).rglob("*.jpg"))
        labels = {"cat": 0, "dog": 1}
        text = "\n".join(f"{split}/{f.relative_to(material.photos / split)}\t{labels[f.parent.name]}" for f in files)
        data = mutated_text(text, draw) if draw and split == "train" else text.encode()
        (folder / f"{split}_map.txt").write_bytes(data)
    line = ["--cfg", material.recipe, "--data-path", folder, "--output", folder / "out", "--dry-run"]
    return MAIN, [*line, "--opts", "DATA.DATASET", "list"], {}


def _table(folder: Path, material: Material, draw: random.Random | None) -> Command:
    files = sorted(material.photos.rglob("*.jpg"))
    several = draw is not None and draw.random() < 0.3
    head = draw.choice(["path,label", "path,label,split,weight", "path,cat,dog"]) if draw else "path,label"
    cells = {"label": lambda file: file.parent.name, "split": lambda file: file.parts[-3], "weight": lambda file: "1.5"}
    cells |= {"path": str, "cat": lambda file: "1", "dog": lambda file: "0"}
    text = "\n".join([head, *(",".join(cells[name](file) for name in head.split(",")) for file in files)])
    (folder / "labels.csv").write_bytes(mutated_text(text, draw) if draw else text.encode())
    line = ["--cfg", material.recipe, "--data-path", folder / "labels.csv", "--output", folder / "out", "--dry-run"]
    return MAIN, [*line, *(["--opts", "TASK", "multilabel"] if several or "cat" in head else [])], {}


def _cached_index(folder: Path, material: Material, draw: random.Random | None) -> Command:
    cache = Path(shutil.copytree(material.folder / "cache", folder / "cache"))
    if draw:
        file = draw.choice(sorted(file for file in cache.rglob("*") if file.is_file()))
        data = file.read_bytes()
        text = file.suffix == ".json" and draw.random() < 0.5
        file.write_bytes(mutated_text(data.decode(), draw) if text and data else mutated_bytes(data, draw))
    line = ["--cfg", material.recipe, "--data-path", material.photos, "--output", folder / "out", "--dry-run"]
    return MAIN, line, {"XDG_CACHE_HOME": str(cache)}


def _checkpoint(folder: Path, material: Material, draw: random.Random | None) -> Command:
    file = folder / "c.pth"
    if draw is None:
        shutil.copy(material.checkpoint, file)
    elif draw.random() < 0.2:
        file.write_bytes(mutated_bytes(material.checkpoint.read_bytes(), draw))
    elif draw.random() < 0.2:
        file = folder / "c.safetensors"
        weights = {name: tensor.contiguous() for name, tensor in material.contents["model"].items()}
        file.write_bytes(mutated_bytes(safetensors.torch.save(weights, {"format": "pt"}), draw))
    else:
        contents = copy.copy(material.contents)
        if draw.random() < 0.3:  # what the original program writes, or weights alone
            original = {
                "model": contents["model"],
                "optimizer": contents["optimizer"],
                "epoch": 1,
                "max_accuracy": 50.0,
            }
            original |= {"lr_scheduler": {"num_updates": 6}, "scaler": {"scale": 65536.0, "_growth_tracker": 3}}
            contents = draw.choice([original, contents["model"]])
        try:
            torch.save(mutated_value(contents, draw), file)
        except (RecursionError, RuntimeError, ValueError, TypeError):
            shutil.copy(material.checkpoint, file)
    how = draw.randrange(4) if draw else 0
    line: list[object] = ["--cfg", material.recipe, "--data-path", material.photos, "--output", folder / "out"]
    if how == 0:
        return MAIN, [*line, "--eval", "--resume", file], {}
    if how == 1:
        return MAIN, [*line, "--resume", file, "--opts", "TRAIN.EPOCHS", "3"], {}
    if how == 2:
        return MAIN, [*line, "--pretrained", file, "--dry-run"], {}
    return PREDICT, [next(material.photos.rglob("*.jpg")), "--model", file], {}


def _run_folder(folder: Path, material: Material, draw: random.Random | None) -> Command:
    run = Path(shutil.copytree(material.run, folder / "output/tiny/default", symlinks=True))
    if draw:
        files = sorted(
            file for file in run.rglob("*") if file.is_file() and not file.is_symlink() and file.suffix != ".pth"
        )
        file = draw.choice(files)
        data = file.read_bytes()
        text = file.suffix in (".yaml", ".json", ".jsonl", ".csv", ".txt") and draw.random() < 0.5
        file.write_bytes(mutated_text(data.decode(), draw) if text and data else mutated_bytes(data, draw))
    if draw is None or draw.random() < 0.6:
        return REPORT, [run, "--text"], {}
    line = ["--cfg", material.recipe, "--data-path", material.photos, "--output", folder / "output"]
    return MAIN, [*line, "--opts", "TRAIN.EPOCHS", draw.choice(["2", "3"])], {}


def _served(folder: Path, material: Material, draw: random.Random | None) -> Command:
    body = material.checkpoint.read_bytes()
    name = folder.name
    url = material.serve(f"{name}/c.pth", Answer(body, draw))
    if draw and draw.random() < 0.3:
        for path in (
            f"a/{name}/resolve/main/model.safetensors",
            f"api/models/a/{name}",
            f"a/{name}/resolve/main/config.json",
        ):
            material.serve(path, Answer(body, draw))
        url = draw.choice([f"hf:a/{name}", f"hf:a/{name}/../../c", f"hf:a/{name}/c.pth", "hf:" + "a" * 300])
    line = ["--cfg", material.recipe, "--data-path", material.photos, "--output", folder / "out", "--eval"]
    return (
        MAIN,
        [*line, "--resume", url],
        {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HOME": str(folder),
            "TORCH_HOME": str(folder / "torch"),
            "HF_HOME": str(folder / "hf"),
        },
    )


KINDS: dict[str, Callable[[Path, Material, random.Random | None], Command]] = {
    "yaml": _yaml,
    "command": _command,
    "image": _image,
    "archive": _archive,
    "list": _lists,
    "table": _table,
    "index": _cached_index,
    "checkpoint": _checkpoint,
    "run_folder": _run_folder,
    "served": _served,
}
