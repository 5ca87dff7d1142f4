"""Loading YAML and options: values, precedence, every kind of mistake."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from configs.loading import (
    PATHS,
    config_differences,
    config_of_weights,
    dump_config,
    find_config,
    flat_config,
    is_local,
    load_config,
    parse_config,
    shared_config,
)
from configs.schema import KEYS, TASKS
from tests.conftest import RELEASED, ROOT
from tests.tools.errors import raises
from utils.errors import ConfigError, one_line
from utils.training.plan import epochs_for

RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden.yaml"


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def changed(cfg) -> dict:
    """Keys that differ from their defaults; the task is always resolved."""
    return {k: v for k, v in flat_config(cfg).items() if v != KEYS[k].default and k != "TASK"}


def test_golden_dump_of_the_defaults():
    """Recipes are compared with the original's and with the published settings below."""
    assert {name: key.default for name, key in KEYS.items()} == yaml.safe_load(GOLDEN.read_text())


SECTIONS = {
    "swin": ("swin", "SWIN"),
    "swinv2": ("swinv2", "SWINV2"),
    "swin_mlp": ("swinmlp", "SWIN_MLP"),
    "swin_moe": ("swinmoe", "SWIN_MOE"),
}


@pytest.mark.parametrize("row", RELEASED, ids=lambda r: r["config"])
def test_released_recipes_hold_the_published_settings(row):
    folder, section = SECTIONS[row["type"]]
    cfg = load_config(ROOT / "configs" / folder / f"{row['config']}.yaml")
    swin, train = cfg.MODEL[section], cfg.TRAIN
    assert cfg.MODEL.TYPE == row["type"]
    assert swin.get("PRETRAINED_WINDOW_SIZES", [0, 0, 0, 0]) == row.get("pretrained_window_sizes", [0, 0, 0, 0])
    assert cfg.MODEL.NAME == row["config"]
    assert (cfg.DATA.IMG_SIZE, swin.WINDOW_SIZE, swin.EMBED_DIM) == (row["img_size"], row["window"], row["embed_dim"])
    assert (swin.DEPTHS, swin.NUM_HEADS) == (row["depths"], row["num_heads"])
    assert cfg.MODEL.DROP_PATH_RATE == row["drop_path"]
    assert (train.EPOCHS, train.WARMUP_EPOCHS) == (row["epochs"], row["warmup_epochs"])
    assert (train.WEIGHT_DECAY, train.BASE_LR) == (row["weight_decay"], row["base_lr"])
    assert (train.WARMUP_LR, train.MIN_LR) == (row["warmup_lr"], row["min_lr"])
    assert (cfg.TEST.CROP, cfg.DATA.DATASET) == (row["test_crop"], row["dataset"])
    assert swin.get("NUM_EXPERTS", 0) == row.get("experts", 0)
    assert swin.get("COSINE_ROUTER", False) == (row.get("router") == "cosine")


ORIGINAL = json.loads((Path(__file__).parent / "original_recipes.json").read_text())
# docs/from_the_original.md explains these
ON_PURPOSE = {"MODEL.NUM_CLASSES", "OUTPUT", "DATA.NUM_WORKERS"}


def _ignored(key: str) -> bool:
    return key == "BASE" or KEYS[key].deprecated


@pytest.mark.parametrize("name", [name for name in ORIGINAL["recipes"] if (ROOT / "configs" / name).exists()])
def test_recipes_resolve_to_the_values_of_the_originals(name):
    theirs = {**ORIGINAL["defaults"], **ORIGINAL["recipes"][name]}
    ours = flat_config(load_config(ROOT / "configs" / name))
    different = {key for key, value in theirs.items() if key in ours and ours[key] != value and not _ignored(key)}
    mistaken = {"MODEL.NAME"} if name.endswith("swinv2_large_patch4_window12to16_192to256_22kto1k_ft.yaml") else set()
    # what its scripts decide in the original: augmentation in pre-training, and float32 in fine-tuning
    simmim = set(TASKS["simmim"].defaults) if "simmim_pretrain" in name else set()
    simmim |= {"AMP_ENABLE"} if "simmim_finetune" in name else set()
    assert different <= ON_PURPOSE | mistaken | simmim, {key: (theirs[key], ours[key]) for key in different}
    assert not (theirs.keys() - ours.keys())


