import errno
import inspect
import io
import os
import re
import socket
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest

from padim_bottle.data import download
from padim_bottle.data.download import (
    WORK_FOLDER,
    ArchiveSource,
    BadDataError,
    HuggingFaceSource,
    default_sources,
    download_category,
    unpack,
)
from padim_bottle.data.layout import CATEGORIES, fingerprint
from padim_bottle.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve():
    """Start servers on 127.0.0.1 that log each request's Range and commit a misdeed a request."""
    servers = []

    def start(content: bytes, *misdeeds: str, always: str = ""):
        log = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args):
                pass

            def do_GET(self):
                misdeed = misdeeds[len(log)] if len(log) < len(misdeeds) else always
                log.append(self.headers.get("Range"))
                answer(self, content, log[-1], misdeed)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/widget.tar.xz"
        return SimpleNamespace(source=ArchiveSource(url, timeout=0.3, backoff=0), requests=log)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(handler, content, asked, misdeed):
    """Serve ``content`` as asked, or with a misdeed; "cut 600" cuts after 600 bytes, "cut" in the middle."""
    if misdeed.isdigit():
        handler.send_error(int(misdeed))
        return
    if misdeed == "redirect":
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere.tar.xz")
        handler.end_headers()
        return
    if misdeed == "hang up":
        handler.connection.shutdown(socket.SHUT_RDWR)
        return
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and "ignore range" not in misdeed else 0
    if start >= len(content) > 0:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.end_headers()
        return
    body = content[start:]
    handler.send_response(206 if start else 200)
    if start:
        first = 1 if misdeed == "wrong range" else start
        handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    if misdeed != "no length":
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    early = re.search(r"(cut|stall) ?(\d*)", misdeed)
    handler.wfile.write(body[: int(early[2] or len(content) // 2)] if early else body)
    if early and early[1] == "stall":
        time.sleep(1)


@pytest.fixture
def archive(tmp_path, write_category):
    """The bytes of a good archive and the fingerprint of what it holds."""
    folder = write_category(tmp_path / "published")
    (folder / "license.txt").write_text("CC BY-NC-SA 4.0")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        tar.add(folder, arcname="widget")
    return SimpleNamespace(content=buffer.getvalue(), fingerprint=fingerprint(tmp_path / "published", "widget"))


def test_archive_is_downloaded_verified_and_cleaned_up_after(tmp_path, serve, archive):
    server = serve(archive.content)
    root = tmp_path / "new" / "root"
    assert download_category("widget", root, [server.source]) == root / "widget"
    assert fingerprint(root, "widget") == archive.fingerprint
    assert (root / "widget" / "license.txt").is_file()
    assert server.requests == [None]
    assert not (root / WORK_FOLDER / "widget").exists()
    download_category("widget", root, [server.source])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("misdeeds", "requests"),
    [
        (["redirect"], 2),
        (["no length"], 1),
        (["503", "429", "500"], 4),
        (["hang up", "hang up", "hang up"], 4),
        (["cut"], 2),
        (["stall"], 2),
        (["cut", "ignore range"], 2),
        (["cut", "redirect"], 3),
        (["cut", "503"], 3),
        (["cut", "wrong range"], 3),
        (["cut", "416"], 3),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_passing_troubles_are_overcome(tmp_path, serve, archive, misdeeds, requests):
    server = serve(archive.content, *misdeeds)
    download_category("widget", tmp_path, [server.source])
    assert fingerprint(tmp_path, "widget") == archive.fingerprint
    assert len(server.requests) == requests


def test_only_the_missing_part_is_asked_for(tmp_path, serve, archive):
    server = serve(archive.content, always="cut 1000")
    download_category("widget", tmp_path, [server.source])
    steps = [f"bytes={start}-" for start in range(1000, len(archive.content), 1000)]
    assert server.requests == [None, *steps]
    assert len(steps) > server.source.attempts  # attempts that bring something are not counted


def test_next_run_resumes(tmp_path, serve, archive):
    server = serve(archive.content, "cut", "404")
    with pytest.raises(UserError, match="HTTP 404"):
        download_category("widget", tmp_path, [server.source])
    assert not (tmp_path / "widget").exists()
    download_category("widget", tmp_path, [server.source])
    assert server.requests[-1] == f"bytes={len(archive.content) // 2}-"
    assert fingerprint(tmp_path, "widget") == archive.fingerprint


def test_archive_that_was_complete_is_not_downloaded_again(tmp_path, serve, archive, monkeypatch):
    server = serve(archive.content)

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download, "unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download_category("widget", tmp_path, [server.source])
    assert not (tmp_path / "widget").exists()
    download_category("widget", tmp_path, [server.source])
    assert server.requests == [None, f"bytes={len(archive.content)}-"]
    assert fingerprint(tmp_path, "widget") == archive.fingerprint


@pytest.mark.parametrize("misdeed", ["stall 0", "hang up", "503"])
def test_lasting_trouble_ends_after_the_attempts(tmp_path, serve, archive, misdeed):
    server = serve(archive.content, always=misdeed)
    with pytest.raises(UserError, match=r"\(4 attempts\)"):
        download_category("widget", tmp_path, [server.source])
    assert len(server.requests) == 4


def test_server_that_ignores_ranges_and_is_cut_anywhere_is_given_up(tmp_path, serve, archive):
    server = serve(archive.content, *["ignore range, cut 600", "ignore range, cut 300"] * 50)
    with pytest.raises(UserError, match="cut after"):
        download_category("widget", tmp_path, [server.source])
    assert len(server.requests) == server.source.attempts


def test_next_source_is_tried_and_partial_archives_do_not_mix(tmp_path, serve, archive):
    missing = serve(b"", always="404")
    half = serve(b"x" * len(archive.content), "cut", always="404")
    wrong = serve(b"<html>please log in</html>")
    good = serve(archive.content)
    unused = serve(archive.content)
    servers = [missing, half, wrong, good, unused]
    download_category("widget", tmp_path, [server.source for server in servers])
    assert fingerprint(tmp_path, "widget") == archive.fingerprint
    assert [len(server.requests) for server in servers] == [1, 2, 1, 1, 0]
    assert good.requests == [None]


def test_failure_names_every_source_and_the_two_ways_out(tmp_path, serve, archive, write_category):
    refused = ArchiveSource("http://127.0.0.1:1/widget.tar.xz", attempts=2, backoff=0)
    gone = serve(b"", always="410")
    rubbish = serve(b"no archive at all")
    damaged = serve(archive.content[:-500])
    folder = write_category(tmp_path / "incomplete")
    (folder / "ground_truth/crack/001_mask.png").unlink()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname="widget")
    unpaired = serve(buffer.getvalue())
    sources = [refused, *(server.source for server in (gone, rubbish, damaged, unpaired))]
    root = tmp_path / "root"
    with pytest.raises(UserError) as caught:
        download_category("widget", root, sources)
    message = str(caught.value)
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    assert [line.startswith(f"  - {source}: ") for line, source in zip(lines, sources, strict=True)] == [True] * 5
    for line, reason in zip(
        lines,
        ["Connection refused (2 attempts)", "HTTP 410", "damaged", "damaged", "crack/001_mask.png"],
        strict=True,
    ):
        assert reason in line
    assert "MVTEC_AD_ROOT" in message
    assert "https://www.mvtec.com" in message
    assert str(root / "widget" / "train" / "good") in message
    assert not (root / "widget").exists()
    assert not list((root / WORK_FOLDER).rglob("*.p*"))  # neither archives nor images of no use are kept


def member(name, kind=tarfile.REGTYPE, content=b"content", link="", size=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    if size is not None:
        info.size = size
    return info, content


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("../escaped.txt"), "outside"),
        (member("widget/../../escaped.txt"), "outside"),
        (member("/tmp/padim_bottle_escaped.txt"), "outside"),
        (member("widget\\..\\..\\escaped.txt"), "outside"),
        (member("C:escaped.txt"), "outside"),
        (member("widget/link", tarfile.SYMTYPE, link="../../escaped.txt"), "neither"),
        (member("widget/link", tarfile.LNKTYPE, link="widget/first.txt"), "neither"),
        (member("widget/pipe", tarfile.FIFOTYPE), "neither"),
        (member("widget/device", tarfile.CHRTYPE), "neither"),
        (member("widget/first.txt/below.txt"), "damaged"),
        (member("widget/huge.bin", size=5 * 2**30), "more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[0].name),
)
def test_malicious_member_is_refused(tmp_path, bad, reason):
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as tar:
        for info, content in (member("widget/first.txt"), bad):
            tar.fileobj.write(info.tobuf())
            if info.isreg():
                content = content.ljust(-len(content) % 512 + len(content), b"\0")
                tar.fileobj.write(content)
    target = tmp_path / "a" / "b"
    with pytest.raises(BadDataError, match=reason):
        unpack(path, target)
    assert not list(tmp_path.rglob("escaped*"))
    assert [file.name for file in target.rglob("*") if file.is_file()] == ["first.txt"]
    assert not list(target.parent.parent.glob("*.txt"))


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "archive.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for index in range(20):
            info, content = member(f"widget/{index}.bin", content=bytes(1000))
            tar.addfile(info, io.BytesIO(content))
    unpack(path, tmp_path / "fine")
    assert len(list((tmp_path / "fine").rglob("*.bin"))) == 20
    for limit, value in (("MAX_FILES", 10), ("MAX_BYTES", 10_000)):
        with monkeypatch.context() as patched:
            patched.setattr(download, limit, value)
            with pytest.raises(BadDataError, match="more than"):
                unpack(path, tmp_path / limit)
        assert len(list((tmp_path / limit).rglob("*.bin"))) == 10


def test_endless_archive_is_given_up(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="more than"):
        download_category("widget", tmp_path, [serve(bytes(3_000_000)).source])
    assert not list((tmp_path / WORK_FOLDER).rglob("*.part"))


def test_modes_in_the_archive_do_not_lock_the_user_out(tmp_path):
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as tar:
        info, _ = member("widget", tarfile.DIRTYPE)
        info.mode = 0o555
        tar.addfile(info)
        info, content = member("widget/image.png")
        info.mode = 0o400
        tar.addfile(info, io.BytesIO(content))
    unpack(path, tmp_path / "out")
    assert os.stat(tmp_path / "out/widget").st_mode & 0o700 == 0o700  # noqa: PTH116
    assert os.stat(tmp_path / "out/widget/image.png").st_mode & 0o600 == 0o600  # noqa: PTH116


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk_that_cannot_be_written_is_no_fault_of_the_source(tmp_path, serve, archive, monkeypatch, number):
    first, second = serve(archive.content), serve(archive.content)

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tarfile.TarFile, "extract", fail)
    with pytest.raises(UserError, match=f"Cannot write .*{os.strerror(number)}.*MVTEC_AD_ROOT") as caught:
        download_category("widget", tmp_path, [first.source, second.source])
    assert ("Free some disk space" in str(caught.value)) == (number == errno.ENOSPC)
    assert second.requests == []


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        download_category("bottle", tmp_path / "root")


def test_unknown_category():
    with pytest.raises(UserError, match=r"'botle' is no category.*bottle"):
        download_category("botle", "anywhere")


def test_two_at_the_same_time_download_once(tmp_path, serve, archive):
    server = serve(archive.content, "stall")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(download_category("widget", tmp_path, [server.source])))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "widget"] * 3
    assert len(server.requests) == 2  # the stalled one and its resumption
    assert fingerprint(tmp_path, "widget") == archive.fingerprint


