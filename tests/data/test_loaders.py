"""Batches depend on counters alone: not on workers, processes, or where an epoch was entered."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.loaders import build_eval_loader, build_train_loader
from data.pipeline.mixing import MixingOptions, build_mixing
from data.pipeline.transforms import EvalTransformOptions
from data.sources.base import IndexedSource
from data.sources.index import Index, stored
from tests.builders import AUGMENTED, PLAIN, open_folder, pipeline, shape
from tests.conftest import ROOT
from utils.distributed import World
from utils.errors import DataError, ResourceError
from utils.preprocessing import Preprocessing

MIXING = MixingOptions(0.8, 1.0, None, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1)


def train_loader(photos, *rank, **options):
    return loader_of(open_folder(photos).train, *rank, **options)


def loader_of(source, rank=0, world=1, mixing=MIXING, transform=AUGMENTED, batch_size=4, accumulation=1, **loader):
    options = pipeline(transform, batch_size=batch_size, pin_memory=True, **loader)
    epoch_shape = shape(len(source), batch_size, accumulation, world)
    mixed = build_mixing(len(source.class_names), mixing)
    return build_train_loader(source, epoch_shape, World(rank, world), options, mixed)


def assert_equal(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets)
        assert (x.weight, x.ends_update) == (y.weight, y.ends_update)


@pytest.mark.parametrize("workers", [1, 2])
def test_fault_52_batches_are_the_same_for_every_number_of_workers(photos, workers):
    alone, others = train_loader(photos), train_loader(photos, workers=workers)
    for epoch in (0, 1):  # workers live on into the second epoch
        assert_equal(list(alone.epoch(epoch)), list(others.epoch(epoch)))


def test_fault_52_augmentations_differ_between_epochs_and_samples(photos):
    loader = train_loader(photos, mixing=None, batch_size=36)
    (first,), (second,) = loader.epoch(0), loader.epoch(1)
    images = torch.cat([first.images, second.images]).flatten(1)
    assert len(images.unique(dim=0)) == 72


def test_an_epoch_can_be_entered_at_any_update(photos):
    loader = train_loader(photos, workers=2, accumulation=2)
    whole = list(loader.epoch(3))
    assert_equal(whole[4:], list(loader.epoch(3, first_update=2)))


def test_two_ranks_see_what_one_sees(photos):
    alone = list(train_loader(photos, mixing=None, batch_size=8).epoch(0))
    ranks = [list(train_loader(photos, rank, 2, mixing=None).epoch(0)) for rank in range(2)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.targets, torch.cat([first.targets, second.targets]))


def test_neither_loader_leaves_its_mark_on_the_generators_of_another(photos):
    """The forward pass after a batch draws what the batch's seed says, whatever was evaluated in between."""
    drawn = []
    for evaluate in (False, True):
        loader = train_loader(photos)
        for i, _ in enumerate(loader.epoch(0)):
            drawn.append(torch.rand(1).item())
            if evaluate and i == 2:
                source = open_folder(photos).val
                assert len(list(eval_loader(source))) == 4
    assert drawn[: len(drawn) // 2] == drawn[len(drawn) // 2 :]


def eval_loader(source, rank=0, world=1, channels=3, **loader):
    own = Preprocessing() if channels == 3 else Preprocessing((0.5,) * channels, (0.5,) * channels)
    options = pipeline(val=EvalTransformOptions(size=(32, 32), channels=channels), **loader)
    return build_eval_loader(source, World(rank, world), replace(options, preprocessing=own))


def test_evaluation_draws_no_random_number(photos):
    source = open_folder(photos).val
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(eval_loader(source, workers=1))
    assert torch.equal(before, torch.get_rng_state())
    assert sum(len(images) for images, _ in batches) == 15


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_the_channels_of_the_model(photos, channels):
    images, _ = next(iter(eval_loader(open_folder(photos).val, channels=channels)))
    assert images.shape == (4, channels, 32, 32)


class ParentOfWorker:
    """A source that answers with the process that made the reading one."""

    class_names = ("any",)

    def __len__(self):
        return 1

    def read(self, index):
        raise DataError(str(os.getppid()))

    def name(self, index):
        return ""

    def label(self, index):
        return 0


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_workers_are_not_forked_from_a_process_with_threads(kind):
    # a forked child can inherit a lock from a thread that it does not have: runs hung at the start of an evaluation
    source = ParentOfWorker()
    batches = eval_loader(source, workers=1) if kind == "eval" else loader_of(source, workers=1).epoch(0)
    with pytest.raises(DataError) as parent:
        list(batches)
    assert int(str(parent.value)) != os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_38_a_bad_image_ends_the_epoch_with_its_path(own_photos, workers):
    bad = own_photos / "train" / "class_1" / "photo_3.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(DataError) as caught:
        list(train_loader(own_photos, workers=workers).epoch(0))
    assert str(bad) in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_fault_38_another_sample_with_its_own_label_stands_in(own_photos, caplog, damage):
    """Every image of the epoch is one that can be read, with that image's label; the same for any number of workers."""
    files = sorted((own_photos / "train" / "class_1").iterdir())[:3]
    for file in files:
        file.write_bytes(file.read_bytes()[:700] if damage is None else damage)
    source = open_folder(own_photos).train
    flat = replace(AUGMENTED, auto_augment="none", re_prob=0.0)
    loaders = [loader_of(source, workers=n, mixing=None, on_bad="skip", batch_size=36, transform=flat) for n in (0, 2)]
    (alone,), (others,) = (loader.epoch(0) for loader in loaders)
    assert torch.equal(alone.images, others.images) and torch.equal(alone.targets, others.targets)
    assert torch.bincount(alone.targets).tolist() != [12, 12, 12] and len(alone.targets) == 36
    assert "skipped, 3 of at most 10 training samples" in caplog.text and all(
        str(file) in caplog.text for file in files
    )
    caplog.clear()
    list(loaders[0].epoch(1))
    assert "skipped" not in caplog.text  # each is listed once


def test_fault_38_a_label_goes_with_its_own_image(tmp_path):
    """One colour a class: whatever stands in, colour and label belong together."""
    for label, colour in enumerate(["#ff0000", "#00ff00", "#0000ff"]):
        for part in ("train", "val"):
            folder = tmp_path / part / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
            (folder / "3.png").write_bytes(b"no image")
    sources = open_folder(tmp_path)
    plain = replace(AUGMENTED, auto_augment="none", re_prob=0.0)
    seen = 0
    for epoch in range(4):
        for batch in loader_of(sources.train, mixing=None, on_bad="skip", transform=plain).epoch(epoch):
            assert torch.equal(batch.images.mean((2, 3)).argmax(1), batch.targets)
            seen += len(batch.targets)
    assert seen == 4 * 24
    images, targets = zip(*eval_loader(sources.val, on_bad="skip"), strict=True)
    images, targets = torch.cat(images), torch.cat(targets)
    assert (targets == -1).sum() == 3 and len(targets) == 24
    assert torch.equal(images[targets >= 0].mean((2, 3)).argmax(1), targets[targets >= 0])


def test_fault_38_names_that_are_no_text_are_listed(own_photos, caplog):
    bad = os.fsencode(own_photos / "train/class_1") + b"/caf\xe9.jpg"
    with open(bad, "wb") as file:
        file.write(b"no image")
    list(train_loader(own_photos, on_bad="skip").epoch(0))
    assert "caf\\udce9.jpg" in caplog.text


def test_fault_38_what_may_be_left_out_is_bounded(own_photos):
    for file in sorted((own_photos / "train" / "class_1").iterdir())[:11]:
        file.write_bytes(b"")
    with pytest.raises(DataError, match="more than 10 training samples cannot be read"):
        list(train_loader(own_photos, on_bad="skip").epoch(0))
    for file in (own_photos / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="20 samples that could replace it cannot be read either"):
        list(train_loader(own_photos, on_bad="skip").epoch(0))


class Troubled:
    """A source of one colour whose sample 5 does something."""

    class_names = ("any",)

    def __init__(self, deed):
        self.deed = deed
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32)).save(buffer, "PNG")
        self.image = buffer.getvalue()

    def __len__(self):
        return 12

    def read(self, number):
        if number == 5:
            self.deed()
        return self.image

    def name(self, number):
        return f"train/{number}.png"

    def label(self, number):
        return 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def sleep():
    time.sleep(60)


