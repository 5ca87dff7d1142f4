"""Weights from a server: whole or not at all, fetched once, checked."""

import errno
import hashlib
import io
import os
import resource
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest
import torch

from tests.conftest import ROOT
from tests.tools.errors import raises
from utils.checkpoints import downloads
from utils.checkpoints.downloads import best_in, local_file, read_weights
from utils.errors import CheckpointError, ResourceError


def checkpoint_bytes(**more):
    stream = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(2000)}, **more}, stream)
    return stream.getvalue()


WEIGHTS = checkpoint_bytes()


class Quiet(SimpleHTTPRequestHandler):
    served: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.served.append(self.path)
        super().do_GET()


class CutShort(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 400)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's hub cache in a folder of its own."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def serve(handler):
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "w.pth").write_bytes(WEIGHTS)
    Quiet.served.clear()
    server, address = serve(partial(Quiet, directory=str(folder)))
    yield address
    server.shutdown()


get = local_file


SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def test_a_path_is_itself(tmp_path):
    assert get(str(tmp_path / "a.pth")) == tmp_path / "a.pth"
    (tmp_path / "a.pth").write_bytes(WEIGHTS)
    assert get(str(tmp_path / "a.pth"), SHA256.upper()) == tmp_path / "a.pth"
    with raises(CheckpointError, tmp_path / "a.pth", SHA256, "0" * 64):
        get(str(tmp_path / "a.pth"), "0" * 64)


def test_an_address_is_fetched_once_and_its_checksum_logged(site, hub, caplog, monkeypatch):
    caplog.set_level("INFO")
    path = get(f"{site}/w.pth")
    assert path.read_bytes() == WEIGHTS and path.parent == hub
    assert SHA256 in caplog.text
    asked = len(Quiet.served)
    assert get(f"{site}/w.pth") == path and len(Quiet.served) == asked
    monkeypatch.setattr(downloads, "released_url", lambda name: f"{site}/w.pth")
    assert get("hub:some_model") == path
    assert [p.name for p in hub.iterdir()] == [path.name]


def test_a_cached_file_of_another_user_is_one_error(site, hub, monkeypatch):
    path = get(f"{site}/w.pth")

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(downloads, "_looks_whole", refuse)
    with raises(ResourceError, path.parent, os.strerror(errno.EACCES), "TORCH_HOME"):
        get(f"{site}/w.pth")


def test_fault_57_an_altered_download_is_refused_and_not_kept(site, hub):
    with pytest.raises(CheckpointError) as caught:
        get(f"{site}/w.pth", "0" * 64)
    assert Path(caught.value.subject).parent == hub and SHA256 in caught.value.problem
    assert list(hub.iterdir()) == []
    assert get(f"{site}/w.pth", SHA256).exists()


def test_fault_57_an_altered_file_of_the_cache_is_fetched_again(site, hub):
    path = get(f"{site}/w.pth")
    path.write_bytes(b"altered")
    assert get(f"{site}/w.pth", SHA256.upper()).read_bytes() == WEIGHTS


def test_fault_57_a_truncated_download_is_refused_and_not_kept(hub):
    server, address = serve(CutShort)
    with raises(CheckpointError, f"{address}/w.pth", "400 of 1,000 bytes"):
        get(f"{address}/w.pth")
    server.shutdown()
    assert list(hub.iterdir()) == []


def test_a_download_without_an_end_is_bounded(hub, monkeypatch):
    server, address = serve(SignIn)
    SignIn.answers[:] = [WEIGHTS]
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD", 4000)
    with raises(CheckpointError, f"{address}/w.pth", "more than 4,000 bytes"):
        get(f"{address}/w.pth")
    server.shutdown()
    assert list(hub.iterdir()) == []


class SignIn(BaseHTTPRequestHandler):
    """Answers with a page, then with the file; without a Content-Length."""

    answers: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answers[0])


@pytest.mark.parametrize("answer", [b"<html>sign in</html>", WEIGHTS[:4000], b""])
def test_what_is_not_a_checkpoint_does_not_enter_the_cache(hub, answer):
    server, address = serve(SignIn)
    url = f"{address}/w.pth"
    SignIn.answers[:] = [answer]
    with raises(CheckpointError, url):
        get(url)
    assert list(hub.iterdir()) == []
    SignIn.answers[:] = [WEIGHTS]
    path = get(url)
    path.write_bytes(answer)  # as an earlier version cached it
    assert get(url).read_bytes() == WEIGHTS
    server.shutdown()


