"""The table of keys: every check by value, and what every key must have."""

import pytest

from configs import schema
from configs.schema import KEYS, SCHEMA, flatten
from configs.values import kind_of


@pytest.mark.parametrize(
    ("check", "good", "bad", "complaint"),
    [
        (schema.at_least(1), [1, 2.5], [0, -1], "must be at least 1"),
        (schema.above(0), [1e-9], [0, -1], "must be above 0"),
        (schema.within(0, 1), [0, 0.5, 1], [-0.1, 1.1], "must be between 0 and 1"),
        (schema.below_one, [0, 0.999], [1, -0.1], "must be at least 0 and below 1"),
        (schema.one_of("a", "b"), ["a", "b"], ["c", ""], "choose one of a, b"),
        (schema.pair(1), [[0.1, 1.0], [0.5, 0.5]], [[0.5, 0.1], [0, 1], [0.1, 1.1], [0.1]], "the smaller first, above"),
        (schema.two_below_one, [[0.9, 0.999], [0, 0]], [[0.9], [0.9, 1.0], [-0.1, 0.9]], "two numbers, at least 0"),
        (schema.sides(1), [224, [224, 1]], [0, [224, 0]], "must be at least 1"),
        (schema.numbers, [[0.5], "auto"], [[]], "a number for each channel"),
        (schema.positives, [[0.5, 1.0], "auto"], [[], [0.0], [1.0, -1.0], "x"], "a number above 0 for each channel"),
        (schema.crop_fraction, ["auto", 0.9, 1], [0, 1.1], "above 0 and at most 1"),
        (
            schema.policy,
            ["", "none", "rand-m9-mstd0.5-inc1", "original", "originalr-mstd0.5", "augmix-m5-w4-d2", "v0", "3a"],
            ["rand-mX", "nonsense", "rand_m9", "none-m1"],
            "a policy of timm",
        ),
        (schema.frozen, ["none", "all", "0", "3"], ["head", "-1", "1.5", ""], "none, all or a number of stages"),
        (schema.hexadecimal, ["", "aF" * 32], ["aF" * 31, "g" * 64], "64 hexadecimal digits"),
        (schema.positive_list, [[2, 2]], [[], [2, 0]], "a list of numbers above 0"),
    ],
    ids=lambda value: getattr(value, "__qualname__", "").split(".")[0] or None,
)
def test_checks_accept_the_good_and_explain_the_bad(check, good, bad, complaint):
    assert [check(value) for value in good] == [None] * len(good)
    assert all(complaint in (check(value) or "") for value in bad), [check(value) for value in bad]


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_a_meaning_and_a_default_that_is_valid(name):
    key = KEYS[name]
    assert key.about.strip() and not key.about.endswith(".")
    kind = key.kind or kind_of(key.default)
    assert kind.convert(key.default) == key.default
    assert key.default is None or key.check is None or key.check(key.default) is None


def test_keys_that_may_change_between_two_starts_of_a_run():
    """Adding a key here means: it cannot affect the result."""
    assert [name for name, key in KEYS.items() if key.free] == [
        *("BASE", "DATA.BATCH_SIZE", "DATA.DATA_PATH", "DATA.ZIP_MODE", "DATA.CACHE_MODE", "DATA.ACCEPT_CHANGES"),
        *("DATA.PIN_MEMORY", "DATA.NUM_WORKERS", "DATA.ON_BAD_IMAGE", "DATA.TIMEOUT", "MODEL.RESUME", "MODEL.SHA256"),
        *("MODEL.NUM_CLASSES", "TRAIN.AUTO_RESUME", "TRAIN.ACCUMULATION_STEPS", "TRAIN.USE_CHECKPOINT"),
        "TRAIN.CHECKPOINT_STAGES",
        *("TRAIN.GLOBAL_BATCH_SIZE", "TRAIN.SAVE_EVERY_UPDATES", "TRAIN.SAVE_EVERY_MINUTES", "TRAIN.KEEP_CHECKPOINTS"),
        *(
            "TRAIN.MAX_SKIPPED_UPDATES",
            "DISTILLATION.SHA256",
            "TEST.REAL",
            "TEST.CLASSES",
            "TEST.PER_CLASS",
            "TEST.RESULTS",
            "DEVICE",
            "LOG.WANDB",
        ),
        *("OUTPUT", "SAVE_FREQ", "PRINT_FREQ", "TIMEOUT_MINUTES", "EVAL_MODE", "DRY_RUN", "PROFILE", "THROUGHPUT_MODE"),
    ]


def test_keys_that_may_differ_between_the_machines_of_a_job():
    """Adding a key here means: it says where something is on a machine, or how fast it is."""
    names = [name for name, key in KEYS.items() if key.per_machine]
    assert names == [
        *("DATA.DATA_PATH", "DATA.ZIP_MODE", "DATA.CACHE_MODE", "DATA.PIN_MEMORY", "DATA.NUM_WORKERS", "OUTPUT"),
    ]
    assert all(KEYS[name].free for name in names)


def test_keys_of_the_original_that_are_ignored():
    assert [name for name, key in KEYS.items() if key.deprecated] == [
        *("TEST.SEQUENTIAL", "TEST.SHUFFLE", "AMP_OPT_LEVEL", "ENABLE_AMP", "FUSED_WINDOW_PROCESS"),
        *("FUSED_LAYERNORM", "LOCAL_RANK"),
    ]


def test_keys_of_pre_training():
    assert [name for name, key in KEYS.items() if key.task == "simmim"] == [
        *("DATA.MASK_PATCH_SIZE", "DATA.MASK_RATIO"),
        *("MODEL.SIMMIM.NORM_TARGET.ENABLE", "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE"),
    ]


def test_every_family_has_the_keys_of_a_pyramid():
    common = set(schema.pyramid())
    families = ("SWIN", "SWINV2", "SWIN_MLP", "SWIN_MOE")
    assert all(common <= SCHEMA["MODEL"][family].keys() for family in families)
    assert SCHEMA["MODEL"]["SWIN_MLP"].keys() == common
    assert schema.pyramid(APE=schema.QKV_BIAS)["APE"] is schema.QKV_BIAS


def test_groups_are_flattened_in_order():
    assert flatten({"A": {"B": 1, "C": {"D": 2}}, "E": []}) == {"A.B": 1, "A.C.D": 2, "E": []}
    assert list(KEYS)[:3] == ["TASK", "BASE", "DATA.BATCH_SIZE"]
