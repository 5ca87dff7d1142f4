"""The page about runs: its contents, and its rendering in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from configs.loading import dump_config
from scripts.report import main
from tests.scripts.test_run_folder import write
from tests.tools.builders import configured, small

SMALL_KEYS = {
    "DATA__IMG_SIZE": 32,
    "MODEL__SWIN__PATCH_SIZE": 2,
    "MODEL__SWIN__EMBED_DIM": 8,
    "MODEL__SWIN__DEPTHS": [2, 2],
    "MODEL__SWIN__NUM_HEADS": [2, 4],
    "MODEL__SWIN__WINDOW_SIZE": 4,
}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(made, photos, tmp_path_factory):
    """The page of two runs: one with a checkpoint, one that has saved none. Returns its path and what was printed."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write(folder / f"tiny/{tag}", rate, 50.0) for tag, rate in (("first", 0.1), ("<second>", 0.2))]
    (folder / "tiny/first/checkpoints").mkdir()
    shutil.copy(made[0] / "model.pth", folder / "tiny/first/checkpoints/last.pth")
    data = shutil.copytree(photos, folder / "data")
    (data / "val/class_2").rename(data / "val/n01440764")
    (folder / "tiny/first/log.txt").write_text("[11-02 10:00:00] plan: old\n[11-02 11:00:00] plan: 2 epochs\n")
    target = folder / "pages/both.html"
    assert main([*runs, "--output", str(target), "--data-path", str(data), "--device", "cpu"]) == 0
    return target


@pytest.mark.seconds
def test_a_run_without_a_classifier_shows_what_it_drew(tmp_path, capsys):
    run = Path(write(tmp_path / "tiny/pretraining", 0.1, 50.0))
    for name in ("checkpoints", "pictures"):
        (run / name).mkdir()
    weights = {f"encoder.{name}": p for name, p in small(num_classes=0).state_dict().items()}
    torch.save({"model": weights, "config": dump_config(configured(**SMALL_KEYS))}, run / "checkpoints/last.pth")
    Image.new("RGB", (40, 30), "red").save(run / "pictures/val_reconstruction.png")
    assert main([str(run), "--device", "cpu"]) == 0
    assert "not evaluated: " in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "<h2>Reconstruction</h2>" in text and text.count("data:image/png") == 1


def cells(page, title):
    """Returns the cells of a row of the overview."""
    row = page.split(f"<tr><th>{title}</th>")[1].split("</tr>")[0]
    return re.findall("<td>(.*?)</td>", row)


@pytest.mark.seconds
def test_the_page_has_everything_in_it(page, made):
    text = page.read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", text)  # nothing is loaded from elsewhere
    assert "<script" not in text and "tiny/&lt;second&gt;" in text and "<second>" not in text
    assert "plan: 2 epochs" in text and "plan: old" not in text
    assert "<h1>Comparison of 2 runs</h1>" in text
    classes = {"class_2": "tench"}
    wrong = sum(classes.get(c := name.split("/")[-2], c) != answer for name, (answer, _) in made[1].items())
    headings = re.findall("<h2>(.*?)</h2>", text)
    evaluated = ["Results per class", "Confusion matrix", "Most confident mistakes", "Reliability of the probabilities"]
    assert [each for each in headings if each in evaluated] == evaluated and "Results" not in headings
    mistakes = text.split("<h2>Most confident mistakes</h2>")[1].split("<h2>")[0]
    assert wrong and mistakes.count("<tr>") == 1 + min(wrong, 24) == 1 + mistakes.count("<figure>")
    assert "<td>val/" in mistakes and str(page.parents[1]) not in mistakes
    assert f"({len(made[1]) - wrong} of {len(made[1])})" in text
    assert "<td>tench</td>" in text  # n01440764


@pytest.mark.seconds
def test_runs_stand_side_by_side(page):
    text = page.read_text()
    assert text.count('<div class="runs">') == 5  # a heading each: four of the evaluation, the environment
    for part in text.split('<div class="runs">')[1:]:
        assert re.findall("<h3>(.*?)</h3>", part) == ["tiny/first", "tiny/&lt;second&gt;"]
    assert cells(text, "best top1") == ["50.00", "50.00"] and cells(text, "TRAIN.BASE_LR")[:2] == ["0.1", "0.2"]
    first, second = cells(text, "evaluated")
    assert first.endswith(", checkpoints/last.pth") and second.startswith("not evaluated: no checkpoint in")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [500, 1280])  # a window of Chromium is no narrower
def test_a_browser_shows_the_page_without_scrolling_sideways(page, tmp_path, width):
    probe = tmp_path / "probe.html"
    script = """<script>addEventListener("load", () => { document.body.innerHTML = "measured " + JSON.stringify({
        images: [...document.images].every(image => image.naturalWidth > 0), count: document.images.length,
        tiles: document.querySelectorAll("figure").length, plots: document.querySelectorAll("svg.plot").length,
        ink: getComputedStyle(document.querySelector("svg.plot")).fill,
        paper: getComputedStyle(document.body).backgroundColor,
        overflow: document.documentElement.scrollWidth > innerWidth, rows: document.querySelectorAll("tr").length,
        height: document.body.scrollHeight}); })</script>"""
    probe.write_text(page.read_text().replace("</body>", script + "</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path}/own",
    ]
    shown = subprocess.run([BROWSER, *flags, "--dump-dom", str(probe)], capture_output=True, text=True, timeout=120)
    found = re.search(r"measured (\{.*?\})", shown.stdout)
    assert found, shown.stderr[-2000:]
    measured = json.loads(found[1])
    assert measured["images"] and not measured["overflow"]
    assert measured["count"] == measured["tiles"] and measured["plots"] == 4 and measured["rows"] > 10
    assert measured["ink"] != measured["paper"]


@pytest.mark.seconds
def test_a_run_alone_is_reported_in_its_folder(tmp_path, capsys):
    run = write(tmp_path / "tiny/a", 0.1, 50.0)
    assert main([run, "--no-evaluation"]) == 0
    text = (tmp_path / "tiny/a/report.html").read_text()
    assert "Differences" not in text and cells(text, "evaluated") == ["not evaluated: --no-evaluation"]
    assert "<h1>tiny/a</h1>" in text and "<h3>" not in text


def test_data_that_is_gone_costs_only_the_evaluation(made, tmp_path, capsys):
    run = write(tmp_path / "tiny/a", 0.1, 50.0)
    (tmp_path / "tiny/a/checkpoints").mkdir()
    contents = torch.load(made[0] / "model.pth")
    config = yaml.safe_load(contents["config"])
    config["DATA"]["DATA_PATH"] = str(tmp_path / "moved")
    torch.save({**contents, "config": yaml.safe_dump(config)}, tmp_path / "tiny/a/checkpoints/best.pth")
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert "not evaluated: " in out and str(tmp_path / "moved") in out and "--data-path)" in out


def test_a_run_is_summed_up_on_the_terminal(tmp_path, capsys):
    runs = [write(tmp_path / name, rate, top1) for name, rate, top1 in (("a", 0.1, 50.0), ("b", 0.2, 60.0))]
    assert main([*runs, "--text"]) == 0
    out = capsys.readouterr().out
    assert "best top1" in out.splitlines()[0] and "60.00" in out and "TRAIN.BASE_LR  0.1" in out
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(("arguments", "code", "line"), [(["x"], 3, "error: x: "), (["x", "--workers", "-1"], 2, "")])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(arguments) == code
    except SystemExit as e:
        assert e.code == code
    assert line in capsys.readouterr().err
