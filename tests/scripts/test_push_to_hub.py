"""Publishing to a mock server of the hub."""

import base64
import json
import os
import re
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
import torch
import yaml

from configs.loading import dump_config
from models.registry import build, model_options
from scripts import push_to_hub
from scripts.model_card import Card, recipe
from scripts.open_model import open_model
from scripts.push_to_hub import main, write
from tests.conftest import ROOT
from tests.tools.builders import configured, randomize
from tests.tools.errors import raises
from tests.utils.checkpoints.test_downloads import serve
from utils.errors import ConfigError

READ_BACK = """
import sys
import timm, torch
from scripts import push_to_hub
from scripts.model_card import Card, recipe
from scripts.open_model import open_model

code = push_to_hub.main([sys.argv[1], "me/small", "--license", "mit"])
own, published = open_model(sys.argv[1]), open_model("hf:me/small")
images = torch.randn(1, 3, *own.size)
theirs = timm.create_model("hf-hub:me/small", pretrained=True).eval()
with torch.no_grad():
    logits = [model(images) for model in (own.model, published.model, theirs)]
print("code", code, published.class_names, all(torch.allclose(logits[0], each, atol=1e-4) for each in logits[1:]))
"""


class Hub(BaseHTTPRequestHandler):
    """A repository that takes a commit, and gives its files back."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.asked.append(self.path)
        body = self.body()
        page = f"http://{self.headers['Host']}/me/small"
        answer = {"url": page, "warnings": [], "commitUrl": f"{page}/commit/{'a' * 40}"}
        answer |= {"commitOid": "a" * 40}
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.reply(json.dumps(answer).encode())

    def body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self):
        content = self.files.get(self.path.rpartition("/")[2]) if "/resolve/" in self.path else b"{}"
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.reply(content)

    do_GET = do_HEAD

    def reply(self, content):
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"' + "b" * 40 + str(hash(content)) + '"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.mark.slow
def test_what_is_published_loads_back_here_and_in_timm(made, tmp_path):
    """In a separate process, since the package reads its address when imported."""
    server, address = serve(Hub)
    own = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_x",
    }
    run = [sys.executable, "-c", READ_BACK, str(made[0] / "model.pth")]
    done = subprocess.run(run, env=own, cwd=ROOT, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert "code 0 ('class_0', 'class_1', 'n01440764') True" in done.stdout, done.stdout + done.stderr
    assert sorted(Hub.files) == ["README.md", "config.json", "model.safetensors"]
    assert "/api/repos/create" in Hub.asked and "published: http" in done.stdout


def test_a_folder_instead(made, tmp_path, capsys):
    assert main([str(made[0] / "model.pth"), "me/small", "--folder", str(tmp_path / "new/folder")]) == 0
    assert "published" not in capsys.readouterr().out.replace("publishes", "")
    assert len(list((tmp_path / "new/folder").iterdir())) == 3


@pytest.mark.seconds
def test_what_is_said_of_the_model_is_its_own(made, tmp_path, capsys):
    """The transform that timm builds from the folder is the evaluation's, also for images that are not cropped."""
    contents = torch.load(made[0] / "model.pth", weights_only=True)
    contents["config"] = contents["config"].replace("CROP: true", "CROP: false")
    torch.save(contents, tmp_path / "squashed.pth")
    for file, mode, crop in ((made[0] / "model.pth", "center", 0.9), (tmp_path / "squashed.pth", "squash", 1.0)):
        folder = tmp_path / mode
        assert main([str(file), "me/small", "--folder", str(folder)]) == 0
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        assert (config["crop_mode"], config["crop_pct"]) == (mode, crop)
        assert not {"license", "tag", "url", "hf_hub_id"} & config.keys()
        card = (folder / "README.md").read_text()
        assert ("squashed, no crop" in card) == (mode == "squash") and " 0 GFLOPs" not in card
        stated = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
        assert stated == recipe(open_model(str(file)))
        assert stated["TRAIN"]["WARMUP_EPOCHS"] == yaml.safe_load(contents["config"])["TRAIN"]["WARMUP_EPOCHS"]
    capsys.readouterr()
    assert main(["model.onnx", "me/small"]) == 2
    assert capsys.readouterr().err.startswith("error: model.onnx: ")


@pytest.mark.parametrize(
    ("size", "reason"),
    [([36, 36], r"its logits differ by .* at \(36, 36\)"), ([32, 8], r"its model differs at \(32, 8\)")],
)
def test_what_timm_computes_differently_is_published_without_its_config(
    made, tiny_yaml, tmp_path, capsys, size, reason
):
    """Maps that are no whole windows, or narrower than one."""
    contents = torch.load(made[0] / "model.pth", weights_only=True)
    cfg = configured(tiny_yaml, DATA__IMG_SIZE=size)
    weights = randomize(build(model_options(cfg), 3)).state_dict()
    torch.save({**contents, "config": dump_config(cfg), "model": weights}, tmp_path / "model.pth")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/config.json").write_text("{}")  # of an earlier model
    assert main([str(tmp_path / "model.pth"), "me/small", "--folder", str(tmp_path / "to")]) == 0
    out = capsys.readouterr().out
    assert re.search(f"not for timm: .*{reason}", out) and "verified: same weights in this program" in out
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["README.md", "model.safetensors"]
    assert "timm" not in (tmp_path / "to/README.md").read_text().split("## Training")[0]


def test_mistakes_are_one_line(made, tmp_path, capsys, monkeypatch):
    assert main([str(made[0] / "model.pth"), "small"]) == 2
    assert capsys.readouterr().err.startswith("error: small: ")
    assert main([str(made[0] / "model.pth"), "me/sm all"]) == 2
    assert capsys.readouterr().err.startswith("error: me/sm all: ")
    (tmp_path / "file").touch()
    assert main([str(made[0] / "model.pth"), "me/small", "--folder", str(tmp_path / "file/x")]) == 7
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file/x'}: ")


def test_a_hub_that_cannot_be_reached_is_one_line(made, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main([str(made[0] / "model.pth"), "me/small"]) == 7
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: me/small: ") and "--folder" in err and err.count("\n") == 1
    monkeypatch.setattr(push_to_hub, "is_reachable", lambda url: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, "http://127.0.0.1:9", "hf_token"))
    assert main([str(made[0] / "model.pth"), "me/small"]) == 7
    assert "error: me/small: " in capsys.readouterr().err


def test_a_model_without_a_card_is_refused_before_anything_is_written(tmp_path):
    opened = SimpleNamespace(info=None, task=SimpleNamespace(name="simmim", card=lambda info: None))
    with raises(ConfigError, "TASK", "simmim"):
        write(opened, Card("me/small"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
