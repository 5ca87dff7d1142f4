"""Names and colours of classes from files and layouts."""

import pytest

from data.sources.class_tables import CITYSCAPES, CITYSCAPES_IDS, VOC, class_table
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.mark.parametrize(
    ("text", "names", "colours"),
    [
        ("sky\ntraffic light\n\n# a remark\n", ("sky", "traffic light"), ()),
        ("sky 128 64 7\nroad,0,1,2\n", ("sky", "road"), ((128, 64, 7), (0, 1, 2))),
        ("lane 2\n", ("lane 2",), ()),
        ("lane 2 0 0 300\n", ("lane 2 0 0 300",), ()),
    ],
)
def test_a_line_is_a_name_or_a_name_and_its_colour(tmp_path, text, names, colours):
    (tmp_path / "classes.txt").write_text(text)
    table = class_table(tmp_path, "folders")
    assert table.names == names and table.colours == colours and table.origin.endswith("classes.txt")


def test_ade20ks_table_names_a_class_in_its_last_column(tmp_path):
    head = "Idx\tRatio\tTrain\tVal\tName\n"
    (tmp_path / "objectInfo150.txt").write_text(f"{head}1\t0.16\t11664\t1172\twall\n2\t0.1\t1\t1\tbuilding, edifice\n")
    assert class_table(tmp_path, "ade20k").names == ("wall", "building")


def test_known_layouts_have_names_and_others_none(tmp_path):
    assert class_table(tmp_path, "voc").names == VOC and len(VOC) == 21
    assert class_table(tmp_path, "cityscapes").names == CITYSCAPES and len(CITYSCAPES) == len(CITYSCAPES_IDS) == 19
    assert class_table(tmp_path, "folders") == ((), (), "")


@pytest.mark.parametrize(
    ("text", "named"),
    [("a 1 2 3\nb\n", "colour"), ("\n", "no classes"), ("a\na\n", "a twice"), ("a 1 2 3\nb 1 2 3\n", "a, b")],
)
def test_a_file_that_makes_no_sense_is_rejected(tmp_path, text, named):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with raises(DataError, path, named):
        class_table(tmp_path, "folders", str(path))
    with raises(DataError, tmp_path / "none.txt"):
        class_table(tmp_path, "folders", str(tmp_path / "none.txt"))
