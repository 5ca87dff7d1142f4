"""Option names of other programs map to existing keys."""

import pytest

from configs.options import OPTIONS
from configs.schema import KEYS
from configs.synonyms import SYNONYMS, meant_by


def test_every_synonym_maps_to_a_key_or_an_option():
    assert set(SYNONYMS.values()) <= {"--cfg", *OPTIONS, *KEYS}
    assert list(SYNONYMS) == sorted(SYNONYMS) and not any(word != word.lower() for word in SYNONYMS)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("--lr", "TRAIN.BASE_LR"),
        ("TRAIN.LR", "TRAIN.BASE_LR"),
        ("--num_epochs", "TRAIN.EPOCHS"),
        ("--seed", "SEED"),
        ("--mixup", "AUG.MIXUP"),
        ("--name", "--tag"),
        ("--depths", None),  # of several models
        ("--no-such-thing", None),
    ],
)
def test_equivalent_keys_are_found(name, key):
    assert meant_by(name, list(KEYS)) == key
