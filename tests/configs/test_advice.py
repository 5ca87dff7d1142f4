"""Options of other programs are answered with the words that replace them."""

import shlex

import pytest

from configs.advice import KnownOptions, check_words
from configs.options import OPTIONS, parse_command_line
from configs.schema import KEYS
from configs.synonyms import ABSENT, CONVERTED, SYNONYMS
from tests.tools.errors import raises
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "option", "remedy"),
    [
        (["--blr", "0.1"], "--blr", "use --opts TRAIN.BASE_LR 0.1"),
        (["--num-epochs=3"], "--num-epochs", "use --epochs 3"),
        (["--amp"], "--amp", "use --enable-amp"),
        (["--no-amp"], "--no-amp", "use --disable-amp"),
        (["--reprob", "--eval"], "--reprob", "use --opts AUG.REPROB VALUE"),
        (["--opt", "sgd"], "--opt", "use --optim sgd"),
        (["--input-size", "3", "96", "96"], "--input-size", "use --img-size 96"),
        (["--input-size", "1", "96", "64"], "--input-size", 'use --img-size "[96, 64]" --opts MODEL.SWIN.IN_CHANS 1'),
        (["--scale", "0.5", "1"], "--scale", 'use --opts AUG.SCALE "[0.5, 1]"'),
        (["--mean", "0.5", "0.5", "0.5"], "--mean", 'use --opts DATA.MEAN "[0.5, 0.5, 0.5]"'),
        (["--decay-milestones", "30"], "--decay-milestones", 'TRAIN.LR_SCHEDULER.MULTISTEPS "[30]"'),
        (["--model-ema"], "--model-ema", "use --opts TRAIN.EMA.ENABLE True"),
        (["--warmup-prefix"], "--warmup-prefix", "WARMUP_PREFIX True"),
        (["--no-pin-memory"], "--no-pin-memory", "use --opts DATA.PIN_MEMORY False"),
        (["--task-loss-weight", "0.7"], "--task-loss-weight", "use --opts DISTILLATION.ALPHA 0.3"),
        (["--task-loss-weight"], "--task-loss-weight", "missing"),
        (["--results-file", "a.csv"], "--results-file", "use --opts TEST.RESULTS a.csv"),
        (["--real-labels", "a.json"], "--real-labels", "use --opts TEST.REAL True"),
        (["--bs", "8", "--mixup", "0", "--aa", "none"], "--bs", "--batch-size 8 --opts AUG.MIXUP 0 AUG.AUTO_AUG"),
        (["--warmup_steps", "9"], "--warmup-steps", "TRAIN.WARMUP_UPDATES 9 TRAIN.WARMUP_EPOCHS 0"),
        (["--vflip", "1"], "--vflip", "not flipped"),
        (["imgsz=96"], "--imgsz", "use --img-size 96"),
        (["--num_classes", "7"], "--num-classes", "use --opts MODEL.NUM_CLASSES 7"),
        (["--grad-checkpointing"], "--grad-checkpointing", "use --use-checkpoint"),
        (["-b", "64"], "-b", "use --batch-size 64"),
        (["--adam_beta1", "0.8", "--adam_beta2", "0.95"], "--opt-betas", 'TRAIN.OPTIMIZER.BETAS "[0.8, 0.95]"'),
        (["--adam-beta1", "0.8"], "--adam-beta1", 'TRAIN.OPTIMIZER.BETAS "[0.8, 0.999]"'),
        (["--torch_compile", "False"], "--torch-compile", "use --opts TRAIN.COMPILE False"),
        (["--gradient_checkpointing", "False", "--fp16=0"], "--gradient-checkpointing", "remove it"),
        (["--fp16", "False", "--bs", "8"], "--fp16", "use --batch-size 8"),
    ],
)
def test_the_answer_contains_all_values(argv, option, remedy):
    with raises(ConfigError, option, remedy):
        parse_command_line(["--cfg", "swin_tiny", *argv])


def test_only_the_abbreviation_of_a_single_option_is_accepted():
    known = KnownOptions(all=("--data-path", "--optim", "--opts"), switches=(), by_key={})
    check_words(["--data", "x", "--opts", "A", "-1e-5"], known)
    with raises(ConfigError, "--opt", "use --optim x"):
        check_words(["--opt", "x"], known)


@pytest.mark.parametrize("word", [word for table in (SYNONYMS, CONVERTED) for word in table])
def test_what_a_synonym_is_answered_with_is_accepted(word):
    """The answer is the rest of a command line: it must parse, and its values must suit the keys."""
    values = {"dataset": "hfds/x", "kd-distill-type": "logit", "arch": "swin_base"}
    with pytest.raises(ConfigError) as caught:
        parse_command_line([f"--{word}", values.get(word, "0.5")])
    answer = caught.value.remedy.removeprefix("use ")
    parsed = parse_command_line(["--cfg", "swin_tiny", *shlex.split(answer)]) if "--cfg" not in answer else None
    assert parsed is None or all(key in KEYS for key, _, _ in parsed.overrides)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--class-weights", "auto"], "use --opts LOSS.CLASS_WEIGHTS effective"),
        (["--class-weights", "w.csv"], "use --opts LOSS.CLASS_WEIGHTS w.csv"),
        (["--teacher", "M"], "use --opts DISTILLATION.KIND soft DISTILLATION.WEIGHTS M"),
        (["--metric", "f1"], "use --opts TEST.BEST f1"),
    ],
)
def test_the_answer_is_complete(words, answer):
    with pytest.raises(ConfigError) as caught:
        parse_command_line(words)
    assert caught.value.remedy == answer


@pytest.mark.parametrize("word", ABSENT)
def test_words_for_what_does_not_exist_say_so(word):
    assert f"--{word}" not in OPTIONS
    with raises(ConfigError, f"--{word}", ABSENT[word]):
        parse_command_line(["--cfg", "swin_tiny", f"--{word}", "1"])
