"""A small trained model as a file, for the scripts that take one."""

import pytest
import torch

from configs.loading import dump_config
from data.loaders import PipelineOptions, build_eval_loader
from models.registry import build, model_options
from tests.tools.builders import configured, open_folder, randomize
from utils.class_words import in_words
from utils.distributed.world import World
from utils.evaluation.predict import predict
from utils.precision import Precision
from utils.preprocessing import Preprocessing

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
    val, world = open_folder(photos).val, World()
    loader = build_eval_loader(val, world, PipelineOptions.from_config(cfg, 3, own))
    precision = Precision.from_config(cfg, world.device)
    mean = torch.cat([logits.float() for logits, _ in predict(model, loader, precision, World())]).mean(0)
    model.head.bias.data -= mean  # no class is the most probable one of all images
    contents = {"model": model.state_dict(), "config": dump_config(cfg), "class_names": NAMES}
    torch.save({**contents, "preprocessing": own.as_dict()}, folder / "model.pth")
    expected = {}
    for logits, _ in predict(model, loader, precision, World()):
        for row in logits.float():
            expected[val.name(len(expected))] = (in_words(NAMES)[row.argmax()], row.softmax(0).max().item())
    return folder, expected