def test_what_differs_from_the_original_on_purpose_is_documented():
    text = (ROOT / "docs/from_the_original.md").read_text()
    assert all(f"`{key}`" in text for key in ON_PURPOSE)
    assert "`MODEL.NAME` of `swinv2_large_patch4_window12to16_192to256_22kto1k_ft`" in text


def test_all_46_recipes_of_the_original_are_compared():
    assert sum((ROOT / "configs" / name).exists() for name in ORIGINAL["recipes"]) == len(ORIGINAL["recipes"]) == 46


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_headers_contain_their_command(path):
    assert path.relative_to(ROOT).as_posix() in path.read_text().split("\n\n")[0] or "quickstart" in path.name
    assert path.read_text().startswith("# ")


def test_dump_reads_back_to_the_same_values(tmp_path):
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", [("AUG.CUTMIX_MINMAX", [0.2, 0.8], "x"), ("TAG", "1e5", "x")])
    text = dump_config(cfg)
    assert flat_config(load_config(write(tmp_path, text))) == flat_config(cfg)
    assert parse_config(text, "x") == flat_config(cfg)


def test_precedence(tmp_path):
    write(tmp_path, "TRAIN: {EPOCHS: 5, WARMUP_EPOCHS: 1, BASE_LR: 1, MIN_LR: 0.5}", "base.yaml")
    path = write(tmp_path, "BASE: [base.yaml]\nTRAIN: {EPOCHS: 6, BASE_LR: 2}")
    cfg = load_config(path, [("TRAIN.EPOCHS", "7", "--opts"), ("AUG.MIXUP", 0, "--opts"), ("TRAIN.EPOCHS", "8", "--x")])
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.BASE_LR, cfg.TRAIN.MIN_LR) == (8, 2.0, 0.5)
    assert cfg.AUG.MIXUP == 0.0 and cfg.TRAIN.WARMUP_LR == 5e-7


