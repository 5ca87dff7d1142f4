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
        (["--vflp", "x"], "--vflp", "see main.py --help"),
        (["--opts", "TAG"], "--opts", "TAG"),
        (["--opts", "TRAIN.EPOCHS=3"], "--opts", "write TRAIN.EPOCHS 3"),
        (["--batch-size"], "--batch-size", "one argument"),
        (["stray"], "stray", ""),
        (["epochs=3"], "epochs=3", "write --epochs 3"),
        (["tests"], "tests", "write --data-path tests"),
        (["--pretrained"], "--pretrained", "hub:NAME"),
        (["--patience-ms", "1"], "--patience-ms", "see main.py --help"),
        (["--opts", "TRAIN.LEARNING_RATE", "1"], "TRAIN.LEARNING_RATE", "--lr"),
        (["--lr", "0.1", "--opts", "TRAIN.BASE_LR", "0"], "TRAIN.BASE_LR", "TRAIN.LR"),
    ],
)
def test_fault_01_mistyped_options(argv, option, remedy):
    with raises(ConfigError, option, remedy) as caught:
        parse(*argv)
    assert "did you mean --zip" not in str(caught.value)


def test_words_that_other_programs_have_too():
    argv = "--epochs 9 --warmup-epochs 0.5 --lr 1e-3 --weight-decay 0 --img-size 96 --workers 0 --seed 3".split()
    cfg = parse(*argv, "--model", "timm:convnext_tiny")
    train = cfg.TRAIN
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.LR, train.WEIGHT_DECAY, cfg.SEED) == (9, 0.5, 1e-3, 0.0, 3)
    assert (cfg.DATA.IMG_SIZE, cfg.DATA.NUM_WORKERS) == (96, 0)
    assert [parse("--device", name).DEVICE for name in ("0", "cuda:1", "mps")] == ["cuda:0", "cuda:1", "mps"]
    with raises(ConfigError, "DEVICE", "cuda:N", "--device"):
        parse("--device", "gpu")
    assert (cfg.MODEL.TYPE, cfg.MODEL.TIMM.NAME, cfg.MODEL.NAME) == ("timm", "convnext_tiny", "convnext_tiny")


def test_a_model_is_a_recipe_or_replaces_the_architecture_of_one():
    alone = load_config(*parse_command_line(["--model", "swinv2_small"]))
    assert alone == load_config(ROOT / "configs/swinv2_small.yaml")
    assert load_config(*parse_command_line(["--model", "timm:resnet18"])).MODEL.TIMM.NAME == "resnet18"
    cfg = load_config(*parse_command_line(["--cfg", "quickstart", "--model", "swin_base", "--opts", "TAG", "x"]))
    base, quick = load_config(ROOT / "configs/swin_base.yaml"), load_config(ROOT / "configs/quickstart.yaml")
    assert cfg.MODEL.SWIN == base.MODEL.SWIN and cfg.DATA.IMG_SIZE == base.DATA.IMG_SIZE and cfg.TAG == "x"
    assert cfg.AUG == quick.AUG and cfg.TRAIN == quick.TRAIN and cfg.TASK == "classification"
    with raises(ConfigError, "--model", "swin_tiny"):
        parse_command_line(["--model", "swin_tny"])


def test_an_evaluation_takes_the_recipe_of_its_weights():
    for argv in (["--eval", "--resume", "a.pth"], ["--throughput", "--pretrained", "a.pth"]):
        assert parse_command_line(argv).cfg == ""
    assert parse_command_line(["--eval", "--resume", "hub:swin_tiny"]).cfg == "swin_tiny"
    for argv in (["--throughput"], ["--resume", "a.pth"], ["--dry-run"]):
        with raises(ConfigError, "--cfg", "swin_tiny"):
            parse_command_line(argv)
    with pytest.raises(SystemExit, match="2"):
        check_command_line(["--eval", "--resume", "a.pth", "--print-config"])


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
