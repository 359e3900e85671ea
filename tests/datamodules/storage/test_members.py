"""Files inside tars: the same bytes as outside, from the disk and over the network, and nothing else by mistake."""

import io
import multiprocessing
import os
import random
import tarfile

import pytest
import torch

from datamodules import DecodeError, VideoReader
from datamodules.errors import DataError
from datamodules.storage.members import Member, as_member, open_member


@pytest.fixture(scope="module")
def shard(tmp_path_factory, make_video):
    """A tar with two videos and random bytes between them: path, and name -> content."""
    folder = tmp_path_factory.mktemp("members")
    content = {"first.mp4": make_video(folder / "a.mp4", 12).read_bytes(),
               "noise.bin": random.Random(0).randbytes(70_001),
               "a long name " * 12 + "ü.webm": make_video(folder / "b.mp4", 7).read_bytes()}  # fmt: skip
    with tarfile.open(folder / "s!1+2!3.tar", "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / "s!1+2!3.tar", content


def members(path, url=None):
    with tarfile.open(path) as tar:
        return [Member(url or str(path), info.offset_data, info.size, info.name) for info in tar]


def test_paths(shard):
    for member in members(shard[0]):
        assert as_member(str(member)) == member
    url = Member("https://host/a b.tar", 512, 3, "x!y/z.mp4")
    assert str(url) == "https://host/a b.tar!512+3!x!y/z.mp4" and as_member(str(url)) == url
    for path in ("a.tar", "a!b.mp4", "a.tar!1!b.mp4", "a.tar!1+2!", "a.zip!1+2!b.mp4", "https://host/a.mp4"):
        assert as_member(path) is None


def test_a_member_is_a_file_of_its_own(shard):
    path, content = shard
    chance = random.Random(1)
    for member in members(path):
        data = content[member.name]
        file, plain = open_member(member), io.BytesIO(data)
        assert file.read() == data and file.read(5) == b"" and file.tell() == len(data)
        plain.seek(0, 2)
        for _ in range(200):
            offset, whence = chance.choice([(chance.randrange(len(data) + 50), 0), (chance.randrange(99), 1),
                                            (-chance.randrange(len(data)), 2)])  # fmt: skip
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            size = chance.choice([-1, 0, 1, 700, 10**6])
            assert file.read(size) == plain.read(size) and file.tell() == plain.tell()
        file.close()


def test_videos_are_decoded_in_place(shard, tmp_path):
    path, content = shard
    before = sorted(path.parent.iterdir())
    for member in members(path)[::2]:
        alone = tmp_path / "alone.mp4"
        alone.write_bytes(content[member.name])
        with VideoReader(str(member)) as inside, VideoReader(alone) as outside:
            assert inside.num_frames == outside.num_frames
            wanted = [5, 0, inside.num_frames - 1]
            assert torch.equal(inside.read(wanted), outside.read(wanted))
    assert sorted(path.parent.iterdir()) == before


def test_another_shard_of_that_name_is_noticed(shard, tmp_path):
    path, _ = shard
    first, _, last = members(path)
    damaged = tmp_path / "s.tar"
    data = path.read_bytes()
    damaged.write_bytes(data[: last.offset + 100])
    for member, reason in [(last, "cut off"), (first._replace(size=first.size + 1), "not the one"),
                           (first._replace(offset=first.offset + 512), "not the one"),
                           (first._replace(offset=10**9), "not the one")]:  # fmt: skip
        with pytest.raises(DecodeError, match=f"cannot be read .*{reason}"):
            VideoReader(str(member._replace(shard=str(damaged))))
    with pytest.raises(DecodeError, match="does not exist, as there is no such shard"):
        VideoReader(str(first._replace(shard=str(tmp_path / "none.tar"))))
    with pytest.raises(DecodeError, match="is empty"):
        VideoReader(str(first._replace(size=0)))


def test_of_a_remote_shard_only_the_member_is_fetched(shard, shard_server, monkeypatch):
    path, content = shard
    with shard_server(path.parent) as server:
        found = members(path, f"{server.url}/{path.name}")
        for member in found:
            assert open_member(member).read() == content[member.name]
        assert server.log == [(path.name, f"bytes={m.offset - 512}-{m.offset + m.size - 1}") for m in found]
        with VideoReader(str(found[0])) as reader:
            assert reader.num_frames == 12

        monkeypatch.setattr("datamodules.storage.members.time.sleep", lambda seconds: None)
        server.drop = 2
        assert open_member(found[0]).read() == content["first.mp4"]
        server.drop = 100  # the client tries again too
        with pytest.raises(DecodeError, match="cannot be read"):
            VideoReader(str(found[0]))
        server.drop = 0
        with pytest.raises(DecodeError, match="no such shard"):
            VideoReader(str(found[0]._replace(shard=f"{server.url}/none.tar")))
        server.ranges = False
        with pytest.raises(OSError, match="set ZOO_SHARD_CACHE"):
            open_member(found[0])


def read_all(found, queue):
    for member in found:
        queue.put(open_member(member).read())


def test_whole_shards_are_kept_for_all_processes(shard, shard_server, tmp_path, monkeypatch):
    path, content = shard
    cache = tmp_path / "cache"
    monkeypatch.setenv("ZOO_SHARD_CACHE", str(cache))
    with shard_server(path.parent) as server:
        server.ranges = False
        found = members(path, f"{server.url}/{path.name}")
        context = multiprocessing.get_context("fork")  # as loader workers are made
        queue = context.Queue()
        readers = [context.Process(target=read_all, args=(found, queue)) for _ in range(3)]
        for reader in readers:
            reader.start()
        assert sorted(queue.get(timeout=600) for _ in range(9)) == sorted([*content.values()] * 3)
        for reader in readers:
            reader.join()
        assert len(server.log) == 1
        (kept,) = cache.glob("*.tar")
        assert kept.read_bytes() == path.read_bytes()

        # Too small for two shards: the one used least lately gives way.
        monkeypatch.setenv("ZOO_SHARD_CACHE_GB", f"{0.5 * path.stat().st_size / 1e9}")
        other = path.with_name("other.tar")
        other.write_bytes(path.read_bytes())
        assert open_member(found[0]._replace(shard=f"{server.url}/other.tar")).read() == content["first.mp4"]
        other.unlink()
        assert not kept.exists() and len(list(cache.glob("*.tar"))) == 1
        assert open_member(found[1]).read() == content["noise.bin"]
        monkeypatch.setenv("ZOO_SHARD_CACHE_GB", "much")
        with pytest.raises(DataError, match="'much'; give a number"):
            open_member(found[0]._replace(shard=f"{server.url}/third.tar"))


def test_reading_does_not_move_others(shard):
    """Two readers of one shard keep places of their own, and close their files."""
    path, content = shard
    before = len(os.listdir("/proc/self/fd"))
    files = [open_member(member) for member in members(path)]
    parts = {member.name: b"" for member in members(path)}
    for _ in range(1000):
        for name, file in zip(parts, files, strict=True):
            parts[name] += file.read(97)
    assert parts == content
    for file in files:
        file.close()
    assert len(os.listdir("/proc/self/fd")) == before
