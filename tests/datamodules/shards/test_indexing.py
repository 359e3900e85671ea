"""Shards of others get an index, or are refused; damage is found by digest."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from datamodules import DecodeError, PairCorpora, VideoFolder
from datamodules.errors import DataError
from datamodules.shards.indexing import check_shards, index_shards
from datamodules.shards.reading import open_shards
from datamodules.shards.writing import write_shards
from datamodules.storage.members import as_member, open_member
from datamodules.video.frame_tar import FrameTar

ABOUT = {"class_names": ["a", "b"], "media": "video"}


def test_damage_is_found_by_digest(sources, tmp_path):
    write_shards(sources, tmp_path, "train", about=ABOUT, max_bytes=5000)
    write_shards(sources[:2], tmp_path, "val", about=ABOUT)
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert check_shards(tmp_path) == (names, [])
    data = bytearray((tmp_path / names[1]).read_bytes())
    data[2000] ^= 1
    (tmp_path / names[1]).write_bytes(data)
    (tmp_path / names[-1]).unlink()
    assert check_shards(tmp_path) == (names[:1] + names[2:-1], [names[1], names[-1]])
    with pytest.raises(DataError, match="no index of shards"):
        check_shards(tmp_path / "..")


def foreign(path, samples):
    """Shards as img2dataset and video2dataset write them."""
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for key, sample in samples.items():
            tar.write({"__key__": key, **sample})


def test_shards_of_others(sources, tmp_path):
    video = Path(sources[0].path).read_bytes()
    captions = {"000": {"mp4": video, "txt": b"one dog", "json": b'{"caption": "else", "url": "x"}'},
                "001": {"mp4": video, "json": json.dumps({"caption": "zwei Hündchen"}).encode()},
                "002": {"txt": b"nothing to see"}}  # fmt: skip
    foreign(tmp_path / "00000.tar", captions)
    foreign(tmp_path / "00001.tar", {"003": {"mp4": video, "json": b'{"captions": ["three", "four"]}'}})
    paths = [tmp_path / "00000.tar", tmp_path / "00001.tar"]
    written = index_shards(paths, "train")
    assert written[:2] == (3, 2) and written.left_out == 1
    data = PairCorpora(tmp_path, corpora=[{"shards": "."}], num_workers=0)
    pairs = data.listing("train")
    assert [pair.caption for pair in pairs] == ["one dog", "zwei Hündchen", "three", "four"]
    assert all(open_member(as_member(pair.path)).read() == video for pair in pairs)
    assert as_member(pairs[1].path).name == "001.mp4" and data._num_images == 0
    with pytest.raises(DataError, match="exists; remove it first"):
        index_shards(paths, "train")

    classes = tmp_path / "classes"
    classes.mkdir()
    foreign(classes / "x.tar", {f"dir/{i}": {"mp4": video, "cls": str(i % 2).encode()} for i in range(4)})
    index_shards([classes / "x.tar"], "train", class_names=["no", "yes"])
    data = VideoFolder(classes, num_workers=0)
    assert data.class_names == ["no", "yes"] and [s.label for s in data.listing("train")] == [0, 1, 0, 1]


@pytest.mark.parametrize(("samples", "message"), [
    ({"0": {"mp4": b"x"}}, "no captions|need a class|do not all"),
    ({"0": {"mp4": b"x", "cls": b"1"}, "1": {"mp4": b"x", "txt": b"one"}}, "do not all have a class"),
    ({"0": {"mp4": b"x", "cls": b"dog"}}, "cannot be read as a tar shard"),
    ({"0": {"mp4": b"x", "txt": b"a"}, "1": {"jpg": b"x", "txt": b"b"}}, "both pictures and videos"),
    (None, "cannot be read as a tar shard"),
])  # fmt: skip
def test_shards_of_others_that_cannot_be_used(tmp_path, samples, message):
    if samples is None:
        (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    else:
        foreign(tmp_path / "0.tar", samples)
    with pytest.raises(DataError, match=message):
        index_shards([tmp_path / "0.tar"], "train")
    assert not (tmp_path / "train.index.jsonl").exists()


def raw_header(name, kind=b"0", size=b"00000000000", link=""):
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[157 : 157 + len(link)] = link.encode()
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
HUGE = b"\x80" + b"\0" * 3 + (2**60).to_bytes(8, "big")


@pytest.mark.parametrize("content", [
    raw_header("0.mp4", size=NEGATIVE) * 3, raw_header("x", b"x", NEGATIVE) * 3, raw_header("x", b"L", NEGATIVE) * 3,
    raw_header("x", b"x", HUGE) + bytes(1024), raw_header("x", b"L", HUGE) + bytes(1024),
    raw_header("0.mp4", size=HUGE),
    raw_header("0.mp4", b"1", link="/etc/passwd") + raw_header("0.txt", b"2", link="/etc/passwd") + bytes(1024),
    raw_header("0.mp4", b"3") + raw_header("0.txt", b"6") + raw_header("0.cls", b"4") + bytes(1024),
    raw_header("0.mp4", b"S") + raw_header("0.cls", b"S") + bytes(1024), raw_header("0", b"5") + bytes(1024), b"",
], ids=["negative", "negative pax", "negative long name", "huge pax", "huge long name", "huge", "links", "devices",
        "sparse", "folder", "empty"])  # fmt: skip
def test_hostile_tars_are_refused(tmp_path, content):
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        index_shards([path], "train")
    assert str(path) in str(refused.value) and not (tmp_path / "train.index.jsonl").exists()
    with pytest.raises(DecodeError, match=r"is not a tar of frames|has no numbered frames"):
        FrameTar(str(path), fps=25)


@pytest.mark.parametrize("sample", [
    {"cls": b"1" * 5000}, {"json": b"[]"}, {"json": b'{"caption": [1]}'}, {"json": b'{"caption": []}'}, {"json": b"7"},
    {"json": b'{"caption": ' + b"1" * 5000 + b"}"}, {"json": b"[" * 10**5}, {"txt": b"\xff"}, {"json": b"{"},
    {"txt": bytes(2**24 + 1)},
])  # fmt: skip
def test_what_others_say_of_their_samples_may_be_anything(tmp_path, sample):
    foreign(tmp_path / "0.tar", {"0": {"mp4": b"x", **sample}})
    with pytest.raises(DataError, match=r"0\.tar") as refused:
        index_shards([tmp_path / "0.tar"], "train")
    assert len(str(refused.value)) < 500


def test_long_names_of_others(sources, tmp_path):
    """Headers of long names in front of a member do not move it."""
    video = Path(sources[0].path).read_bytes()
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for suffix, data in (("mp4", video), ("cls", b"0")):
            info = tarfile.TarInfo(f"{'ü' * 200}.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_shards([tmp_path / "0.tar"], "val", class_names=["only"])
    (folder,) = open_shards([str(tmp_path)], "val")
    ((path, _),) = folder.samples
    assert open_member(as_member(path)).read() == video
