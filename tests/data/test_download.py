"""Fetching a category, without the internet: a server on this machine, and a hub that a function plays."""

import errno
import inspect
import io
import os
import shutil
import socket
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest

from padim_bottle.data import download
from padim_bottle.data.download import WORK_FOLDER, SourceError, archive_url, download_category, unpack
from padim_bottle.data.layout import CATEGORIES, verify_category
from padim_bottle.errors import UnavailableError, UserError

# The smallest category of MVTec AD: its numbers of images are checked, not their content.
CATEGORY, COUNTS = "toothbrush", {"train": 60, "good": 12, "defects": {"defective": 30}, "size": (16, 24)}


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """A hub that cannot be reached, until a test sets ``hub.answer``; what it was asked is in ``hub.asked``."""

    def unreachable(_folder):
        raise ConnectionError("Got: no route to the hub")

    hub = SimpleNamespace(asked=[], answer=unreachable)

    def snapshot(repo_id, *, repo_type, allow_patterns, local_dir):
        hub.asked.append((repo_id, repo_type, allow_patterns))
        hub.answer(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return hub


@pytest.fixture
def serve(monkeypatch):
    """Serve an archive on 127.0.0.1 in place of MVTec's host; the list that it returns counts the requests."""
    servers = []

    def start(content: bytes, misdeed: str = ""):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args):
                pass

            def do_GET(self):
                requests.append(self.path)
                if misdeed.isdigit():
                    self.send_error(int(misdeed))
                elif misdeed == "hang up":
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    if misdeed == "slow":
                        time.sleep(0.3)
                    self.wfile.write(content[: len(content) // 2] if misdeed == "cut" else content)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(download, "archive_url", lambda name: f"http://127.0.0.1:{server.server_port}/{name}")
        return requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def published(tmp_path_factory, write_category):
    root = tmp_path_factory.mktemp("published")
    (write_category(root, CATEGORY, **COUNTS) / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


@pytest.fixture(scope="module")
def archive(published):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        tar.add(published / CATEGORY, arcname=CATEGORY)
    return buffer.getvalue()


def test_the_hub_is_asked_first_for_the_category_alone_and_resumes(tmp_path, hub, serve, published):
    def interrupted(folder):
        shutil.copytree(published / CATEGORY / "test", folder / CATEGORY / "test")
        raise KeyboardInterrupt

    def rest(folder):
        assert (folder / CATEGORY / "test").is_dir()  # what an earlier attempt received is there
        shutil.copytree(published / CATEGORY, folder / CATEGORY, dirs_exist_ok=True)

    requests = serve(b"")
    hub.answer = interrupted
    with pytest.raises(KeyboardInterrupt):
        download_category(CATEGORY, tmp_path)
    assert not (tmp_path / CATEGORY).exists()
    hub.answer = rest
    assert download_category(CATEGORY, tmp_path) == tmp_path / CATEGORY
    assert verify_category(tmp_path, CATEGORY) == verify_category(published, CATEGORY)
    assert hub.asked == [("foersben/mvtec-ad", "dataset", [f"{CATEGORY}/*"])] * 2
    assert requests == []
    assert not (tmp_path / WORK_FOLDER / CATEGORY).exists()
    download_category(CATEGORY, tmp_path)
    assert len(hub.asked) == 2


def test_hub_arguments_exist():
    parameters = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert {"repo_id", "repo_type", "allow_patterns", "local_dir"} <= set(parameters)


def test_the_archive_is_next_and_is_unpacked_and_verified(tmp_path, serve, archive, published):
    requests = serve(archive)
    root = tmp_path / "new" / "root"
    assert download_category(CATEGORY, root) == root / CATEGORY
    assert verify_category(root, CATEGORY) == verify_category(published, CATEGORY)
    assert (root / CATEGORY / "license.txt").is_file()
    assert requests == [f"/{CATEGORY}"]
    assert [path.name for path in (root / WORK_FOLDER).iterdir()] == [f"{CATEGORY}.lock"]


@pytest.mark.parametrize(
    ("misdeed", "reason"), [("404", "HTTP 404"), ("hang up", ""), ("cut", "damaged"), ("rubbish", "damaged")]
)
def test_failure_names_every_source_and_the_two_ways_out(tmp_path, serve, archive, misdeed, reason):
    serve(b"<html>please log in</html>" if misdeed == "rubbish" else archive, misdeed)
    with pytest.raises(UnavailableError) as caught:
        download_category(CATEGORY, tmp_path)
    message = str(caught.value)
    hub, host = [line for line in message.splitlines() if line.startswith("  - ")]
    assert "https://huggingface.co/datasets/foersben/mvtec-ad: Got: no route to the hub" in hub
    assert "MVTec's file host: " in host
    assert reason in host
    assert "MVTEC_AD_ROOT" in message
    assert "https://www.mvtec.com" in message
    assert str(tmp_path / CATEGORY / "train" / "good") in message
    assert not (tmp_path / CATEGORY).exists()
    serve(archive)
    download_category(CATEGORY, tmp_path)  # and nothing of the failed attempt disturbs the next


def test_what_is_not_as_published_is_refused_and_not_kept(tmp_path, serve, hub, published):
    def incomplete(folder):
        shutil.copytree(published / CATEGORY, folder / CATEGORY)
        (folder / CATEGORY / "train" / "good" / "059.png").unlink()

    hub.answer = incomplete
    serve(b"", "404")
    with pytest.raises(UnavailableError, match=r"not usable.*train=59.*train=60"):
        download_category(CATEGORY, tmp_path)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../escaped.txt", tarfile.REGTYPE, ""),
        ("widget/../../escaped.txt", tarfile.REGTYPE, ""),
        ("widget/link", tarfile.SYMTYPE, "../../escaped.txt"),
        ("widget/pipe", tarfile.FIFOTYPE, ""),
        ("widget/device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_malicious_archive_is_refused(tmp_path, name, kind, link):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member, io.BytesIO())
    buffer.seek(0)
    with pytest.raises(SourceError, match="damaged"):
        unpack(buffer, tmp_path / "a" / "b")
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 10), ("MAX_BYTES", 10_000)])
def test_bombs_are_refused(tmp_path, monkeypatch, limit, value):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for index in range(20):
            member = tarfile.TarInfo(f"widget/{index}.bin")
            member.size = 1000
            tar.addfile(member, io.BytesIO(bytes(1000)))
    buffer.seek(0)
    monkeypatch.setattr(download, limit, value)
    with pytest.raises(SourceError, match="more than"):
        unpack(buffer, tmp_path)
    assert len(list(tmp_path.rglob("*.bin"))) == 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_no_fault_of_the_source(tmp_path, serve, archive, hub, monkeypatch, number):
    requests = serve(archive)

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    def refuse():
        with pytest.raises(UserError, match=f"Cannot write .*{os.strerror(number)}.*MVTEC_AD_ROOT") as caught:
            download_category(CATEGORY, tmp_path)
        assert ("Free some disk space" in str(caught.value)) == (number == errno.ENOSPC)

    monkeypatch.setattr(tarfile.TarFile, "extract", fail)
    refuse()
    assert len(requests) == 1
    hub.answer = fail
    refuse()
    assert len(requests) == 1


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        download_category("bottle", tmp_path / "root")


def test_unknown_category():
    with pytest.raises(UserError, match=r"'botle' is no category.*bottle"):
        download_category("botle", "anywhere")


def test_two_at_the_same_time_download_once(tmp_path, serve, archive, published):
    requests = serve(archive, "slow")
    results = []
    threads = [threading.Thread(target=lambda: results.append(download_category(CATEGORY, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / CATEGORY] * 3
    assert len(requests) == 1
    assert verify_category(tmp_path, CATEGORY) == verify_category(published, CATEGORY)


def test_every_category_has_its_archive():
    urls = {archive_url(category) for category in CATEGORIES}
    assert len(urls) == 15
    assert all(url.startswith("https://www.mydrive.ch/shares/") and url.endswith(".tar.xz") for url in urls)
