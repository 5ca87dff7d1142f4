"""Option names of other programs map to existing keys."""

import re

import pytest

from configs.options import OPTIONS
from configs.schema import KEYS
from configs.synonyms import ABSENT, CONVERTED, SYNONYMS, meant_by


def test_every_synonym_maps_to_keys_and_options():
    words = [word for meaning in SYNONYMS.values() for word in meaning.split()]
    assert {word for word in words if word.startswith("--")} <= {"--cfg", "--model", *OPTIONS}
    assert {word for word in words if re.fullmatch(r"[A-Z]+\.[A-Z_.]+", word)} <= set(KEYS)
    tables = (SYNONYMS, CONVERTED, ABSENT)
    for table in tables:
        assert list(table) == sorted(table) and not any(word != word.lower() for word in table)
    assert len({word for table in tables for word in table}) == sum(map(len, tables))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("--lr0", "--lr"),
        ("TRAIN.LEARNING_RATE", "--lr"),
        ("--num_epochs", "--epochs"),
        ("--seed", "SEED"),
        ("--mixup", "AUG.MIXUP"),
        ("--name", "--tag"),
        ("--depths", None),  # of several models
        ("--no-such-thing", None),
    ],
)
def test_equivalent_keys_are_found(name, key):
    assert meant_by(name, list(KEYS)) == key
