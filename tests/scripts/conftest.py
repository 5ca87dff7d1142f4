"""A small trained model as a file, for the scripts that take one."""

import pytest
import torch

from configs.loading import dump_config
from models.registry import build, model_options
from tasks.classification.class_names import in_words
from tasks.classification.labels import ClassInfo
from tasks.registry import new_task
from tests.tools.builders import configured, open_folder, randomize
from utils.distributed.world import World
from utils.preprocessing import Preprocessing
from utils.training.evaluate import predict

NAMES = ["class_0", "class_1", "n01440764"]


@pytest.fixture(scope="module")
def made(tiny_yaml, photos, tmp_path_factory):
    """A checkpoint as a run writes it, and its class for every validation image as --eval computes it."""
    folder = tmp_path_factory.mktemp("predict")
    cfg = configured(tiny_yaml, DATA__EXIF="apply")
    torch.manual_seed(0)
    model = randomize(build(model_options(cfg), 3))
    torch.nn.init.normal_(model.head.weight)
    own = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 0.9, "bicubic")
    val, task = open_folder(photos).val, new_task(cfg, World(), {"preprocessing": own.as_dict()})
    loader = task.loader(val, ClassInfo.of(val))

    def logits():
        return torch.cat([outputs.logits.float() for outputs, _ in predict(model, loader, task.forward, World())])

    mean = logits().mean(0)
    model.head.bias.data -= mean  # no class is the most probable one of all images
    contents = {"model": model.state_dict(), "config": dump_config(cfg), "class_names": NAMES}
    torch.save({**contents, "preprocessing": own.as_dict()}, folder / "model.pth")
    best = [(in_words(NAMES)[row.argmax()], row.softmax(0).max().item()) for row in logits()]
    return folder, {val.name(i): each for i, each in enumerate(best)}
