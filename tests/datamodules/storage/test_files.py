import gc
import gzip
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from braceexpand import braceexpand
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.errors import DataError
from datamodules.storage.files import (
    Folders,
    RemoteFile,
    download,
    expand_braces,
    first_file,
    join,
    read_range,
    read_text,
    resolve,
    split,
)


@pytest.fixture
def memory():
    """fsspec's store in memory, under memory://data."""
    filesystem = MemoryFileSystem()
    filesystem.pipe_file("/data/placeholder", b"")
    yield filesystem
    filesystem.rm("/data", recursive=True)


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve("~/videos/") == "/home/me/videos"
    assert resolve("s3://bucket/videos/") == "s3://bucket/videos"
    assert join("a", "b", "", "c") == "a/b/c" and join("a", "/b") == "/b"
    assert join("s3://x", "b", "", "c") == "s3://x/b/c" and join("memory://", "a") == "memory://a"
    assert join("s3://x", "/local") == "/local" and join("/local", "hf://datasets/x/y") == "hf://datasets/x/y"
    assert split("a/b/c.mp4") == ("a/b", "c.mp4")
    assert split("s3://bucket/c.mp4") == ("s3://bucket", "c.mp4") and split("memory://c") == ("memory://", "c")


@pytest.mark.parametrize("remote", [False, True])
def test_folders(tmp_path, memory, remote):
    names = ["b.MP4", "a.mp4", ".hidden.mp4", "notes.txt", "inner/c.mp4", ".git/x"]
    root = "memory://data" if remote else str(tmp_path)
    for name in names:
        if remote:
            memory.pipe_file(f"/data/{name}", b"x")
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    folders = Folders()
    assert folders.files(root, (".mp4",)) == ["a.mp4", "b.MP4"] and folders.subfolders(root) == ["inner"]
    assert folders.entries(f"{root}/none") == folders.entries(f"{root}/a.mp4") == {}
    assert folders.is_file(f"{root}/a.mp4") and not folders.is_file(f"{root}/inner")
    assert folders.is_folder(f"{root}/inner") and not folders.is_folder(f"{root}/a.mp4")
    assert folders.has(f"{root}/inner/c.mp4") and folders.has(f"{root}/inner") and not folders.has(f"{root}/c.mp4")
    assert first_file(folders, root, ("none.txt", "inner", "notes.txt", "a.mp4")) == f"{root}/notes.txt"
    assert first_file(folders, root, ("none.txt",)) is None


def test_folders_are_listed_once_while_kept(tmp_path):
    folders = Folders()
    path = str(tmp_path / "a")
    with folders.kept():
        assert not folders.has(path)
        (tmp_path / "a").touch()
        with folders.kept():
            assert not folders.has(path)
        assert not folders.has(path)
    assert folders.has(path)


def test_text(tmp_path, memory):
    (tmp_path / "list.txt").write_bytes("\ufeffé\n".encode())
    memory.pipe_file("/data/list.txt", "\ufeffé\n".encode())
    for root in (str(tmp_path), "memory://data"):
        assert read_text(f"{root}/list.txt") == "é\n"
        with pytest.raises(DataError, match=f"{root}/none.txt does not exist; check data.root"):
            read_text(f"{root}/none.txt")
    memory.pipe_file("/data/bad.txt", b"\xff")
    with pytest.raises(DataError, match=r"memory://data/bad.txt is not a UTF-8 text file"):
        read_text("memory://data/bad.txt")


def test_unknown_protocol():
    with pytest.raises(DataError, match=r"nosuch://x cannot be listed \(ValueError: Protocol not known: nosuch\)"):
        Folders().entries("nosuch://x")
    with pytest.raises(OSError, match="Protocol not known"):
        RemoteFile("nosuch://x/a")
    with pytest.raises(DataError, match="cannot be read"):
        read_text("nosuch://x/a")


def read_and_collect(url):
    read_range(url, 0, 4)
    gc.collect()


def test_forked_processes_leave_the_connections_alone(shard_server, tmp_path):
    """fsspec alone has the child take them off the epoll instance it shares with this process, which then waits for an
    answer until the request times out."""
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    with shard_server(tmp_path) as server, ThreadPoolExecutor(1) as thread:
        url = f"{server.url}/a.tar"
        for start in range(3):
            found = thread.submit(read_range, url, start, start + 2).result(timeout=600)
            assert found == b"0123456789"[start : start + 2]
            reader = multiprocessing.get_context("fork").Process(target=read_and_collect, args=(url,))
            reader.start()
            reader.join(600)
            assert reader.exitcode == 0


@contextmanager
def generous_server(kind):
    """Sends more than it is asked for: up to `SENT` bytes without a length, in place of no end; or a packed answer."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            asked = self.headers.get("Range")
            self.send_response(206 if asked and kind != "whole" else 200)
            if kind == "packed":
                data = gzip.compress(bytes(2**26))
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data if body else b"")
                sent.append(self.headers["Accept-Encoding"])
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if not body:
                return
            try:
                for _ in range(SENT // 2**20):
                    self.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
                    sent.append(2**20)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{kind}.tar", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


SENT = 2**28


def test_no_more_is_taken_than_was_asked_for(tmp_path, monkeypatch):
    with generous_server("endless") as (url, sent):
        assert read_range(url, 10, 14) == bytes(4)
        assert sum(sent) < SENT / 2  # what sockets hold back comes on top
        sent.clear()
        with pytest.raises(OSError, match=r"longer than announced, or than the 0\.002 GB"):
            download(url, str(tmp_path / "shard"), 2e6)
        assert (tmp_path / "shard").stat().st_size < SENT / 2
        sent.clear()
        monkeypatch.setattr("datamodules.storage.files._LARGEST", 2**22)
        with pytest.raises(DataError, match=f"{url} cannot be read .*more than 4194304 bytes"):
            read_text(url)
        assert sum(sent) < SENT / 2
    with generous_server("whole") as (url, _):
        assert len(read_range(url, 10, 14)) == 5  # longer than the range: whoever asked can tell


def test_packed_answers_are_refused():
    with generous_server("packed") as (url, asked):
        with pytest.raises(OSError, match=r"packs what it sends \(gzip\)"):
            read_range(url, 10, 14)
        with pytest.raises(DataError, match="packs what it sends"):
            read_text(url)
        assert set(asked) == {"identity"}


def test_who_cannot_be_reached_is_not_called_missing():
    with pytest.raises(DataError, match=r"cannot be read .*Cannot connect"):
        read_text("http://127.0.0.1:9/list.csv")


@pytest.mark.parametrize("pattern", [
    "a", "{a,b}", "x{a,b}y{1..3}", "{01..10..3}", "{1..10..4}", "{3..1}", "{003..-2}", "{-5..5..5}", "{}", "{x}",
    "{{a,b}}", "{a,{b,c}}", "{{0..2},{5..6}}", "{a,}", "{,a}b", "{a..c}", "{0..3..0}", "a{1..x}b", "{9..11}",
    "{x}{1,2}", "{000..003}.tar",
])  # fmt: skip
def test_braces_as_others_have_them(pattern):
    assert expand_braces(pattern) == list(braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{a,b}" * 40, "{{0..999999}{0..999999},x}", "{0..99999}{0..9}",
                                     "{a," * 2000 + "}" * 2000])  # fmt: skip
def test_braces_that_stand_for_too_many(pattern):
    with pytest.raises(DataError, match=r"stands for more than 100000 names|has too many braces"):
        expand_braces(pattern)
