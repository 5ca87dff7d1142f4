"""ImageNet's class names as words."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo

from data.sources.names import is_synset


def in_words(class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the first word of each ImageNet synset ("n01440764": "tench"), and other names unchanged.

    Names stay unique: synsets that share a word keep their number ("crane (n02012849)").
    """
    words = [_word(name) for name in class_names]
    often = Counter(words)
    pairs = zip(class_names, words, strict=True)
    return tuple(word if often[word] == 1 or word == name else f"{word} ({name})" for name, word in pairs)


@cache
def _word(class_name: str) -> str:
    if not is_synset(class_name):
        return class_name
    for subset in ("imagenet-1k", "imagenet-22k"):
        try:
            return str(_info(subset).label_name_to_description(class_name)).split(",")[0]
        except KeyError:
            continue
    return class_name


@cache
def _info(subset: str) -> ImageNetInfo:
    return ImageNetInfo(subset)
