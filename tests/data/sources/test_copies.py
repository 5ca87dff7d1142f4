"""Images that are not files: URLs, archives, standard input."""

import io
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from data.sources import copies
from data.sources.copies import copy_images, is_copied
from data.sources.files import find_images
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a b.png"
    Image.new("RGB", (3, 2), "red").save(path)
    return path


@pytest.fixture
def server(photo):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(photo.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_image_at_a_url(server, photo, tmp_path):
    url = f"{server}/a%20b.png?size=1"
    ((path, name),) = copy_images(url, tmp_path / "copies").items()
    assert path.read_bytes() == photo.read_bytes() and path.name == "a b.png" and name == url
    with raises(DataError, f"{server}/gone.png", "404"):
        copy_images(f"{server}/gone.png", tmp_path / "gone")
    with raises(DataError, "http://127.0.0.1:1/x.png", "refused"):
        copy_images("http://127.0.0.1:1/x.png", tmp_path / "refused")


def test_standard_input(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    ((path, name),) = copy_images("-", tmp_path / "copies").items()
    assert path.read_bytes() == photo.read_bytes() and name == "-"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with raises(DataError, "-", "pipe"):
        copy_images("-", tmp_path / "more")


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tgz"])
def test_archives(photo, tmp_path, ending):
    archive = str(tmp_path / f"photos{ending}")
    inside = ("cats/1.png", "dogs/1.png", "../up.png", "__MACOSX/._1.png", "notes.md")
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in inside:
                file.write(photo, name)
    else:
        with tarfile.open(archive, "w:gz" if ending == ".tgz" else "w") as file:
            for name in inside:
                file.add(photo, name)
    found = find_images([archive], tmp_path / "copies")
    assert [found.name(path) for path in found.paths] == [f"{archive}/{name}" for name in inside[:3]]
    assert all(path.read_bytes() == photo.read_bytes() for path in found.paths)
    assert all((tmp_path / "copies").resolve() in path.resolve().parents for path in found.paths)


def test_what_is_no_archive_or_too_large_is_refused(photo, tmp_path, monkeypatch):
    assert not is_copied(str(photo)) and is_copied("A.ZIP")
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("notes.md", "text")
    for name in ("bad.zip", "empty.zip", "gone.tar"):
        with raises(DataError, tmp_path / name):
            find_images([str(tmp_path / name)], tmp_path / name[:3])
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as file:
        file.write(photo, "a.png")
    monkeypatch.setattr("data.sources.base.MAX_BYTES", 10)
    with raises(DataError, tmp_path / "large.zip/a.png", "at most 10"):
        copy_images(str(tmp_path / "large.zip"), tmp_path / "copies")
    assert copies.SILENCE < 60