def test_hugging_face_fetches_only_the_category(tmp_path, write_category, monkeypatch):
    asked = []

    def snapshot(repo_id, *, repo_type, allow_patterns, local_dir):
        asked.append((repo_id, repo_type, allow_patterns))
        if len(asked) == 1:
            raise ConnectionError("Got: no route to the hub")
        write_category(local_dir)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = HuggingFaceSource("someone/mvtec")
    with pytest.raises(UserError, match=r"https://huggingface\.co/datasets/someone/mvtec: Got: no route"):
        download_category("widget", tmp_path, [source])
    download_category("widget", tmp_path, [source])
    assert asked == [("someone/mvtec", "dataset", ["widget/*"])] * 2
    assert (tmp_path / "widget/train/good/000.png").is_file()


def test_hugging_face_arguments_exist():
    parameters = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert {"repo_id", "repo_type", "allow_patterns", "local_dir"} <= set(parameters)


def test_every_category_has_its_sources():
    for category in CATEGORIES:
        first, second, hub = map(str, default_sources(category))
        assert first != second
        assert first.endswith(f"/{category}.tar.xz")
        assert first.rpartition("/download/")[2] == second.rpartition("/download/")[2]
        assert hub.startswith("https://huggingface.co/")
    urls = {str(source) for category in CATEGORIES for source in default_sources(category)[:2]}
    assert len(urls) == 30