def test_the_configuration_is_frozen():
    cfg = load_config(ROOT / "configs/swin_tiny.yaml")
    with pytest.raises(AttributeError):
        cfg.TRAIN.EPOCHS = 3


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("TRAIN.BASE_LR", "2e-05", 2e-5),
        ("AUG.MIXUP", 0, 0.0),
        ("DATA.IMG_SIZE", "384", 384),
        ("DATA.IMG_SIZE", 384.0, 384),
        ("TAG", 5, "5"),
        ("AMP_ENABLE", "False", False),
        ("MODEL.SWIN.QK_SCALE", "None", None),
        ("MODEL.SWIN.QK_SCALE", "0.5", 0.5),
        ("MODEL.SWIN.DEPTHS", "[2, 2, 18, 2]", [2, 2, 18, 2]),
        ("MODEL.SWIN.DEPTHS", (2, 2, 18, 2), [2, 2, 18, 2]),
        ("TRAIN.OPTIMIZER.BETAS", "(0.95, 0.9)", [0.95, 0.9]),
        ("SEED", 2**53 + 1, 2**53 + 1),
        ("SEED", str(2**53 + 1), 2**53 + 1),
        ("MODEL.RESUME", "None", ""),
        ("TRAIN.LR_SCHEDULER.MULTISTEPS", "[3, 4]", [3, 4]),
        ("AUG.CUTMIX_MINMAX", "[0.2, 0.8]", [0.2, 0.8]),
        ("MODEL.SWIN_MOE.MOE_BLOCKS", [[-1], [-1], [1, 3], [0]], [[-1], [-1], [1, 3], [0]]),
        ("AUG.AUTO_AUGMENT", "none", "none"),
        ("DATA.IMG_SIZE", "[224, 288]", [224, 288]),
        ("DATA.IMG_SIZE", [224, 224], 224),
        ("DATA.MEAN", "auto", "auto"),
        ("DATA.MEAN", "[0.5, 0.5, 1]", [0.5, 0.5, 1.0]),
        ("TEST.CROP_PCT", "0.9", 0.9),
    ],
)
def test_fault_03_values_take_the_type_of_their_key(key, given, value):
    result = flat_config(load_config(ROOT / "configs/swin_tiny.yaml", [(key, given, "--opts")]))[key]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATA.ON_BAD_IMAGE", "grey"),
        ("TRAIN.BASE_LR", "abc"),
        ("TRAIN.BASE_LR", "nan"),
        ("DATA.BATCH_SIZE", "auto"),
        ("DATA.IMG_SIZE", 224.5),
        ("DATA.IMG_SIZE", True),
        ("AMP_ENABLE", 1),
        ("TAG", [1]),
        ("MODEL.SWIN.DEPTHS", "2"),
        ("TRAIN.OPTIMIZER.NAME", "adam"),
        ("AUG.CUTMIX_MINMAX", [0.8, 0.2]),
        ("MODEL.DROP_PATH_RATE", 1.0),
        ("TRAIN.OPTIMIZER.BETAS", [0.9, 1.0]),
        ("AUG.RATIO", [0.0, 1.0]),
        ("AUG.AUTO_AUGMENT", "rand-mX"),
        ("DATA.IMG_SIZE", "9" * 400),
        ("TRAIN.BASE_LR", "9" * 400),
        ("DATA.IMG_SIZE", "[224]"),
        ("DATA.IMG_SIZE", [224, 0]),
        ("DATA.MEAN", []),
        ("DATA.STD", [0.0]),
        ("TEST.CROP_PCT", 1.5),
        ("TEST.CROP_PCT", 1e-9),
        ("TEST.PROBABILITIES", "p.csv"),
        ("TRAIN.FREEZE", "head"),
        ("MODEL.SHA256", "abc"),
        ("DATA.MASK_RATIO", 0.0),
        ("DATA.MASK_RATIO", 1.5),
        ("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", 46),
        ("MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE", 1),
        ("MODEL.TABLE_INTERPOLATION", "linear"),
        ("DISTILLATION.KIND", "token"),
        ("DISTILLATION.ALPHA", 1.5),
        ("DISTILLATION.TEMPERATURE", 0.0),
    ],
)
def test_fault_03_wrong_values_are_rejected(key, value):
    with raises(ConfigError, key, "must ", repr(value)[:150], "--opts"):
        load_config(ROOT / "configs/swin_tiny.yaml", [(key, value, "--opts")])


@pytest.mark.parametrize(
    ("key", "value", "subject", "name"),
    [
        ("TRAIN.EPOHCS", 1, "TRAIN.EPOHCS", "TRAIN.EPOCHS"),
        ("data.batch_size", 1, "data.batch_size", "DATA.BATCH_SIZE"),
        ("TRAIN.BATCH_SIZE", 1, "TRAIN.BATCH_SIZE", "DATA.BATCH_SIZE"),
        ("TRAIN", 1, "TRAIN", "TRAIN.KEY"),
        ("TAG", "../x", "TAG", "'../x'"),
        ("MODEL.NAME", "a/../../../evil", "MODEL.NAME", "'a/../../../evil'"),
        ("TAG", " ", "TAG", "' '"),
        ("TRAIN.START_EPOCH", 300, "TRAIN.START_EPOCH", "TRAIN.EPOCHS"),
        ("TRAIN.EPOCHS", 20, "TRAIN.WARMUP_EPOCHS", "only 20 epochs"),
        ("TRAIN.WARMUP_EPOCHS", 300, "TRAIN.WARMUP_EPOCHS", "only 300 epochs"),
    ],
)
def test_fault_03_keys_that_make_no_sense_are_rejected(key, value, subject, name):
    with raises(ConfigError, subject, name):
        load_config(ROOT / "configs/swin_tiny.yaml", [(key, value, "--opts")])


