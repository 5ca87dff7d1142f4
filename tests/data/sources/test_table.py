"""CSV and TSV files as people write them."""

import pytest

from data.sources.base import Pool
from data.sources.open import SourceOptions, find_store
from data.sources.table import Columns
from tests.tools.builders import write_photos
from tests.tools.errors import raises
from utils.errors import ConfigError, DataError

PATHS = [
    "train/class_0/photo_0.jpg",
    "train/class_1/photo_0.jpg",
    "train/class_0/photo_1.jpg",
    "val/class_1/photo_0.jpg",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("table") / "photos", classes=2, train=2, val=1)


def opened(folder, text, name="labels.csv", **columns):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_store(SourceOptions("imagenet", str(folder / name), columns=Columns(**columns)), ("train", "val"))


def whole(folder, text, name="labels.csv", **columns):
    source = opened(folder, text, name, **columns).open_whole()
    return source, {source.key(i): source.class_names[source.label(i)] for i in range(len(source))}


EXPECTED = dict(zip(PATHS, ("cat", "dog", "cat", "dog"), strict=True))


@pytest.mark.parametrize(
    ("text", "name", "columns"),
    [
        ("path,label\n" + "".join(f"{p},{c}\n" for p, c in EXPECTED.items()), "a.csv", {}),
        ("\ufeffFileName;Class\r\n" + "".join(f'"{p}";"{c}"\r\n' for p, c in EXPECTED.items()), "b.csv", {}),
        ("".join(f"{p}\t{c}\n\n" for p, c in EXPECTED.items()), "c.tsv", {}),
        (
            "id,what,where\n" + "".join(f"7,{c},{p}\n" for p, c in EXPECTED.items()),
            "d.csv",
            {"image": "where", "label": "what"},
        ),
        ("".join(f"x,{p},{c}\n" for p, c in EXPECTED.items()), "e.csv", {"image": "1", "label": "2"}),
    ],
    ids=["header", "excel", "tsv without header", "named", "positions"],
)
def test_layouts(folder, text, name, columns):
    source, labels = whole(folder, text, name, **columns)
    assert labels == EXPECTED and source.class_names == ("cat", "dog") and source.counts() == [2, 2]
    assert source[0].data == (folder / source.key(0)).read_bytes()


def test_paths_may_be_absolute_and_numbers_are_sorted_by_value(folder):
    text = "image,label\n" + "".join(f"{folder / p},{n}\n" for p, n in zip(PATHS, (10, 9, 100, 9), strict=True))
    source, _ = whole(folder, text)
    assert source.class_names == ("9", "10", "100") and source.name(0) == str(folder / source.key(0))


def test_splits_and_weights(folder):
    rows = zip(PATHS, ("a", "b", "a", "b"), ("train", "Validation", "train", "TRAINING"), (1, 2, 0.5, 3), strict=True)
    store = opened(folder, "path,label,split,weight\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    train, val = store.open("train"), store.open("val", ("a", "b"))
    assert (len(train), len(val)) == (3, 1) and val.key(0) == PATHS[1]
    assert dict(zip(map(train.key, range(3)), train.column("weight"), strict=True)) == {
        PATHS[0]: 1,
        PATHS[2]: 0.5,
        PATHS[3]: 3,
    }
    text = "path,label,is_valid\n" + "".join(f"{p},a,{v}\n" for p, v in zip(PATHS, ("False", "True") * 2, strict=True))
    assert len(opened(folder, text).open("val")) == 2
    tested = opened(folder, text.replace("is_valid", "split").replace("False", "train").replace("True", "test"))
    assert tested.has("val") and len(tested.open("val")) == 2
    with raises(DataError, folder / "labels.csv", "split val"):
        opened(folder, text.replace("True", "False")).open("val")
    assert isinstance(opened(folder, text, split=""), Pool)
    with raises(DataError, folder / "labels.csv", "b"):
        opened(folder, f"path,label\n{PATHS[0]},b\n").open_whole(("a",))


def test_several_labels(folder):
    text = "path,labels\n" + "".join(f"{p},{own}\n" for p, own in zip(PATHS, ("x; y", "y", "", "z;x;x"), strict=True))
    source = opened(folder, text, several=True).open_whole()
    assert source.class_names == ("x", "y", "z") and source.counts() == [2, 2, 1]
    found = {source.key(i): source[i].target for i in range(4)}
    assert found == dict(zip(PATHS, ((0, 1), (1,), (), (0, 2)), strict=True))
    assert source.labels_of(0) == found[source.key(0)]
    columns = "path,x,y,z\n" + "".join(
        f"{p},{bits}\n" for p, bits in zip(PATHS, ("1,1,0", "0,1,0", "0,0,0", "1,0,1"), strict=True)
    )
    binary = opened(folder, columns, several=True).open_whole()
    assert binary.class_names == ("x", "y", "z") and {binary.key(i): binary[i].target for i in range(4)} == found
    assert binary.fingerprint() == source.fingerprint()


@pytest.mark.parametrize(
    ("text", "error", "subject", "words"),
    [
        ("", DataError, "", ("empty",)),
        ("path,label\n", DataError, "", ("no rows",)),
        ("path,label\ngone.jpg,a\n", DataError, ":2", ("no such image", "relative")),
        (f"path,label\n{PATHS[0]}\n", DataError, ":2", ("1 cells",)),
        (f"path,label\n{PATHS[0]},\n", DataError, ":2", ("no label",)),
        (f"path,label,split\n{PATHS[0]},a,later\n", DataError, ":2", ("later",)),
        (f"path,label,weight\n{PATHS[0]},a,nan\n", DataError, ":2", ("nan",)),
        ('path,label\n"a,b\n', DataError, "", ("not a table",)),
        (b"path,label\n\xff\xfe,a\n", DataError, "", ("not UTF-8",)),
        (f"photo,kind\n{PATHS[0]},a\n", ConfigError, "DATA.IMAGE_COLUMN", ("photo",)),
        (f"path,kind\n{PATHS[0]},a\n", ConfigError, "DATA.LABEL_COLUMN", ("kind",)),
    ],
)
def test_mistakes_are_one_line_with_their_place(folder, text, error, subject, words):
    with raises(error, f"{folder / 'labels.csv'}{subject}" if error is DataError else subject, *words):
        opened(folder, text)


def test_a_column_that_is_not_there(folder):
    with raises(ConfigError, "DATA.LABEL_COLUMN", "did you mean kind"):
        opened(folder, f"path,kind\n{PATHS[0]},a\n", label="kinds")
    with raises(ConfigError, "DATA.WEIGHT_COLUMN", "position"):
        opened(folder, f"{PATHS[0]},a\n", weight="heavy")
