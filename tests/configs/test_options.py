"""The command line of the original, by value."""

import pytest

from configs.loading import flat_config, load_config, parse_config
from configs.options import OPTIONS, check_command_line, parse_command_line
from configs.schema import KEYS
from tests.conftest import ROOT
from tests.tools.errors import raises
from utils.errors import ConfigError

CFG = str(ROOT / "configs" / "swin_tiny.yaml")


def parse(*argv):
    return load_config(*parse_command_line(["--cfg", CFG, *argv]))


def test_every_option_sets_a_key_of_the_schema():
    assert {option.key for option in OPTIONS.values()} <= set(KEYS)


def test_options_of_the_original():
    cfg = parse(
        *"--batch-size 64 --data-path /data --zip --cache-mode full --pretrained a.pth --resume b.pth".split(),
        *"--accumulation-steps 2 --use-checkpoint --disable_amp --output out --tag t --eval --optim sgd".split(),
    )
    assert (cfg.DATA.BATCH_SIZE, cfg.DATA.DATA_PATH, cfg.DATA.ZIP_MODE, cfg.DATA.CACHE_MODE) == (
        64,
        "/data",
        True,
        "full",
    )
    assert (cfg.MODEL.PRETRAINED, cfg.MODEL.RESUME) == ("a.pth", "b.pth")
    assert (cfg.TRAIN.ACCUMULATION_STEPS, cfg.TRAIN.USE_CHECKPOINT, cfg.AMP_ENABLE) == (2, True, False)
    assert (cfg.OUTPUT, cfg.TAG, cfg.EVAL_MODE, cfg.TRAIN.OPTIMIZER.NAME) == ("out", "t", True, "sgd")
    assert parse("--throughput").THROUGHPUT_MODE is True


@pytest.mark.parametrize("spelling", ["--batch-size", "--batch_size"])
def test_dash_and_underscore_are_the_same(spelling):
    assert parse(spelling, "7").DATA.BATCH_SIZE == 7
    assert parse(f"{spelling}=7").DATA.BATCH_SIZE == 7


def test_an_option_beats_opts_and_both_beat_the_file():
    assert parse("--opts", "DATA.BATCH_SIZE", "3", "TAG", "x", "--batch-size", "4").DATA.BATCH_SIZE == 4
    assert parse("--batch-size", "4", "--opts", "DATA.BATCH_SIZE", "3").DATA.BATCH_SIZE == 4
    assert parse("--opts", "DATA.BATCH_SIZE", "3").DATA.BATCH_SIZE == 3
    twice = parse("--opts", "DATA.BATCH_SIZE", "3", "--opts", "TAG", "x")
    assert (twice.DATA.BATCH_SIZE, twice.TAG) == (3, "x")


def test_zero_counts_as_given():
    assert parse("--opts", "TRAIN.CLIP_GRAD", "0", "AUG.MIXUP", "0").TRAIN.CLIP_GRAD == 0.0
    with raises(ConfigError, "DATA.BATCH_SIZE", 0, "--batch-size"):
        parse("--batch-size", "0")


@pytest.mark.parametrize(
    ("argv", "option", "remedy"),
    [
        (["--acumulation-steps", "4"], "--acumulation-steps", "--accumulation-steps"),
        (["--bach-size", "4"], "--bach-size", "--batch-size"),
        (["--o", "x"], "--o", "--optim"),
        (["--opts", "TAG"], "--opts", "TAG"),
        (["--opts", "TRAIN.EPOCHS=3"], "--opts", "write TRAIN.EPOCHS 3"),
        (["--batch-size"], "--batch-size", "one argument"),
        (["stray"], "stray", ""),
        (["--lr", "0.1"], "--lr", "--opts TRAIN.BASE_LR 0.1"),
        (["--epochs=3"], "--epochs", "--opts TRAIN.EPOCHS 3"),
        (["--amp"], "--amp", "--enable-amp"),
        (["--workers", "--eval"], "--workers", "--opts DATA.NUM_WORKERS VALUE"),
        (["--num_classes", "7"], "--num-classes", "--opts MODEL.NUM_CLASSES 7"),
        (["--grad-checkpointing"], "--grad-checkpointing", "--use-checkpoint"),
        (["-b", "64"], "-b", "--batch-size"),
        (["--opts", "TRAIN.LR", "1"], "TRAIN.LR", "TRAIN.BASE_LR"),
    ],
)
def test_fault_01_mistyped_options(argv, option, remedy):
    with raises(ConfigError, option, remedy):
        parse(*argv)


def test_unambiguous_abbreviations_work_as_in_the_original():
    cfg = parse("--batch", "4", "--acc", "2")
    assert (cfg.DATA.BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS) == (4, 2)


def test_cfg_is_required():
    with raises(ConfigError, "--cfg"):
        parse_command_line([])


def test_help_needs_nothing_else(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in OPTIONS)


def test_an_abbreviation_takes_precedence_over_a_synonym():
    assert parse("--data", "/data").DATA.DATA_PATH == "/data"


def test_the_whole_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as end:
        check_command_line(["--cfg", CFG, "--print_config", "--opts", "TAG", "x"])
    assert not end.value.code
    assert parse_config(capsys.readouterr().out, "printed") == flat_config(parse("--opts", "TAG", "x"))


@pytest.mark.parametrize("value", ["-1e-5", "-1.5E+3", "-.5", "-3", "-inf"])
def test_a_negative_number_is_a_value_not_an_option(value):
    given = parse_command_line(["--cfg", CFG, "--opts", "TRAIN.BASE_LR", value, "TAG", "x"]).overrides
    assert [(key, text.strip()) for key, text, _ in given] == [("TRAIN.BASE_LR", value), ("TAG", "x")]