@pytest.mark.parametrize(
    "key", ["DATA.BATCH_SIZE", "TRAIN.ACCUMULATION_STEPS", "TRAIN.EPOCHS", "DATA.IMG_SIZE", "PRINT_FREQ"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_fault_06_zero_or_negative(key, value):
    with raises(ConfigError, key, "at least 1", value, "--opts"):
        load_config(ROOT / "configs/swin_tiny.yaml", [(key, value, "--opts")])


def test_fault_06_workers_may_be_zero_but_not_negative():
    assert load_config(ROOT / "configs/swin_tiny.yaml", [("DATA.NUM_WORKERS", 0, "x")]).DATA.NUM_WORKERS == 0
    with raises(ConfigError, "DATA.NUM_WORKERS", "at least 0", -1):
        load_config(ROOT / "configs/swin_tiny.yaml", [("DATA.NUM_WORKERS", -1, "x")])


def test_fault_02_unknown_key_names_file_and_nearest(tmp_path):
    path = write(tmp_path, "TRAIN: {EPOCS: 3}")
    with raises(ConfigError, "TRAIN.EPOCS", path, "TRAIN.EPOCHS"):
        load_config(path)


def test_fault_04_base_cycle_prints_the_chain(tmp_path):
    write(tmp_path, "BASE: [b.yaml]", "a.yaml")
    write(tmp_path, "BASE: [a.yaml]", "b.yaml")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    with raises(ConfigError, a, f"{a} -> {b} -> {a}"):
        load_config(a)


def test_fault_04_missing_base_prints_the_chain(tmp_path):
    path = write(tmp_path, "BASE: [gone.yaml]")
    with raises(ConfigError, tmp_path / "gone.yaml", "No such file", f"{path} -> "):
        load_config(path)


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.mkdir [{canary}]", "TAG: !!python/name:os.system ''"])
def test_fault_05_python_tags_are_rejected(tmp_path, text):
    canary = tmp_path / "canary"
    path = write(tmp_path, text.format(canary=canary))
    with raises(ConfigError, f"{path}:1", "python/"):
        load_config(path)
    assert not canary.exists()


def test_fault_05_python_files_are_not_executed(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path, f"import os; os.mkdir({str(canary)!r})", "evil.py")
    with raises(ConfigError, path, ".yaml"):
        load_config(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ("TRAIN: {EPOCHS: 3}\nTRAIN: {EPOCHS: 4}", ":2", "duplicate key TRAIN"),
        ("TRAIN: [", ":1", ""),
        ("- 1", "", "KEY: value"),
        ("1: 2", ":1", "key 1"),
        ("TRAIN: &a {EPOCHS: *a}", "", "anchor"),
    ],
)
def test_malformed_files_are_rejected(tmp_path, text, place, name):
    with raises(ConfigError, f"{tmp_path / 'a.yaml'}{place}", name):
        load_config(write(tmp_path, text))


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(9))


def test_a_file_without_an_end_is_refused(tmp_path):
    (tmp_path / "x.yaml").symlink_to("/dev/zero")
    with raises(ConfigError, tmp_path / "x.yaml", "characters"):
        load_config(tmp_path / "x.yaml")


def test_files_that_multiply_are_refused(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"BASE: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "40.yaml").write_text("TAG: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "0.yaml")
    assert "100 files" in caught.value.problem