@pytest.mark.parametrize("name", ["x%00.pth", "a" * 300 + ".pth", "..", "%2e%2e", "\u202ex.pth", "", "?x=/../y"])
def test_the_name_of_a_download_is_safe(hub, name):
    server, address = serve(SignIn)
    SignIn.answers[:] = [WEIGHTS]
    path = get(f"{address}/{quote(name, safe='%/?=.')}")
    assert path.parent == hub and path.read_bytes() == WEIGHTS
    server.shutdown()


@pytest.mark.parametrize(
    "name", ["x\0.pth", "a" * 5000, "/" + "a/" * 3000 + "a", "http://[::1", "http://a b/", "https://", "hf:"]
)
def test_a_name_that_cannot_exist_is_refused(hub, name):
    with raises(CheckpointError, name):
        read_weights(name)


def test_what_cannot_be_reached_is_said(site, hub):
    with raises(CheckpointError, f"{site}/gone.pth"):
        get(f"{site}/gone.pth")
    with raises(CheckpointError, "http://127.0.0.1:9/w.pth"):
        get("http://127.0.0.1:9/w.pth")
    assert list(hub.iterdir()) == []


def test_weights_are_read_from_where_they_were_found(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "w.pth")
    read = read_weights(str(tmp_path / "w.pth"))
    assert torch.equal(read["model"]["a"], torch.ones(2))
    with raises(CheckpointError, tmp_path / "w.pth", "0" * 64):
        read_weights(str(tmp_path / "w.pth"), sha256="0" * 64)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_named(site, hub, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with raises(ResourceError, hub, os.strerror(number), "TORCH_HOME"):
            get(f"{site}/w.pth")
    assert list(hub.iterdir()) == []


def test_a_disk_that_is_full_is_not_taken_for_the_network(site, hub):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with raises(ResourceError, hub, os.strerror(errno.EFBIG), "TORCH_HOME"):
            get(f"{site}/w.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(hub.iterdir()) == []


class Repository(BaseHTTPRequestHandler):
    """A repository owner/model of Hugging Face that holds pytorch_model.bin."""

    asked: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.asked.append((self.command, self.path))
        found = self.path == "/owner/model/resolve/main/pytorch_model.bin"
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound" if "/none/" in self.path else "EntryNotFound")
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"b"')
        self.send_header("Content-Length", str(len(WEIGHTS)) if found else "0")
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(WEIGHTS)


class Faulty(BaseHTTPRequestHandler):
    """Repositories whose server closes, truncates, redirects in a circle, or names a file outside of the cache."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        kind = self.path.split("/")[2]
        if kind == "closes":
            self.close_connection = True
            return False
        self.send_response(302 if kind == "loops" else 200)
        if kind == "loops":
            self.send_header("Location", self.path)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"../../../../outside"' if kind == "climbs" else '"b"')
        self.send_header("Content-Length", str(len(WEIGHTS)))
        self.end_headers()
        return True

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(WEIGHTS[:1000] if "truncates" in self.path else WEIGHTS)
            self.close_connection = True


@pytest.mark.slow
def test_a_repository_of_hugging_face_is_asked_for_its_usual_files(tmp_path):
    """In a process of its own: the package reads its address when it is imported."""
    server, address = serve(Repository)
    Repository.asked.clear()
    script = """
import sys
from utils.checkpoints.downloads import local_file as get
for name in sys.argv[1:]:
    try:
        print(get(name))
    except Exception as error:
        print(error)
"""

    def fetch(*names, address=address):
        own = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        run = [sys.executable, "-c", script, *names]
        return subprocess.run(run, env=own, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()

    names = ["hf:owner/model", "hf:owner/other", "hf:none/model", "hf:--", "hf:owner/model/../../x"]
    found, other, unknown, invalid, outside = fetch(*names)
    path = Path(found)
    assert path.name == "pytorch_model.bin" and path.read_bytes() == WEIGHTS and tmp_path in path.parents
    assert "/owner/model/resolve/main/model.safetensors" in [path for _, path in Repository.asked]
    assert other.startswith("hf:owner/other: ") and "/FILE" in other
    assert unknown.startswith("hf:none/model: ") and "RepositoryNotFoundError" in unknown
    assert invalid.startswith("hf:--: ") and "HFValidationError" in invalid
    assert outside.startswith("hf:owner/model/../../x: ")
    server.shutdown()
    server.server_close()
    name = "timm:swin_tiny_patch4_window7_224"
    offline, cached, timms = fetch("hf:owner/more", "hf:owner/model/pytorch_model.bin", name)
    assert offline.startswith("hf:owner/more: ") and cached == found
    assert timms.startswith(f"{name}: ") and "hf:timm/swin_tiny_patch4_window7_224.ms_in" in timms
    kinds = ["closes", "truncates", "loops", "climbs"]
    faulty, place = serve(Faulty)
    failed = fetch(*(f"hf:owner/{kind}/model.safetensors" for kind in kinds), address=place)
    assert [line.split("/model.safetensors: ")[0] for line in failed] == [f"hf:owner/{kind}" for kind in kinds]
    assert not list(tmp_path.parent.rglob("outside*"))
    faulty.shutdown()
    faulty.server_close()
    (nowhere,) = fetch("hf:owner/garbage", address="garbage")
    assert nowhere.startswith("hf:owner/garbage: ")


def test_pretrained_weights_of_timm_are_found_by_the_name_of_the_model(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(downloads, "_from_hugging_face", lambda name: asked.append(name) or tmp_path)
    monkeypatch.setattr(downloads, "sha256_of", lambda path: "0")
    tagged = "timm:swin_base_patch4_window7_224.ms_in22k"
    assert local_file(tagged) == local_file("timm:swin_tiny_patch4_window7_224") == tmp_path
    assert asked[0] == "timm/swin_base_patch4_window7_224.ms_in22k" and asked[1].startswith("timm/swin_tiny_")
    with raises(CheckpointError, "timm:swin_tny_patch4_window7_224", "swin_tiny_patch4_window7_224"):
        local_file("timm:swin_tny_patch4_window7_224")
    with raises(CheckpointError, "timm:swin_tiny_patch4_window7_224.gone", "swin_tiny_patch4_window7_224.ms_in"):
        local_file("timm:swin_tiny_patch4_window7_224.gone")
    with raises(CheckpointError, "timm:test_mambaout_gone"):
        local_file("timm:test_mambaout_gone")


def test_the_folder_of_a_run_stands_for_its_best_checkpoint_and_to_resume_for_its_last(tmp_path):
    folder = tmp_path / "tiny/run/checkpoints"
    folder.mkdir(parents=True)
    for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2_step_4.pth"):
        torch.save({"model": {"a": torch.ones(1)}}, folder / name)
    last, first = folder / "ckpt_epoch_2_step_4.pth", folder / "ckpt_epoch_1.pth"
    for run in (str(folder.parent), str(folder)):
        assert local_file(run) == local_file(run, newest=True) == last
    (folder / "best.pth").symlink_to(first.name)
    for run in (str(folder.parent), str(folder)):
        assert local_file(run).resolve() == first and local_file(run, newest=True) == last
    (tmp_path / "gone").mkdir()
    for parent in (tmp_path, tmp_path / "tiny"):
        with raises(CheckpointError, parent, folder.parent):
            local_file(str(parent))
    with raises(CheckpointError, tmp_path / "gone", "<TAG>"):
        local_file(str(tmp_path / "gone"))


def test_the_best_checkpoint_of_a_run_is_found_by_its_folder(tmp_path):
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    assert best_in(str(tmp_path / "run")) == str(tmp_path / "run")
    (folder / "best.pth").touch()
    assert best_in(str(tmp_path / "run")) == str(folder / "best.pth")
    assert best_in("hub:swin_tiny") == "hub:swin_tiny"
    (folder / "best.pth").rename(folder / "ckpt_epoch_7.pth")
    (folder / "best.txt").write_text("ckpt_epoch_7.pth\n")  # a file system without links
    assert best_in(str(tmp_path / "run")) == str(folder / "ckpt_epoch_7.pth")
