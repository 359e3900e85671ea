import gc
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.errors import DataError
from datamodules.files import Folders, RemoteFile, first_file, join, read_range, read_text, resolve, split


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
            found = thread.submit(read_range, url, start, start + 2).result(timeout=20)
            assert found == b"0123456789"[start : start + 2]
            reader = multiprocessing.get_context("fork").Process(target=read_and_collect, args=(url,))
            reader.start()
            reader.join(20)
            assert reader.exitcode == 0
