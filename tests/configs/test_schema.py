"""Invariants of the table of keys."""

import re

from configs import schema
from configs.schema import KEYS, SCHEMA, TASKS, flatten
from configs.values import kind_of
from tests.conftest import ROOT


def test_every_key_has_a_meaning_and_a_default_that_is_valid():
    for name, key in KEYS.items():
        assert key.about.strip() and not key.about.endswith("."), name
        assert (key.kind or kind_of(key.default)).convert(key.default) == key.default, name
        assert key.default is None or key.check is None or key.check(key.default) is None, name


def test_keys_of_a_task_are_in_its_folder():
    assert list(flatten(TASKS["simmim"].keys)) == [
        *("DATA.MASK_PATCH_SIZE", "DATA.MASK_RATIO"),
        *("MODEL.SIMMIM.NORM_TARGET.ENABLE", "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE"),
        "MODEL.SIMMIM.DECAY_POSITION_BIAS",
    ]
    assert all(flatten(own.keys).keys() <= KEYS.keys() for own in TASKS.values())


def test_keys_that_may_change_between_two_starts_of_a_run_are_those_of_the_documentation():
    """The mark there means that the key cannot affect the result."""
    page = (ROOT / "docs/configuration.md").read_text()
    marked = set(re.findall(r"^\| `(.*?)` \* \|", page, re.MULTILINE))
    assert marked == {name for name, key in KEYS.items() if key.free}
    assert {name for name, key in KEYS.items() if key.per_machine} <= marked


def test_every_family_has_the_keys_of_a_pyramid():
    common = set(schema.pyramid())
    families = ("SWIN", "SWINV2", "SWIN_MLP", "SWIN_MOE")
    assert all(common <= SCHEMA["MODEL"][family].keys() for family in families)
    assert SCHEMA["MODEL"]["SWIN_MLP"].keys() == common
    assert schema.pyramid(APE=schema.QKV_BIAS)["APE"] is schema.QKV_BIAS


def test_groups_are_flattened_in_order():
    assert flatten({"A": {"B": 1, "C": {"D": 2}}, "E": []}) == {"A.B": 1, "A.C.D": 2, "E": []}
    assert list(KEYS)[:3] == ["TASK", "BASE", "DATA.BATCH_SIZE"]
