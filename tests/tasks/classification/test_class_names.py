"""ImageNet's class names as words."""

from timm.data import ImageNetInfo

from tasks.classification.class_names import in_words


def test_synsets_become_words_and_other_names_stay():
    assert in_words(["n01440764", "n00000000", "cat", "n00004475"]) == ("tench", "n00000000", "cat", "organism")


def test_classes_with_the_same_word_stay_different():
    names = ImageNetInfo("imagenet-1k").label_names()
    words = in_words(names)
    assert len(set(words)) == 1000
    assert words[names.index("n02012849")] == "crane (n02012849)" and words[names.index("n03126707")] != words[134]