@pytest.mark.parametrize(
    "text",
    [
        *("TAG: 2024-13-45", "TAG: !!bool foo", "TAG: !!float foo", "TAG: !!timestamp foo", "TAG: !!int ''"),
        *(
            f"TAG: {'[' * 5000}",
            f"TAG: {'{a: ' * 5000}",
            BOMB + "AUG: {SCALE: *a8}",
            BOMB + "TRAIN: {LR_SCHEDULER: *a8}",
        ),
        *("TAG: x\n" + "#" * 2**20, "AUG: {SCALE: *gone}", "? [a, b]\n: c", "TAG: \x00", "%YAML 9.9\n---\nTAG: x"),
    ],
    ids=lambda text: text[:20],
)
def test_whatever_yaml_raises_is_one_error_of_the_file(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert caught.value.subject.partition(":")[0] == str(tmp_path / "a.yaml") and len(caught.value.problem) < 200


@pytest.mark.parametrize("text", ["[-" * 20_000, "[" * 20_000, "9" * 5000, "1e99999", "{" * 300, "\x1b]0;x\x07"])
def test_a_value_that_cannot_be_read_is_an_error_of_its_key(tmp_path, text):
    path = write(tmp_path, f"AUG: {{SCALE: {json.dumps(text)}}}")
    with raises(ConfigError, "AUG.SCALE"):
        load_config(path)


def test_merge_keys_are_accepted_as_in_the_original(tmp_path):
    text = "AUG: &a {MIXUP: 0.1, CUTMIX: 0.2}\nTRAIN: {EPOCHS: 30}\n"
    path = write(tmp_path, "MODEL: {SWIN: {<<: &s {EMBED_DIM: 32}, DEPTHS: [2, 2, 2, 2]}}\n" + text)
    cfg = load_config(path)
    assert (cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS, cfg.AUG.MIXUP) == (32, [2, 2, 2, 2], 0.1)


def test_a_file_that_is_not_utf8_is_said(tmp_path):
    (tmp_path / "a.yaml").write_bytes("TAG: é".encode("utf-16"))
    with raises(ConfigError, tmp_path / "a.yaml", "UTF-8") as caught:
        load_config(tmp_path / "a.yaml")
    assert "existing" not in caught.value.remedy


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    cfg = load_config(write(tmp_path, "OUTPUT: ~/runs\nDATA: {DATA_PATH: ~/images}\nMODEL: {PRETRAINED: a~b}"))
    assert (cfg.OUTPUT, cfg.DATA.DATA_PATH) == ("/home/someone/runs", "/home/someone/images")
    assert cfg.MODEL.PRETRAINED == "a~b"
    several = load_config(write(tmp_path, "MODEL: {RESUME: '~/a,~/b'}\nTEST: {CLASSES: ~/c.txt}\nEVAL_MODE: true"))
    assert several.MODEL.RESUME == "/home/someone/a,/home/someone/b" and several.TEST.CLASSES == "/home/someone/c.txt"
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "TAG: inherited").rename(tmp_path / "base.yaml")
    assert load_config(write(tmp_path, "BASE: [~/base.yaml]")).TAG == "inherited"


def test_the_metric_of_another_program_is_named_and_a_name_is_not_the_tag():
    for key, remedy in (("TEST.METRIC", "TEST.BEST"), ("LOSS.NAME", "MODEL.NAME")):
        with raises(ConfigError, key, remedy):
            load_config("swin_tiny", [(key, "f1", "test")])


@pytest.mark.parametrize("key", ["BASE", *PATHS, "TAG", "MODEL.NAME"])
def test_a_null_character_is_refused_in_every_key(tmp_path, key):
    with raises(ConfigError, key, "null"):
        load_config(write(tmp_path, ""), [(key, ["x\0.yaml"] if key == "BASE" else "x\0", "--opts")])
    if key == "BASE":
        with raises(ConfigError, key, "null"):
            load_config(write(tmp_path, 'BASE: ["x\\0.yaml"]'))


def test_a_long_list_is_shortened_and_the_remedy_kept(tmp_path):
    with raises(ConfigError, "AUG.SCALE") as caught:
        load_config(write(tmp_path, f"AUG: {{SCALE: {list(range(2000))}}}"))
    line = one_line(caught.value)
    assert len(line) < 500 and "change it in" in line


