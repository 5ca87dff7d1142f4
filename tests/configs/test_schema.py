"""The table of keys: what every key must have."""

import pytest

from configs import schema
from configs.schema import KEYS, SCHEMA, TASKS, flatten
from configs.values import kind_of


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_a_meaning_and_a_default_that_is_valid(name):
    key = KEYS[name]
    assert key.about.strip() and not key.about.endswith(".")
    kind = key.kind or kind_of(key.default)
    assert kind.convert(key.default) == key.default
    assert key.default is None or key.check is None or key.check(key.default) is None


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


def test_keys_of_a_task_are_in_its_room():
    assert list(flatten(TASKS["simmim"].keys)) == [
        *("DATA.MASK_PATCH_SIZE", "DATA.MASK_RATIO"),
        *("MODEL.SIMMIM.NORM_TARGET.ENABLE", "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE"),
    ]
    assert all(flatten(own.keys).keys() <= KEYS.keys() for own in TASKS.values())


def test_every_family_has_the_keys_of_a_pyramid():
    common = set(schema.pyramid())
    families = ("SWIN", "SWINV2", "SWIN_MLP", "SWIN_MOE")
    assert all(common <= SCHEMA["MODEL"][family].keys() for family in families)
    assert SCHEMA["MODEL"]["SWIN_MLP"].keys() == common
    assert schema.pyramid(APE=schema.QKV_BIAS)["APE"] is schema.QKV_BIAS


def test_groups_are_flattened_in_order():
    assert flatten({"A": {"B": 1, "C": {"D": 2}}, "E": []}) == {"A.B": 1, "A.C.D": 2, "E": []}
    assert list(KEYS)[:3] == ["TASK", "BASE", "DATA.BATCH_SIZE"]
