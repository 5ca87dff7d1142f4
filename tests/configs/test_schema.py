"""The table of keys: what every key must have."""

import pytest

from configs import schema
from configs.schema import KEYS, SCHEMA, flatten
from configs.values import kind_of


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
        *(
            "MODEL.NUM_CLASSES",
            "MODEL.ATTENTION",
            "TRAIN.AUTO_RESUME",
            "TRAIN.ACCUMULATION_STEPS",
            "TRAIN.USE_CHECKPOINT",
        ),
        *("TRAIN.CHECKPOINT_STAGES", "TRAIN.PARALLEL"),
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
        *(
            "TRAIN.MOE.SAVE_MASTER",
            "TEST.SEQUENTIAL",
            "TEST.SHUFFLE",
            "AMP_OPT_LEVEL",
            "ENABLE_AMP",
            "FUSED_WINDOW_PROCESS",
        ),
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