def test_an_empty_file_is_the_defaults(tmp_path):
    assert changed(load_config(write(tmp_path, ""))) == {}


def test_deprecated_keys_are_accepted_with_one_warning(tmp_path, caplog):
    path = write(tmp_path, "AMP_OPT_LEVEL: O1\nFUSED_LAYERNORM: true\nTEST: {SEQUENTIAL: true}")
    with caplog.at_level(logging.WARNING):
        assert changed(load_config(path)) == {}
    assert [r.getMessage().split()[0] for r in caplog.records] == [
        "AMP_OPT_LEVEL",
        "FUSED_LAYERNORM",
        "TEST.SEQUENTIAL",
    ]
    off = write(tmp_path, "AMP_OPT_LEVEL: O0")
    assert load_config(off).AMP_ENABLE is False
    assert load_config(off, [("AMP_ENABLE", True, "--opts")]).AMP_ENABLE is True
    assert load_config(off, [("AMP_ENABLE", True, "x"), ("AMP_OPT_LEVEL", "O0", "y")]).AMP_ENABLE is False


def test_differences_between_runs_exclude_keys_that_do_not_affect_the_result():
    then = load_config(ROOT / "configs/swin_tiny.yaml")
    now = load_config(
        ROOT / "configs/swin_tiny.yaml",
        [("TRAIN.BASE_LR", 0.1, "x"), ("DATA.NUM_WORKERS", 3, "x"), ("PRINT_FREQ", 1, "x")],
    )
    assert config_differences(now, dump_config(then)) == ["TRAIN.BASE_LR was 0.0005, now 0.1"]
    weights = load_config(ROOT / "configs/swin_tiny.yaml", [("MODEL.PRETRAINED", "a.pth", "x")])
    assert config_differences(weights, dump_config(then)) == ["MODEL.PRETRAINED was empty, now a.pth"]
    before_tasks = dump_config(then).replace("TASK: classification\n", "")
    assert config_differences(then, before_tasks) == []


def test_the_configuration_shared_by_ranks_excludes_per_machine_keys():
    def shared(*overrides):
        return shared_config(load_config(ROOT / "configs/swin_tiny.yaml", [(*each, "x") for each in overrides]))

    here = shared()
    assert here["TRAIN.BASE_LR"] == 0.0005 and here.keys() < flat_config(load_config(RECIPES[0])).keys()
    assert shared(("OUTPUT", "elsewhere"), ("DATA.DATA_PATH", "/mnt"), ("DATA.NUM_WORKERS", 3)) == here
    assert shared(("DATA.BATCH_SIZE", 3)) != here  # the ranks would disagree on the samples of an update


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: {NAME: simmim_pretrain}",
        "DATA: {MASK_RATIO: 0.6}",
        "TASK: simmim",
        "MODEL: {SIMMIM: {NORM_TARGET: {ENABLE: true}}}",
    ],
)
def test_simmim_keys_select_the_task_and_its_augmentation(tmp_path, text):
    cfg = load_config(write(tmp_path, text))
    assert (cfg.TASK, cfg.AUG.SCALE, cfg.DATA.INTERPOLATION) == ("simmim", [0.67, 1.0], "bilinear")
    assert (cfg.AUG.AUTO_AUGMENT, cfg.AUG.REPROB, cfg.AUG.MIXUP, cfg.AUG.CUTMIX) == ("none", 0.0, 0.0, 0.0)
    assert cfg.AMP_ENABLE  # as in the original's script
    kept = load_config(write(tmp_path, text), [("AUG.SCALE", [0.5, 1.0], "--opts"), ("AUG.REPROB", 0.1, "--opts")])
    assert (kept.AUG.SCALE, kept.AUG.REPROB, kept.AUG.MIXUP) == ([0.5, 1.0], 0.1, 0.0)
    assert flat_config(load_config(write(tmp_path, dump_config(kept)))) == flat_config(kept)
    if "TASK" not in text:
        cfg = load_config(write(tmp_path, text + "\nTASK: classification"))
        assert (cfg.TASK, cfg.AUG.MIXUP, cfg.DATA.INTERPOLATION) == ("classification", 0.8, "bicubic")


