"""Commands without --cfg."""

import torch

from configs.loading import dump_config, load_config
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.checkpoints.files import checkpoint_name
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.runs.stored_config import stored_config


def test_the_recipe_is_the_stored_one_without_what_belongs_to_the_run(tmp_path):
    trained = configured("quickstart.yaml", MODEL__PRETRAINED="old.pth", MODEL__ATTENTION="kernel", SEED=3)
    path = tmp_path / checkpoint_name(1)
    torch.save({"config": dump_config(trained), "model": {}}, path)
    given = [("EVAL_MODE", True, "--eval"), ("MODEL.RESUME", str(path), "--resume"), ("TAG", "x", "--opts")]
    cfg = stored_config(load_config("", given), given, World())
    assert (cfg.MODEL.RESUME, cfg.MODEL.PRETRAINED, cfg.MODEL.ATTENTION, cfg.TAG) == (str(path), "", "auto", "x")
    assert cfg.EVAL_MODE and cfg.MODEL.SWIN == trained.MODEL.SWIN and cfg.AUG == trained.AUG and cfg.SEED == 3
    torch.save({"model": {}}, path)
    with raises(ConfigError, path, "--cfg"):
        stored_config(load_config("", given), given, World())
