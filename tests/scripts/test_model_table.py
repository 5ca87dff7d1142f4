"""The table of released models in README.md."""

import re

from scripts.model_table import BEGIN, END, README, main, table


def test_every_released_recipe_has_a_row():
    lines = table().splitlines()
    assert len(re.findall(r"^\| swin", table(), re.MULTILINE)) == 31 and len(lines) == 33
    assert {line.count("|") for line in lines} == {9}
    tiny = next(line for line in lines if line.startswith("| swin_tiny_patch4_window7_224 |"))
    assert tiny.startswith(
        "| swin_tiny_patch4_window7_224 | 224 | 7 | 28,288,354 | 4.5 | 81.2 | 95.5 | [file](https://"
    )


def test_rows_are_sorted_by_family_then_size():
    rows = [line.split(" | ") for line in table().splitlines()[2:]]
    order = [("swinv2" in row[0]) + 2 * ("mlp" in row[0]) for row in rows]
    sizes = [int(row[3].replace(",", "")) for row in rows]
    assert list(zip(order, sizes, strict=True)) == sorted(zip(order, sizes, strict=True))


def test_the_readme_contains_the_table():
    assert README.read_text().split(BEGIN)[1].split(END)[0].strip() == table().strip()


def test_the_script_replaces_the_table_and_nothing_else(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nan old table\n{END}\nafter\n")
    monkeypatch.setattr("scripts.model_table.README", readme)
    main()
    assert readme.read_text() == f"before\n{BEGIN}\n{table()}{END}\nafter\n"
    main()
    assert readme.read_text() == f"before\n{BEGIN}\n{table()}{END}\nafter\n"
