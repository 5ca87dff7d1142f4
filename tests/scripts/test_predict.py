"""Predictions from the file of a model alone, from checkpoints and exported files alike."""

import csv
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from scripts.predict import main

NAMES = ["class_0", "class_1", "n01440764"]


def predictions(path):
    return {row["path"]: (row["class_1"], float(row["probability_1"])) for row in csv.DictReader(path.open())}


def test_the_classes_are_those_of_the_evaluation(made, photos, tmp_path, capsys):
    folder, expected = made
    table = tmp_path / "new" / "out.csv"
    assert main([str(photos / "val"), "--model", str(folder / "model.pth"), "--output", str(table)]) == 0
    assert predictions(table) == {path: (name, pytest.approx(p, abs=1e-2)) for path, (name, p) in expected.items()}
    assert len({name for name, _ in expected.values()} & {"class_0", "class_1", "tench"}) >= 2
    assert f"15 images: {table}" in capsys.readouterr().out


def test_other_tables_and_the_terminal(made, photos, tmp_path, capsys):
    model = str(made[0] / "model.pth")
    image = next((photos / "val").rglob("*.jpg"))
    assert main([str(photos / "val"), "--model", model, "--output", str(tmp_path / "a.jsonl"), "--topk", "9"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 15 and all(len(line["classes"]) == 3 for line in lines)
    assert all(sum(line["probabilities"]) == pytest.approx(1, abs=1e-3) for line in lines)
    assert main([str(photos / "val"), "--model", model, "--output", str(tmp_path / "a.parquet"), "--topk", "1"]) == 0
    columns = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert list(columns) == ["path", "class_1", "probability_1"]
    assert columns["class_1"] == [line["classes"][0] for line in lines]
    capsys.readouterr()
    assert main([str(image), "--model", model, "--output", str(tmp_path / "a\x1b[31m.csv")]) == 0
    assert r"a\x1b[31m.csv" in capsys.readouterr().out
    assert main([str(image), "--model", model, "--topk", "2"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "image" and row.startswith(str(image))


def test_a_model_that_gives_nan_has_no_class_and_valid_json(made, photos, tmp_path, capsys):
    """All its weights are finite."""
    contents = torch.load(made[0] / "model.pth")
    head = contents["model"]["head.weight"]
    head[:] = 3e38 * torch.tensor([1.0, -1.0]).repeat(head.shape[1] // 2)
    torch.save(contents, tmp_path / "nan.pth")
    image, model = str(next((photos / "val").rglob("*.jpg"))), str(tmp_path / "nan.pth")
    assert main([image, "--model", model, "--output", str(tmp_path / "a.jsonl")]) == 0
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert not any(record["classes"]) and set(record["probabilities"]) == {None}
    capsys.readouterr()
    assert main([image, "--model", model]) == 0
    assert " nan" not in capsys.readouterr().out.lower().replace(image.lower(), "").replace(model.lower(), "")


def test_an_image_that_cannot_be_read_has_no_class(made, photos, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    first, second, *_ = sorted(str(path) for path in (photos / "val").rglob("*.jpg"))
    arguments = [first, str(tmp_path / "bad.jpg"), second, "--output", str(tmp_path / "a.csv")]
    assert main([*arguments, "--model", str(made[0] / "model.pth")]) == 0
    rows = list(csv.reader((tmp_path / "a.csv").open()))[1:]
    assert [bool(row[1]) for row in rows] == [True, False, True]
    assert "not a readable image (unknown format)" in capsys.readouterr().out
    assert main([str(tmp_path / "bad.jpg"), "--model", str(made[0] / "model.pth")]) == 3
    assert f"error: {tmp_path / 'bad.jpg'}: " in capsys.readouterr().err


def test_any_number_of_images_may_be_unreadable_and_their_features_are_not_numbers(made, photos, tmp_path, capsys):
    model = ["--model", str(made[0] / "model.pth")]
    for number in range(12):
        (tmp_path / f"bad_{number}.jpg").write_bytes(b"no image")
    good = str(next((photos / "val").rglob("*.jpg")))
    assert main([str(tmp_path), good, *model, "--output", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out.count(": not a readable image") == 12
    assert main([str(tmp_path), good, *model, "--features", "pooled", "--output", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.isnan(arrays["features"]).all(1).tolist() == [True] * 12 + [False]
    assert main([str(tmp_path), *model, "--features", "pooled", "--output", str(tmp_path / "b.npz")]) == 3
    assert f"error: {tmp_path}/" in capsys.readouterr().err and not (tmp_path / "b.npz").exists()


def test_a_missing_name_is_skipped_and_ends_with_code_3(made, photos, tmp_path, capsys):
    image = next((photos / "val").rglob("*.jpg"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "inner.jpg")
    output = tmp_path / "out.csv"
    names = ["gone.jpg", str(image), str(tmp_path / "a.zip"), "more.jpg"]
    assert main([*names, "--model", str(made[0] / "model.pth"), "--output", str(output)]) == 3
    out, err = capsys.readouterr()
    assert err == "error: gone.jpg: no such file or folder (2 names of 4 skipped; the rest were processed)\n"
    assert out.count("no such file or folder") == 2
    found = predictions(output)
    assert list(found) == [str(image), f"{tmp_path}/a.zip/inner.jpg"] and len(set(found.values())) == 1
    numbers = [row["probability_1"] for row in csv.DictReader(output.open())]
    assert all(len(number.lstrip("0.")) <= 6 for number in numbers)  # significant digits


def test_a_list_of_paths_of_any_bytes(made, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(os.fsencode(name) + b"\n")
    output = tmp_path / "a.csv"
    assert main([str(tmp_path / "list.txt"), "--model", str(made[0] / "model.pth"), "--output", str(output)]) == 0
    assert len(output.read_bytes().splitlines()) == 2


def test_features_are_those_before_the_head(made, photos, tmp_path):
    model = str(made[0] / "model.pth")
    for kind, names in (("pooled", ["features"]), ("pyramid", ["stride2", "stride4"])):
        target = tmp_path / f"{kind}.npz"
        assert main([str(photos / "val"), "--model", model, "--features", kind, "--output", str(target)]) == 0
        with np.load(target) as arrays:
            assert sorted(arrays) == sorted([*names, "paths"]) and all(len(arrays[name]) == 15 for name in arrays)
            shapes = [arrays[name].shape[1:] for name in names]
        assert shapes == ([(32,)] if kind == "pooled" else [(16, 16, 16), (32, 8, 8)])


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["gone.jpg"], 3, "gone.jpg"),
        (["--model", "gone.pth"], 4, "gone.pth"),
        (["--model", "gone.onnx"], 4, "error: gone.onnx: "),
        (["--model", "hub:swin_tny"], 4, "swin_tny"),
        (["--explain", __file__], 7, f"error: {__file__}: "),
        (["--pictures", "x"], 2, "error: --pictures: TASK classification "),
        (["--device", "cuda"], 5, "GPU"),
        (["--model", "."], 4, "error: .: "),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_mistakes_are_one_line(made, photos, capsys, arguments, code, name):
    usual = [] if arguments[0] == "gone.jpg" else [str(photos / "val")]
    model = [] if "--model" in arguments else ["--model", str(made[0] / "model.pth")]
    assert main([*usual, *model, *arguments]) == code
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and name in error
