"""docs/models.md and docs/configuration.md, which a script writes."""

import re

import pytest

from configs.options import OPTIONS
from configs.schema import KEYS
from scripts import doc_tables
from scripts.doc_tables import DOCS, PAGES, configuration_page, main, models_page


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_up_to_date(name, tmp_path, monkeypatch):
    """python -m scripts.doc_tables writes them."""
    monkeypatch.setattr(doc_tables, "DOCS", tmp_path)
    main()
    assert (tmp_path / name).read_text() == (DOCS / name).read_text()


def test_every_released_recipe_has_a_row():
    lines = [line for line in models_page().splitlines() if line.startswith("|")]
    assert len(re.findall(r"^\| swin", models_page(), re.MULTILINE)) == 42 and len(lines) == 46
    assert {line.count("|") for line in lines} == {9}
    tiny = next(line for line in lines if line.startswith("| swin_tiny_patch4_window7_224 |"))
    assert tiny.startswith(
        "| swin_tiny_patch4_window7_224 | 224 | 7 | 28,288,354 | 4.5 | 81.2 | 95.5 | [file](https://"
    )
    cosine = "| swin_moe_base_patch4_window12_192_cosine_router_32expert_32gpu_22k | 32 | cosine | 956,841,179 | 12.7 |"
    assert f"{cosine} 38.5 | 85.3 | 77.3 |" in lines


def test_rows_are_sorted_by_family_then_size():
    rows = [line.split(" | ") for line in models_page().splitlines() if line.startswith("| swin")]
    order = [("swinv2" in row[0]) + 2 * ("mlp" in row[0]) + 3 * ("moe" in row[0]) for row in rows]
    sizes = [int(row[3].replace(",", "")) for row in rows]
    assert list(zip(order, sizes, strict=True)) == sorted(zip(order, sizes, strict=True))


def test_every_key_has_a_row_with_its_option():
    rows = re.findall(r"^\| `([A-Z0-9_.]+)`( \*)? \|", configuration_page(), re.MULTILINE)
    assert [name for name, _ in rows if name in KEYS] == [name for name, _ in rows]
    assert {name for name, _ in rows} == {name for name, key in KEYS.items() if not key.deprecated}
    assert all(bool(star) == KEYS[name].free for name, star in rows)
    page = configuration_page()
    assert all(f"`{name}`" in page for name, option in OPTIONS.items() if not KEYS[option.key].deprecated)
    assert "| `TRAIN.BASE_LR` | `0.0005` | peak learning rate per 512 images of global batch |  |" in page