def test_recipes_of_fine_tuning_from_simmim_follow_its_rules(tmp_path):
    cfg = load_config(write(tmp_path, "MODEL: {NAME: simmim_finetune}"))
    assert not cfg.AMP_ENABLE  # the loop of the original's script ignores the option
    assert load_config(write(tmp_path, "MODEL: {NAME: simmim_finetune}"), [("AMP_ENABLE", True, "x")]).AMP_ENABLE
    assert (cfg.TASK, cfg.MODEL.TABLE_INTERPOLATION, cfg.TRAIN.LAYER_DECAY_RULE) == (
        "classification",
        "geometric",
        "simmim",
    )
    other = load_config(write(tmp_path, "MODEL: {NAME: simmim_finetune, TABLE_INTERPOLATION: bicubic}"))
    assert other.MODEL.TABLE_INTERPOLATION == "bicubic"
    assert load_config(ROOT / "configs/swin_tiny.yaml").TRAIN.LAYER_DECAY_RULE == "timm"


def test_a_dump_of_every_key_does_not_select_simmim(tmp_path):
    text = dump_config(load_config(ROOT / "configs/swin_tiny.yaml")).replace("TASK: classification\n", "")
    assert "MASK_RATIO" in text and load_config(write(tmp_path, text)).TASK == "classification"


SOFT, WEIGHTS = ("DISTILLATION.KIND", "soft", "x"), ("DISTILLATION.WEIGHTS", "FILE", "x")


@pytest.mark.parametrize(
    ("overrides", "key", "name"),
    [
        ([SOFT], "DISTILLATION.WEIGHTS", "file"),
        ([WEIGHTS], "DISTILLATION.WEIGHTS", "DISTILLATION.KIND"),
        ([("DISTILLATION.TEACHER", "swin_base", "x")], "DISTILLATION.TEACHER", "DISTILLATION.KIND"),
        ([SOFT, WEIGHTS, ("TASK", "simmim", "x")], "DISTILLATION.KIND", "soft"),
    ],
)
def test_a_distillation_that_makes_no_sense_is_rejected(overrides, key, name):
    with raises(ConfigError, key, name):
        load_config("swin_tiny", overrides)


def test_the_configuration_of_weights_is_the_named_recipe_else_the_released_else_the_stored_one():
    stored = {"config": dump_config(load_config("swin_tiny", [("TRAIN.WARMUP_EPOCHS", 0, "x"), ("TAG", "own", "x")]))}
    assert config_of_weights(stored, "FILE").TAG == "own"
    assert config_of_weights(stored, "FILE", overrides=[("TAG", "other", "x")]).TAG == "other"
    assert config_of_weights(stored, "FILE", "swin_base").MODEL.SWIN.EMBED_DIM == 128
    assert config_of_weights({}, "hub:swinv2_tiny_patch4_window8_256").MODEL.TYPE == "swinv2"
    with raises(ConfigError, "FILE", "--cfg"):
        config_of_weights({}, "FILE")
    with raises(ConfigError, "--teacher", "swin_tny", "swin_tiny"):
        config_of_weights(stored, "FILE", "swin_tny", option="--teacher")


def test_empty_names_are_not_evaluated(tmp_path):
    with raises(ConfigError, "--eval", "--resume"):
        load_config(write(tmp_path, "EVAL_MODE: true"), [("MODEL.RESUME", " , ", "--resume")])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("swin_tiny", "swin_tiny.yaml"),
        ("swin_tiny.yaml", "swin_tiny.yaml"),
        ("configs/swin_tiny.yaml", "swin_tiny.yaml"),
        ("swinv2_base_patch4_window8_256", "swinv2/swinv2_base_patch4_window8_256.yaml"),
    ],
)
def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, name, file):
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(ROOT / "configs" / file)
    (tmp_path / "swin_tiny.yaml").write_text("TAG: own")
    assert load_config("swin_tiny.yaml").TAG == "own"


