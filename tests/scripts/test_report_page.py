"""Parts of a report's page."""

import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from scripts.report_page import as_html, environment, facts, heading, in_order, log_lines, saved_pictures
from scripts.run_folder import Run
from utils.pictures import Sheet, new_figure

RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def plot():
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([0, 5, 10], [1.5, 2.0, float("nan")], label="a & b")
    axes.plot([0, 10], [0.5, 2.5], label="_nolegend_")
    axes.set_title("loss")
    axes.text(0, 1, "in white", color="white")
    return figure


def test_a_figure_takes_the_colours_of_the_page(plot):
    svg = as_html(plot)
    assert svg.startswith('<svg class="plot"') and "metadata" not in svg
    assert "#000000" not in svg and "currentColor" in svg  # axes and text
    assert "fill: #ffffff" in svg and svg.count("#ffffff") == 1  # no background, but the text that is white
    ElementTree.fromstring(svg)


def test_the_values_of_a_line_appear_where_its_points_are(plot):
    """A value that is NaN has no point, and a line outside of the legend no tips."""
    svg = as_html(plot)
    tips = re.findall(r'<circle cx="(.*?)" cy="(.*?)" r="4"><title>(.*?)</title>', svg)
    assert [tip for _, _, tip in tips] == ["a &amp; b: 1.5 at 0", "a &amp; b: 2 at 5"]
    line = re.search(r'd="M (\S+) (\S+) \s*L (\S+) (\S+) \s*" clip-path="\S+" style="fill: none; stroke: #1f77b4', svg)
    drawn = [float(each) for each in line.groups()]
    assert [float(each) for *place, _ in tips for each in place] == pytest.approx(drawn, abs=0.1)


def test_a_sheet_is_laid_out_by_the_page():
    page = as_html(Sheet([(RED, "a < b"), (RED, "c")], "title", "as drawn"))
    assert page.count("<figure><img ") == 2 and "<figcaption>a &lt; b</figcaption>" in page and "as drawn" in page


def test_pictures_of_the_run_have_headings(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("train_first_batch", "val_expert_load"):
        RED.save(tmp_path / f"pictures/{name}.png")
    assert list(saved_pictures(tmp_path)) == ["First training batch", "Expert load"]
    known = [heading(name) for name in ("other_thing", "confusion", "first_batch", "confusion")]
    assert in_order(known) == ["First training batch", "Confusion matrix", "Other thing"]


def test_dates_rates_and_norms_are_stated(tmp_path):
    (tmp_path / "env.json").write_text(json.dumps({"started": "2026-03-01T09:05:31+00:00"}))
    train = [{"lr": 0.1, "grad_norm": 3.0}, {"lr": 0.001, "grad_norm": None}, {"lr": 0.0001, "grad_norm": 1.0}]
    assert facts(Run(tmp_path, "a/b", {}, train, [])) == {
        "started": "2026-03-01 09:05 UTC",
        "learning rate": "up to 0.1, last 0.0001",
        "gradient norm": "median 2, largest 3",
    }


def test_the_environment_is_that_of_the_last_start_without_folders(tmp_path):
    lines = ["plan: old", "weights: fresh", "plan: 2 epochs", "weights: /home/me/own.pth (--pretrained)", "other"]
    (tmp_path / "log.txt").write_text("".join(f"[03-01 09:05:31] {line}\n" for line in lines))
    assert environment(log_lines(tmp_path)) == ["plan: 2 epochs", "weights: own.pth (--pretrained)"]


@pytest.mark.parametrize("text", [None, "{}", "[]", "{"])
def test_a_run_without_a_log_has_no_dates(tmp_path, text):
    if text is not None:
        (tmp_path / "env.json").write_text(text)
    assert set(facts(Run(tmp_path, "a/b", {}, [], [])).values()) == {""} and log_lines(tmp_path) == []
