"""The teacher: what it sees of the student's images, and which files can be one."""

import pytest
import torch
import torch.nn.functional as F

from configs.loading import dump_config
from models.registry import build, model_options
from tasks.classification.task import Classification
from tasks.classification.teacher import Teacher, open_teacher
from tests.tools.builders import CPU, configured, randomize, small
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing

SEEN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
NAMES = ["cat", "dog", "fox"]
TIMM = {"MODEL__TYPE": "timm", "MODEL__TIMM__NAME": "test_convnext", "DATA__IMG_SIZE": 32, "MODEL__NUM_CLASSES": 3}


def teaching(model, own, size=(32, 32)):
    return Teacher(model, size, own, SEEN, CPU)


def test_images_are_normalised_for_the_teacher():
    own = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student, wanted = (
        (pixels - torch.tensor(each.mean).view(3, 1, 1)) / torch.tensor(each.std).view(3, 1, 1) for each in (SEEN, own)
    )
    model = randomize(small())
    logits = teaching(model, own)(student)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(wanted), rtol=1e-4, atol=1e-4)
        assert torch.equal(teaching(model, SEEN)(student), model(student))


def test_images_are_resized_to_what_the_teacher_takes():
    model = randomize(small())
    images = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(images, (32, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(teaching(model, SEEN, size=(32, 48))(images), model(resized))


def test_it_is_frozen_and_computes_no_gradients():
    model = randomize(small())
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    assert not teaching(model, SEEN)(images).requires_grad
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


@pytest.fixture
def make(tiny_yaml, tmp_path):
    """Writes a checkpoint of three classes; returns its path and weights."""

    def write(name="teacher.pth", settings=None, **more):
        cfg = configured(**settings) if settings else configured(tiny_yaml)
        torch.manual_seed(0)
        model = build(model_options(cfg), 3)
        contents = {"model": model.state_dict(), "config": dump_config(cfg), "class_names": NAMES, **more}
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: value for key, value in contents.items() if value is not None}, tmp_path / name)
        return tmp_path / name, model.eval()

    return write


def opened(weights, class_names=NAMES, seen=SEEN, **own):
    keys = {f"DISTILLATION__{key}": value for key, value in {"KIND": "soft", "WEIGHTS": str(weights), **own}.items()}
    return open_teacher(
        configured(**keys), lambda cfg, contents: Classification(cfg, World(), contents), seen, World(), class_names
    )


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_file_that_stores_its_recipe_is_enough(make):
    path, model = make(preprocessing=SEEN.as_dict())
    with torch.no_grad():
        assert torch.equal(opened(path)(IMAGES), model(IMAGES))


def test_the_folder_of_a_run_is_its_best_checkpoint(make, tmp_path):
    _, model = make("run/checkpoints/best.pth", preprocessing=SEEN.as_dict())
    with torch.no_grad():
        assert torch.equal(opened(tmp_path / "run")(IMAGES), model(IMAGES))


def test_a_model_of_timm_can_teach(make):
    path, model = make(settings=TIMM, preprocessing=SEEN.as_dict())
    with torch.no_grad():
        assert torch.equal(opened(path)(IMAGES), model(IMAGES))


def test_weights_that_do_not_store_their_recipe_need_one(make, tiny_yaml):
    path, model = make(config=None, class_names=None, preprocessing=SEEN.as_dict())
    with raises(ConfigError, path, "DISTILLATION.TEACHER"):
        opened(path)
    with torch.no_grad():
        assert torch.equal(opened(path, TEACHER=str(tiny_yaml))(IMAGES), model(IMAGES))
    with raises(ConfigError, "DISTILLATION.TEACHER", "swin_tny", "did you mean swin_tiny"):
        opened(path, TEACHER="swin_tny")


@pytest.mark.parametrize(
    ("class_names", "names"),
    [
        (["cat", "dog"], ["3 classes", "data 2"]),
        (["cat", "fox", "dog"], ["class 1 is dog", "fox in the data"]),
    ],
)
def test_other_classes_are_rejected(make, class_names, names):
    path, _ = make()
    with raises(CheckpointError, path, *names, "DISTILLATION.WEIGHTS"):
        opened(path, class_names)


def test_weights_without_names_are_compared_by_number(make, tiny_yaml):
    path, _ = make(class_names=None)
    opened(path, ["x", "y", "z"])
    with raises(CheckpointError, path, "3 classes", "data 4"):
        opened(path, list("wxyz"))


def test_other_channels_are_rejected(make):
    with raises(ConfigError, "DISTILLATION.WEIGHTS", "3 channels", "student 1"):
        opened(make()[0], seen=Preprocessing((0.5,), (0.5,)))


def test_a_missing_or_altered_file_is_rejected(make, tmp_path):
    with raises(CheckpointError, "DISTILLATION.WEIGHTS", tmp_path / "gone.pth"):
        opened(tmp_path / "gone.pth")
    path, _ = make()
    with raises(CheckpointError, "DISTILLATION.WEIGHTS", path):
        opened(path, SHA256="0" * 64)
