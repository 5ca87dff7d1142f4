"""Forms chosen by measurement, with made timers."""

import json
import logging
import random

import pytest
import torch

from configs.loading import load_config
from models.ops import forms, measure
from models.ops.forms import Request, use_forms
from models.ops.measure import cache_file, choose_forms, measure_forms
from models.registry import forms_of
from tests.conftest import run_program
from tests.tools.builders import FLOAT32, small
from utils.distributed.world import World
from utils.precision import Precision

LINEAR = {"linear 4x6 float32": Request("linear", (4, 6), 2, torch.float32, "cpu")}
KEY = next(iter(LINEAR))


@pytest.fixture(autouse=True)
def own(monkeypatch, tmp_path):
    """A cache, and the defaults, of each test's own; no model is too small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "SMALL", 0)
    yield
    use_forms({})


def timer(monkeypatch, **seconds):
    """Makes a call of each form take so long; a list is used in turn, an exception raised."""
    turns = {form: list(each) if isinstance(each, list) else each for form, each in seconds.items()}

    def prepared(request):
        return {form: (lambda form=form: form) for form in forms.FORMS[request.operator] if form in seconds}

    def seconds_of(run):
        given = turns[run()]
        value = given.pop(0) if isinstance(given, list) else given
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(measure, "prepare", prepared)
    monkeypatch.setattr(measure, "_seconds", seconds_of)


@pytest.mark.parametrize(
    ("onednn", "plain", "chosen"),
    [
        (2.0, 1.0, "plain"),
        (1.0, 2.0, "onednn"),
        (1.0, 0.9, "onednn"),  # would not carry over to the model
        ([1.0, 1.0, 9.0, 9.0, 9.0, 9.0], 2.0, "onednn"),  # other work on the machine: it can be faster
        ([9.0, 2.0, 2.0, 2.0, 2.0, 2.0], [0.1, 3.0, 3.0, 3.0, 3.0, 3.0], "onednn"),  # the first call warms up
    ],
)
def test_the_faster_form_is_chosen(monkeypatch, onednn, plain, chosen):
    timer(monkeypatch, onednn=onednn, plain=plain)
    assert measure_forms(LINEAR) == {KEY: chosen}


def test_a_form_that_fails_is_left_out_with_a_warning(monkeypatch, caplog):
    timer(monkeypatch, onednn=RuntimeError("illegal instruction"), plain=1.0)
    assert measure_forms(LINEAR) == {KEY: "plain"}
    assert len(caplog.messages) == 1 and "onednn" in caplog.text and "illegal instruction" in caplog.text
    timer(monkeypatch, onednn=1.0, plain=RuntimeError("x"))
    assert measure_forms(LINEAR) == {KEY: "onednn"}


def test_after_two_seconds_the_rest_keeps_its_default(monkeypatch):
    timer(monkeypatch, onednn=2.0, plain=1.0)
    monkeypatch.setattr(measure, "SECONDS", -1.0)
    assert measure_forms(LINEAR) == {KEY: "onednn"}


def test_a_slow_operator_is_compared_once(monkeypatch):
    """As bfloat16 is on processors that lack it: one call to warm up, one to compare, for each form."""
    calls = []

    def seconds(run):
        calls.append(run())
        return 1.0 + len(calls)

    timer(monkeypatch, onednn=2.0, plain=1.0)
    clock = iter((0.0, 1.0, 5.0))  # the start, before the operator, after two rounds
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    measure_forms(LINEAR, seconds)
    assert calls == ["onednn", "plain"] * 2


def chosen(stored=None, world=None, model=None):
    model = small().eval() if model is None else model
    return choose_forms(model, torch.zeros(1, 3, 32, 32), FLOAT32, world or World(), stored)


def flipped(monkeypatch):
    """From now on, the second form of every operator is the faster one."""
    timer(monkeypatch, **{form: 1.0 - place / 2 for each in forms.FORMS.values() for place, form in enumerate(each)})


def test_forms_are_cached_by_machine_logged_and_used(monkeypatch, caplog):
    flipped(monkeypatch)
    with caplog.at_level(logging.INFO):
        found = chosen()
    assert found and all(form == forms.FORMS[key.split()[0]][1] for key, form in found.items())
    assert forms._chosen == found and json.loads(cache_file().read_text()) == found
    assert "operators in" in caplog.text and "explicit" in caplog.text
    monkeypatch.setattr(measure, "measure_forms", lambda _: pytest.fail("it is cached"))
    assert chosen() == found


@pytest.mark.parametrize("what", ["torch", "threads", "corrupt", "unknown"])
def test_the_cache_of_another_machine_or_version_is_not_used(monkeypatch, what):
    flipped(monkeypatch)
    chosen()
    measured = []
    monkeypatch.setattr(
        measure, "measure_forms", lambda requests: measured.extend(requests) or dict.fromkeys(requests, "x")
    )
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    else:
        cache_file().write_text(
            "[" if what == "corrupt" else json.dumps(dict.fromkeys(json.loads(cache_file().read_text()), "y"))
        )
    chosen()
    assert measured


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "cache").touch()
    flipped(monkeypatch)
    assert chosen() and "cannot be cached" in caplog.text


def test_ranks_take_over_the_choice_of_the_main_one(monkeypatch):
    monkeypatch.setattr(measure, "_known_or_measured", lambda _: pytest.fail("only the main rank measures"))
    monkeypatch.setattr(World, "broadcast", lambda self, value: {KEY: "plain"})
    assert chosen(world=World(rank=1, size=2)) == forms._chosen == {KEY: "plain"}


def test_a_resumed_run_keeps_its_forms(monkeypatch):
    monkeypatch.setattr(measure, "_known_or_measured", lambda _: pytest.fail("they are stored"))
    assert chosen(stored={KEY: "plain"}) == forms._chosen == {KEY: "plain"}
    assert chosen(stored={}) == forms._chosen == {}  # it began with the defaults


def test_a_model_that_waits_on_the_cpu_for_a_gpu_is_not_measured(monkeypatch):
    """As for fsdp, which moves one shard at a time."""
    monkeypatch.setattr(measure, "_requests_of", lambda *_: pytest.fail("it was run"))
    assert chosen(world=World(device=torch.device("cuda"))) == {}


def test_small_compiled_and_foreign_models_use_the_defaults(monkeypatch):
    monkeypatch.setattr(measure, "_known_or_measured", lambda _: pytest.fail("not measured"))
    compiled = small().eval()
    compiled.compile(backend="eager")
    assert chosen(model=compiled) == {}
    monkeypatch.setattr(measure, "SMALL", 10**8)
    assert chosen() == {}


def test_random_numbers_and_modes_are_left_alone(monkeypatch):
    model = small(drop_path_rate=0.5).train()
    before, states = random.getstate(), torch.get_rng_state()
    chosen(model=model)
    assert random.getstate() == before and torch.equal(torch.get_rng_state(), states)
    assert model.training and torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())


LARGER = "DATA.IMG_SIZE 128 MODEL.SWIN.EMBED_DIM 64 TRAIN.EPOCHS 2 SAVE_FREQ 1 DATA.BATCH_SIZE 12"


@pytest.mark.slow
def test_a_resumed_run_is_bit_equal_although_its_start_would_choose_otherwise(tiny_yaml, photos, tmp_path):
    """The cache changes between the two starts."""
    cache = tmp_path / "own" / "swin" / "forms"

    def run(tag, *more, options=LARGER):
        line = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--tag", tag, *more]
        done = run_program(*line, "--opts", *options.split(), XDG_CACHE_HOME=str(tmp_path / "own"))
        assert done.code == 0, done.err
        contents = torch.load(tmp_path / "tiny" / tag / "checkpoints/last.pth", weights_only=True)
        return contents, done.out

    first, out = run("measured", options=LARGER.replace("EPOCHS 2", "EPOCHS 1"))
    (file,) = cache.iterdir()
    measured = json.loads(file.read_text())
    assert first["forms"] == measured != {} and "measured the forms" in out
    others = {
        key: forms.FORMS[key.split()[0]][form == forms.FORMS[key.split()[0]][0]] for key, form in measured.items()
    }
    file.write_text(json.dumps(others))
    whole, _ = run("whole")
    chosen = whole["forms"]  # in another precision, too, where bfloat16 is supported
    assert chosen != measured and all(others.get(key, form) == form for key, form in chosen.items())
    assert chosen.get("precision") == others.get("precision")
    file.write_text(json.dumps(measured))
    resumed, _ = run("resumed", "--resume", tmp_path / "tiny/whole/checkpoints/ckpt_epoch_0.pth")
    assert resumed["forms"] == chosen
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())
    weights = tmp_path / "tiny/whole/checkpoints/last.pth"
    line = ["--cfg", tiny_yaml, "--data-path", photos, "--eval", "--resume", weights, "--opts", *LARGER.split()]
    assert "measured the forms" in run_program(*line, XDG_CACHE_HOME=str(tmp_path / "new")).out  # not those stored
    lines = [(tmp_path / "tiny" / tag / "metrics.jsonl").read_text().splitlines() for tag in ("whole", "resumed")]
    assert lines[1] == lines[0][-len(lines[1]) :]


def test_the_faster_precision_is_measured_once_and_kept_by_a_resumed_run(monkeypatch):
    half, model = Precision("cpu", torch.bfloat16), small().eval()
    cfg = load_config("swin_tiny", [("DATA.IMG_SIZE", 32, "test")])
    monkeypatch.setattr(measure, "relative_speed", lambda dtype: 0.5)
    found = forms_of(cfg, model, half, World())
    assert found["precision"] == "float32" and half.chosen(found) == FLOAT32
    monkeypatch.setattr(measure, "relative_speed", lambda dtype: pytest.fail("it is cached"))
    assert forms_of(cfg, model, half, World())["precision"] == "float32"
    assert forms_of(cfg, model, half, World(), {"precision": "bfloat16"}) == {"precision": "bfloat16"}
    assert "precision" not in forms_of(cfg, model, half, World(), {})  # a checkpoint of an earlier version
    # what is configured takes precedence over what is stored, but the forms do not
    fixed = load_config("swin_tiny", [("DATA.IMG_SIZE", 32, "test"), ("MODEL.FORMS", "default", "test")])
    assert forms_of(fixed, model, half, World(), {"precision": "float32"}) == {"precision": "float32"}
    for key, value in (("AMP_DTYPE", "bfloat16"), ("AMP_ENABLE", False)):
        given = load_config("swin_tiny", [("DATA.IMG_SIZE", 32, "test"), (key, value, "test")])
        assert "precision" not in forms_of(given, model, half, World())
        assert "precision" not in forms_of(given, model, FLOAT32, World(), {"precision": "bfloat16"})
    # a main rank without bfloat16 decides for all
    assert measure.measured_precision(FLOAT32, World()) == {"precision": "float32"}
    assert half.chosen({"precision": "float16"}) == half.chosen({}) == half
    gpu = Precision("cuda", torch.bfloat16)
    assert gpu.chosen(found) == gpu