def test_fault_30_a_killed_loader_process_is_named():
    loader = loader_of(Troubled(die), workers=2, mixing=None, batch_size=4)
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=r"a loader worker died: process \d+: .*DATA.NUM_WORKERS") as caught:
        list(loader.epoch(0))
    assert caught.value.exit_code == 7 and time.monotonic() - begun < 30


def test_fault_30_a_stuck_loader_process_names_its_file():
    loader = loader_of(Troubled(sleep), workers=2, mixing=None, batch_size=4, timeout=8)
    with pytest.raises(DataError, match=r"no batch for 8 seconds, .* hangs: train/5.png: .*DATA.TIMEOUT") as caught:
        list(loader.epoch(0))
    assert caught.value.exit_code == 3


def test_fault_53_too_little_shared_memory_is_refused(photos, monkeypatch):
    room = os.statvfs("/")
    small = os.statvfs_result((*room[:1], 4096, 1000, 10, 10, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(ResourceError, match=r"/dev/shm has 0 MiB left, 4 loader workers need .*DATA.NUM_WORKERS"):
        train_loader(photos, workers=4, batch_size=12)
    assert len(list(train_loader(photos, workers=0).epoch(0))) == 9


def test_fault_53_few_file_descriptors():
    """A hard limit of 64 is refused, a soft one is raised."""
    script = (
        "import resource, sys; from data.pipeline.workers import LoaderOptions, check_resources;"
        "soft, hard = map(int, sys.argv[1:]); resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard));"
        "check_resources(LoaderOptions(4, workers=2), (32, 32), 3, 1);"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    run = [sys.executable, "-c", script]
    done = subprocess.run([*run, "64", "64"], cwd=ROOT, capture_output=True, text=True)
    assert "64 open files are allowed, 2 loader workers need 176: DATA.NUM_WORKERS" in done.stderr
    done = subprocess.run([*run, "64", "1000"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "176", done.stderr


def test_fault_53_descriptors_and_processes_stay_as_many(photos):
    loader, source = train_loader(photos, workers=2), open_folder(photos).val
    counts = []
    for epoch in range(10):
        list(loader.epoch(epoch))
        list(eval_loader(source, workers=2))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert min(counts[-2:]) <= counts[1] + 4, counts  # some are closed a moment later


class ManyPaths:
    """Storage of one small image under any number of paths."""

    def __init__(self):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        self._image = buffer.getvalue()

    def read(self, index, i):
        assert index.name(i)  # as a storage of files does
        return self._image

    def where(self, name):
        return name


def memory():
    """Kilobytes of this process and its descendants, shared pages counted once."""
    own, total = os.getpid(), 0
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            parents[int(pid)] = int(stat.rsplit(")", 1)[1].split()[1])
    below = {own}
    for _ in range(4):
        below |= {pid for pid, parent in parents.items() if parent in below}
    for pid in below:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def grown(samples):
    """Relative growth of memory from a fifth of the samples to the last, with a million paths and 4 workers."""

    def build():
        names = [f"n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(1_000_000)]
        return Index.build(names, [0] * len(names)), None, []

    index, _ = stored("million", build)
    small = replace(PLAIN, size=(8, 8))
    loader = loader_of(
        IndexedSource(index, ["any"], ManyPaths()), workers=4, mixing=None, batch_size=500, transform=small
    )
    first = 0
    for number, _ in enumerate(loader.epoch(0), start=1):
        if number * 500 == samples // 5:
            first = memory()
        if number * 500 >= samples:
            return memory() / first - 1
    raise AssertionError("fewer samples than asked for")


def test_fault_54_memory_stays_over_a_million_paths():
    assert grown(40_000) < 0.05
