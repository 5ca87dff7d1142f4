"""torch.hub builds every released model, from any working directory."""

import hashlib
import re
import subprocess
import sys

import torch

from models.registry import build_model
from tests.conftest import RELEASED, ROOT, environment
from tests.tools.builders import SMALL, small
from utils.checkpoints.released import released_url

SCRIPT = """
import ast, sys, torch
repository, file, small = sys.argv[1:]
model = torch.hub.load(repository, "swin_tiny_patch4_window7_224", source="local", num_classes=3)
print(sum(p.numel() for p in model.parameters()), tuple(model(torch.zeros(1, 3, 64, 64)).shape))
small = ast.literal_eval(small)
model = torch.hub.load(
    repository, "swin_tiny_patch4_window7_224", source="local", pretrained=file, num_classes=7, **small
)
own = torch.hub.load(repository, "swin_tiny_patch4_window7_224", source="local", pretrained=file, **small)
again = torch.hub.load(
    repository, "swin_tiny_patch4_window7_224", source="local", pretrained=file, num_classes=5, **small
)
assert torch.equal(own.head.weight, torch.load(file)["model"]["head.weight"])
assert torch.equal(own.head.weight, again.head.weight)
print(model.head.weight.abs().sum().item(), model.training, model.layers[0].blocks[0].attn.qkv.weight.sum().item())
try:
    torch.hub.load(repository, "swin_tiny_patch4_window7_224", source="local", num_clases=3)
except Exception as error:
    print(type(error).__name__, error)
sys.path.insert(0, repository)
import hubconf
print(len([name for name in dir(hubconf) if name != "predictor" and callable(getattr(hubconf, name))]))
"""


def test_models_by_their_released_names(tmp_path):
    peer = small()
    names = [f"class {i}" for i in range(5)]  # as in a checkpoint of this program
    torch.save({"model": peer.state_dict(), "class_names": names}, tmp_path / "small.pth")
    run = [sys.executable, "-c", SCRIPT, ROOT, tmp_path / "small.pth", repr({**SMALL, "drop_path_rate": 0.0})]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, third, count = done.stdout.splitlines()
    parameters, shape = first.split(" ", 1)
    assert int(count) == len(RELEASED) == 42 and shape == "(1, 3)"
    assert int(parameters) == 28_288_354 - 997 * 769  # Swin-T with a head for three classes
    assert second == f"0.0 False {peer.layers[0].blocks[0].attn.qkv.weight.sum().item()}"
    assert third.startswith("ConfigError num_clases: ") and "did you mean num_classes?" in third


def test_the_notebook_runs_from_any_folder(tmp_path, photos):
    """All blocks of docs/notebook.md in turn, with random weights in the place of a download."""
    name = "swin_tiny_patch4_window7_224"
    url = released_url(name)
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    cached = tmp_path / "hub/checkpoints" / f"{name}-{digest}.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"model": build_model("swin").state_dict()}, cached)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/notebook.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    image = next((photos / "val").rglob("*.jpg"))
    check = "assert logits.shape == (1, 1000) and features.shape == (1, 768)"
    code = "\n".join([f"REPOSITORY, IMAGE = {str(ROOT)!r}, {str(image)!r}", *blocks, check])
    environ = environment(TORCH_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *classes, shapes = done.stdout.splitlines()[-4:]
    assert all(re.fullmatch(r" *\d+\.\d%  \S.*", line) for line in classes)
    assert shapes == "[(1, 96, 120, 160), (1, 192, 60, 80), (1, 384, 30, 40), (1, 768, 15, 20)]"