def test_a_folder_is_not_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swin_tiny").mkdir()
    assert find_config("swin_tiny") == ROOT / "configs/swin_tiny.yaml"
    with raises(ConfigError, "--cfg", tmp_path):
        find_config(tmp_path)


@pytest.mark.parametrize("name", [".", "..", "", "a" * 300, "a/" * 3000 + "b", "x\0.yaml", "\ud800"])
def test_a_name_that_no_file_can_have_is_reported(name):
    with raises(ConfigError, "--cfg"):
        find_config(name)


@pytest.mark.parametrize("name", ["swin_tny", "swin_tny.yaml", "gone/swin_tny.yaml"])
def test_a_missing_recipe_is_reported_with_the_nearest_one(name):
    with raises(ConfigError, "--cfg", name, "did you mean swin_tiny"):
        find_config(name)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("TEST.IMG_SIZE", 64, "0"),
        ("TRAIN.FREEZE", "all", "'none'"),
        ("TEST.CLASSES", "present", "''"),
        ("TRAIN.LAYER_DECAY", 0.8, "1.0"),
        ("MODEL.TYPE", "swin_moe", "swin or swinv2"),
    ],
)
def test_keys_without_meaning_in_pre_training_are_rejected(key, value, valid):
    with raises(ConfigError, key, value, f"set it to {valid}"):
        load_config(ROOT / "configs/swin_tiny.yaml", [("TASK", "simmim", "x"), (key, value, "x")])


def test_the_number_of_experts_is_part_of_the_configuration(monkeypatch):
    """Later readers of the file may have another world size."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    given = [("MODEL.TYPE", "swin_moe", "x"), ("MODEL.SWIN_MOE.MOE_BLOCKS", [[1]], "x")]
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", [*given, ("MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS", 2, "x")])
    assert cfg.MODEL.SWIN_MOE.NUM_EXPERTS == 8
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parse_config(dump_config(cfg), "x")["MODEL.SWIN_MOE.NUM_EXPERTS"] == 8
    assert load_config(ROOT / "configs/swin_tiny.yaml", given[:1]).MODEL.SWIN_MOE.NUM_EXPERTS == 0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DATA.DATA_PATH", "photos", True),
        ("MODEL.PRETRAINED", "hub:swin_tiny_patch4_window7_224", False),
        ("MODEL.PRETRAINED", "hf:me/photos", False),
        ("MODEL.PRETRAINED", "weights.pth", True),
        ("LOSS.CLASS_WEIGHTS", "inverse", False),
        ("LOSS.CLASS_WEIGHTS", "own/weights.csv", True),
        ("DISTILLATION.TEACHER", "swin_base", False),
        ("TRAIN.EPOCHS", 3, False),
        ("DATA.NUM_WORKERS", 3, True),
    ],
)
def test_values_that_name_files_or_the_machine_are_local(name, value, expected):
    assert is_local(name, value) == expected


@pytest.mark.parametrize("recipe", ["finetune", "finetune_large"])
def test_runs_are_not_ended_before_their_rate_has_fallen(recipe):
    """A best evaluation by chance, early in a run on few images, must leave half of the schedule."""
    assert load_config(recipe).TRAIN.PATIENCE >= epochs_for(1) / 2


def test_what_needs_validation_data_is_said(caplog):
    unvalidated = [("TEST.VALIDATE", False, "test")]
    with raises(ConfigError, "TRAIN.LR_SCHEDULER.NAME", "TEST.VALIDATE"):
        load_config("swin_tiny", [*unvalidated, ("TRAIN.LR_SCHEDULER.NAME", "plateau", "test")])
    load_config("finetune", unvalidated)
    assert "TRAIN.PATIENCE has no effect" in caplog.text
