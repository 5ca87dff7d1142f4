"""The task of SimMIM: its loss, its evaluation and its pictures."""

import math

import pytest
import torch

from configs.loading import dump_config
from data.sources.open import SourceOptions
from scripts import predict
from tasks.base import TrainingData
from tasks.simmim.images import open_images
from tasks.simmim.reconstruction import masked_error
from tasks.simmim.task import Reconstruction
from tests.tools.builders import FLOAT32, configured, plan, shape
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.training.evaluate import evaluate

SMALL = {"PATCH_SIZE": 2, "EMBED_DIM": 8, "DEPTHS": [2, 2], "NUM_HEADS": [2, 4], "WINDOW_SIZE": 4}


def reconstruction(world=None, **overrides):
    given = {"TASK": "simmim", "DATA__IMG_SIZE": 32, "DATA__MASK_PATCH_SIZE": 8, "DATA__BATCH_SIZE": 4}
    given |= {f"MODEL__SWIN__{key}": value for key, value in SMALL.items()} | {"DATA__NUM_WORKERS": 0}
    task = Reconstruction(configured(**given, **overrides), world or World())
    task.precision = FLOAT32
    return task


def model(task):
    torch.manual_seed(0)
    return task.new_model(None).eval()


def images(path, validate=True):
    return open_images(SourceOptions("imagenet", str(path), validate=validate), ("train", "val"), World())


def loss_of(task, net, loader, data):
    return evaluate(net, loader, task.evaluator(loader, data.info), task.forward, World())


def test_validation_loss_is_a_mean_over_samples_of_all_ranks(photos, monkeypatch):
    task, data = reconstruction(), images(photos)
    net, loader = model(task), task.loader(data.val, data.info)
    batch = loader.batch(range(15))
    masks = task._masking.fixed(range(15))
    with torch.no_grad():
        each = masked_error(net(batch.images, masks), batch.images, masks)
    found = loss_of(task, net, loader, data)
    assert found.metrics["loss"] == pytest.approx(each.mean().item(), rel=1e-5) and found.samples == 15
    sums = []
    monkeypatch.setattr(World, "gather", lambda self, values: sums.append(values) or torch.stack(sums))
    for rank in range(2):
        own = reconstruction(World(rank, 2))
        found = loss_of(own, net, own.loader(data.val, data.info), data)
    assert found.metrics["loss"] == pytest.approx(each.mean().item(), rel=1e-5)


def test_unreadable_images_are_left_out(own_photos):
    task = reconstruction(DATA__ON_BAD_IMAGE="skip")
    net = model(task)
    photos = sorted((own_photos / "val").rglob("*.jpg"))
    photos[3].write_bytes(b"")
    data = images(own_photos)
    assert loss_of(task, net, task.loader(data.val, data.info), data).samples == 14
    for photo in photos:
        photo.write_bytes(b"")
    loader = task.loader(data.val, data.info, on_bad="skip_any")
    with raises(DataError, "DATA.DATA_PATH"):
        loss_of(task, net, loader, data)


def test_masks_of_evaluation_belong_to_the_samples():
    masks = reconstruction()._masking.fixed([0, 3, 5])
    assert torch.equal(masks[1:], reconstruction()._masking.fixed([3, 5])) and not torch.equal(masks[0], masks[1])


def test_evaluation_restores_the_mode_and_draws_nothing(photos):
    task, data = reconstruction(), images(photos)
    training = TrainingData(task, data, plan(shape(36)))
    net = model(task).train()
    before = torch.get_rng_state()
    evaluation = training.evaluate(net)
    assert net.training and torch.equal(before, torch.get_rng_state())
    assert "validation loss" in evaluation.line and training.best.metric == "loss"


def test_the_sheet_shows_three_rows_and_the_prediction_only_where_masked(photos):
    task = reconstruction(MODEL__SIMMIM__NORM_TARGET__ENABLE=True, MODEL__SIMMIM__NORM_TARGET__PATCH_SIZE=5)
    training = TrainingData(task, images(photos, validate=False), plan(shape(36)))
    evaluation = training.evaluate(model(task))
    assert evaluation.metrics == {} and training.best is None
    picture = evaluation.each_epoch["reconstruction"]()
    assert picture.width > 7 * 176 and picture.height > 3 * 176
    rows = [picture.crop((14, 64 + 212 * r, 190, 240 + 212 * r)) for r in range(3)]
    assert rows[0].tobytes() != rows[1].tobytes() != rows[2].tobytes()
    hidden = task._masking.fixed([0])[0]
    row, column = (~hidden).nonzero()[0].tolist()
    seen = [tile.getpixel((44 * column + 22, 44 * row + 22)) for tile in rows]
    assert seen[0] == seen[1] == seen[2] != (128, 128, 128)


def test_the_loss_of_a_batch_has_one_name_and_uses_its_masks():
    task = reconstruction()
    net, pixels = model(task), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    batch = Batch(pixels, task._masking.fixed([0, 1]))
    losses = task.loss(net, batch)
    assert set(losses) == {"loss"} and math.isfinite(losses["loss"].item())
    assert losses["loss"] != task.loss(net, Batch(pixels, ~batch.targets))["loss"]
    assert task.show_batch(batch, None).width > 2 * 176 and task.show_batch(Batch(pixels, None), None).width > 2 * 176


def test_pictures_leave_out_what_is_skipped(own_photos):
    task = reconstruction(DATA__ON_BAD_IMAGE="skip")
    net, data = model(task), images(own_photos)
    files = sorted((own_photos / "val").rglob("*.jpg"))
    whole = task.epoch_pictures(net, task.loader(data.val, data.info))["reconstruction"]()
    files[0].write_bytes(b"")  # the first of those that are shown
    shown = task.epoch_pictures(net, task.loader(data.val, data.info))["reconstruction"]()
    assert shown.width < whole.width
    for file in files:
        file.write_bytes(b"")
    assert task.epoch_pictures(net, task.loader(data.val, data.info)) == {}


def test_a_task_without_predictions_is_reported(tmp_path, photos, capsys):
    task = reconstruction()
    torch.save({"model": model(task).state_dict(), "config": dump_config(task.cfg)}, tmp_path / "m.pth")
    for more in ([], ["--pictures", str(tmp_path / "p")]):
        assert predict.main([str(photos / "val"), "--model", str(tmp_path / "m.pth"), *more]) == 2
        assert capsys.readouterr().err.startswith("error: --model: TASK simmim ")
    assert not (tmp_path / "p").exists()


def test_a_key_spares_position_biases_from_weight_decay():
    spared = [
        model(reconstruction(MODEL__SIMMIM__DECAY_POSITION_BIAS=decay)).no_weight_decay() for decay in (True, False)
    ]
    table = "encoder.layers.0.blocks.0.attn.relative_position_bias_table"
    assert [table in names for names in spared] == [False, True]
