"""Shards on the disk: readable by any reader of the format, whole or not there, and the same however often begun."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from datamodules import PairCorpora
from datamodules.errors import DataError
from datamodules.shards.reading import open_shards
from datamodules.shards.writing import Source, parse_size, write_shards
from datamodules.storage.members import as_member, open_member

REPOSITORY = Path(__file__).resolve().parents[3]
ABOUT = {"class_names": ["a", "b"], "media": "video"}


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def test_any_reader_of_the_format_reads_them(sources, tmp_path):
    written = write_shards(sources, tmp_path, "val", about=ABOUT, max_bytes=5000)
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    assert written[:2] == (9, len(shards)) and len(shards) >= 3 and written.left_out == written.kept == 0
    assert written.bytes == sum(os.path.getsize(shard) for shard in shards)
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"{i:09d}" for i in range(9)]
    for sample, source in zip(found, sources, strict=True):
        assert sample["mp4"] == Path(source.path).read_bytes()
        assert int(sample["cls"]) == source.fields["label"]
        assert json.loads(sample["json"]) == {"name": source.name, **source.fields}
    assert all(os.path.getsize(shard) < 5000 + 30_000 for shard in shards)


def test_mixed_by_a_seed(sources, tmp_path):
    orders = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shards(sources, tmp_path / name, "train", about=ABOUT, shuffle_seed=seed)
        (folder,) = open_shards([str(tmp_path / name)], "train")
        orders[name] = [values["label"] for _, values in folder.samples], digests(tmp_path / name)
    assert orders["a"] == orders["b"] != orders["c"] and sorted(orders["c"][0]) == sorted(orders["a"][0])


def test_members_of_shards_can_be_written_anew(sources, tmp_path):
    write_shards(sources, tmp_path / "one", "val", about=ABOUT, max_bytes=5000)
    (folder,) = open_shards([str(tmp_path / "one")], "val")
    members = [Source(path, as_member(path).name, values) for path, values in folder.samples]
    write_shards(members, tmp_path / "two", "val", about=ABOUT, num_workers=2)
    (folder,) = open_shards([str(tmp_path / "two")], "val")
    for (path, values), source in zip(folder.samples, sources, strict=True):
        assert open_member(as_member(path)).read() == Path(source.path).read_bytes() and values == source.fields


KILLED = """
import json, os, signal, sys
from datamodules.shards.writing import Source, write_shards

sources = [Source(*source) for source in json.loads(sys.argv[1])]
def kill(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
write_shards(sources, sys.argv[2], "train", about={"class_names": ["a", "b"], "media": "video"}, max_bytes=5000,
             shuffle_seed=3, on_files=kill)
"""


def test_a_killed_writing_goes_on(sources, tmp_path):
    options = {"about": ABOUT, "max_bytes": 5000, "shuffle_seed": 3}
    whole = write_shards(sources, tmp_path / "whole", "train", **options)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, json.dumps(sources), str(out), "6"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = sorted(path.name for path in out.iterdir())
    assert not any(name.endswith("index.jsonl") for name in names) and ".train.journal.jsonl" in names
    assert any(name.endswith(".tar.part") for name in names) and "train-000000.tar" in names
    with pytest.raises(DataError, match=r"beginning of other train shards \(other shuffle_seed"):
        write_shards(sources, out, "train", **{**options, "shuffle_seed": 4})
    seen = []
    again = write_shards(sources, out, "train", **options, on_files=lambda done, total: seen.append(done))
    assert again.kept > 0 and again._replace(kept=0) == whole and min(seen) > 0
    assert digests(out) == digests(tmp_path / "whole")
    # Once more: there is nothing to do.
    assert write_shards(sources, out, "train", **options) == whole._replace(kept=whole.shards)
    assert digests(out) == digests(tmp_path / "whole")


def test_what_is_there_is_not_overwritten(sources, tmp_path):
    write_shards(sources[:4], tmp_path, "val", about=ABOUT)
    before = digests(tmp_path)
    relabelled = [source._replace(fields={"label": 1}) for source in sources[:4]]
    for others, options in ((sources, {}), (relabelled, {}), (sources[:4], {"max_bytes": 7000}),
                            (sources[:4], {"about": {**ABOUT, "class_names": ["x", "y"]}})):  # fmt: skip
        with pytest.raises(DataError, match=r"val\.index\.jsonl exists, made of something else .*another folder"):
            write_shards(others, tmp_path, "val", **{"about": ABOUT, **options})
    assert digests(tmp_path) == before


def test_one_process_at_a_time(sources, tmp_path):
    def other(done, total):
        with pytest.raises(DataError, match="Another process is writing val shards"):
            write_shards(sources, tmp_path, "val", about=ABOUT)

    assert write_shards(sources, tmp_path, "val", about=ABOUT, on_files=other).samples == 9


def test_what_cannot_be_read_is_left_out(sources, tmp_path):
    (tmp_path / "empty.mp4").touch()
    broken = [Source(str(tmp_path / "none.mp4"), "none.mp4", {"label": 0}), *sources[:2],
              Source(str(tmp_path / "empty.mp4"), "empty.mp4", {"label": 1})]  # fmt: skip
    with pytest.warns(UserWarning) as caught:
        written = write_shards(broken, tmp_path / "out", "val", about=ABOUT)
    assert written == (2, 1, written.bytes, 2, 0)
    assert [str(w.message).rpartition(" (")[2] for w in caught] == ["left out)."] * 2
    (folder,) = open_shards([str(tmp_path / "out")], "val")
    assert [as_member(path).name for path, _ in folder.samples] == [source.name for source in sources[:2]]
    with pytest.warns(UserWarning), pytest.raises(DataError, match="Not one of the 1 val files"):
        write_shards(broken[:1], tmp_path / "nothing", "val", about=ABOUT)
    assert list((tmp_path / "nothing").iterdir()) == []
    with pytest.raises(DataError, match="no samples"):
        write_shards([], tmp_path / "nothing", "val", about=ABOUT)


def test_names_that_are_not_utf_8(tmp_path, sources):
    name = "v\udcff.mp4"
    (tmp_path / name).write_bytes(Path(sources[0].path).read_bytes())
    source = Source(str(tmp_path / name), name, {"captions": ["half \ud83d"]})
    write_shards([source], tmp_path / "out", "train", about={"media": "video"})
    (pair,) = PairCorpora(tmp_path / "out", corpora=[{"shards": "."}], num_workers=0).listing("train")
    assert pair.caption == "half ?" and as_member(pair.path).name == "v?.mp4"


TROUBLE = """
import json, os, resource, sys, time
from datamodules.shards import writing as shard_writer
from datamodules.errors import DataError
from datamodules.shards.writing import Source, write_shards

sources, out = json.loads(sys.argv[1])
sources = [Source(*source) for source in sources]
quick = shard_writer._converted

def slow(*arguments):
    time.sleep(0.2)
    return quick(*arguments)

def full(limit, after):
    def fill(done, total):  # as a full disk, writing fails from here on
        if done >= after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    try:
        if not after:
            fill(0, 0)
        write_shards(sources, f"{out}/full-{limit}", "train", about={}, max_bytes=4000, on_files=fill)
    except DataError as error:
        print(json.dumps([limit, str(error)]), flush=True)

for limit, after in ((2000, 5), (30, 0)):
    if os.fork() == 0:
        full(limit, after)
        os._exit(0)
    os.wait()
shard_writer._converted = slow
print(json.dumps(["killed", os.getpid()]), flush=True)
write_shards(sources, f"{out}/killed", "train", about={}, max_bytes=1, num_workers=2)
"""


@pytest.fixture(scope="module")
def troubles(sources, tmp_path_factory):
    """What a writing to a full disk, at two moments, and a killed one with two workers leave behind, and say."""
    out = tmp_path_factory.mktemp("troubles")
    arguments = [sys.executable, "-c", TROUBLE, json.dumps([sources, str(out)])]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        said = dict(json.loads(process.stdout.readline()) for _ in range(3))
        while not (out / "killed" / "train-000001.tar").exists():
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        said["workers"] = children.read_text().split() if children.exists() else []
        process.kill()
    return out, said


@pytest.mark.parametrize(("limit", "file"), [(2000, r"train-00000\d\.tar"), (30, r"\.train\.journal\.jsonl")])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(sources, troubles, tmp_path, limit, file):
    out, said = troubles
    out = out / f"full-{limit}"
    assert re.fullmatch(rf"{out}/{file} cannot be written \(File too large\); make room .*\.", said[limit])
    write_shards(sources, tmp_path, "train", about={}, max_bytes=4000)
    there, whole = digests(out), digests(tmp_path)
    assert not (out / "train.index.jsonl").exists() and not list(out.glob(".*.part"))
    assert all(whole[name] == digest for name, digest in there.items() if name.endswith(".tar"))
    again = write_shards(sources, out, "train", about={}, max_bytes=4000)
    assert bool(again.kept) == (limit > 100) and digests(out) == whole


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_killed_owner_lets_go_and_its_workers_end(sources, troubles, tmp_path):
    out, said = troubles
    assert write_shards(sources, out / "killed", "train", about={}, max_bytes=1).kept >= 1
    write_shards(sources, tmp_path, "train", about={}, max_bytes=1)
    assert digests(out / "killed") == digests(tmp_path)
    deadline = time.monotonic() + 600
    while any(map(runs, said["workers"])):
        assert time.monotonic() < deadline, "the workers outlive the process that they work for"
        time.sleep(0.05)


def test_sizes():
    assert [parse_size(text) for text in ("1GB", "500 mb", "2GiB", "1.5k", "1000000")] == [
        10**9, 5 * 10**8, 2**31, 1500, 10**6]  # fmt: skip
    for text in ("", "much", "0", "-1GB", "GB"):
        with pytest.raises(DataError, match="is no size"):
            parse_size(text)


def test_a_folder_of_frames_needs_a_short_side(tmp_path, sources):
    (tmp_path / "frames").mkdir()
    frames = Source(str(tmp_path / "frames"), "frames", {"label": 0})
    with pytest.warns(UserWarning, match="folder of frames"):
        assert write_shards([frames, sources[0]], tmp_path / "out", "val", about=ABOUT).left_out == 1
