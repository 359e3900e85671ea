"""Opening files of video: where they are, how large they claim to be, and what they must not make libav do."""

import io
import os
import socket
import struct
import tarfile
import threading
import zlib

import av
import numpy as np
import pytest
import torch
from fsspec import AbstractFileSystem, register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from datamodules.video.decode import VideoReader
from datamodules.video.encoding import reencode
from datamodules.video.frame_tar import FrameTar
from datamodules.video.frames import FrameFolder
from datamodules.video.opening import CONTAINERS, DecodeError
from datamodules.video.streaming import FrameStream


def sentence(path):
    with pytest.raises(DecodeError) as caught, VideoReader(path) as reader:
        reader.read(range(len(reader)))
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    return text


def test_missing_folder_and_empty(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "does not exist; check the path" in sentence(tmp_path / "none.mp4")
    assert "is a folder" in sentence(tmp_path)
    assert "is empty (0 bytes)" in sentence(tmp_path / "empty.mp4")


# Behind URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_url(tmp_path, make_video, name, codec):
    path = make_video(tmp_path / name, 40, codec=codec)
    MemoryFileSystem().pipe_file(f"/decode/{name}", path.read_bytes())
    with VideoReader(path) as local, VideoReader(f"memory://decode/{name}") as remote:
        assert remote.num_frames == 40
        indices = [39, 3, 17, 17]
        assert torch.equal(remote.read(indices), local.read(indices))
        assert np.array_equal(remote.pts_seconds, local.pts_seconds)


def test_urls_at_fault():
    MemoryFileSystem().pipe_file("/decode/empty.mp4", b"")
    MemoryFileSystem().pipe_file("/decode/text.mp4", b"no video here" * 200)
    assert "memory://decode/none.mp4 does not exist; check the path" in sentence("memory://decode/none.mp4")
    assert "is empty (0 bytes)" in sentence("memory://decode/empty.mp4")
    assert "not a video" in sentence("memory://decode/text.mp4")
    assert "Protocol not known: nosuch" in sentence("nosuch://a.mp4")


class Flaky(AbstractFileSystem):
    """One file, whose connection is lost behind a number of bytes."""

    protocol, content, limit = "flaky", b"", 0

    def _open(self, path, mode="rb", **_):
        class File(io.BytesIO):
            def read(self, size=-1):
                if self.tell() + size > Flaky.limit:
                    raise ConnectionResetError("peer went away")
                return super().read(size)

        return File(self.content)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_lost_connection_is_not_the_end_of_the_file(tmp_path, make_video, share):
    """Where libav sees an end of file, a shorter video would be read without a word."""
    path = make_video(tmp_path / "a.ts", 200, options={"crf": "1"})
    Flaky.content = path.read_bytes()
    Flaky.limit = int(share * len(Flaky.content))
    register_implementation("flaky", Flaky, clobber=True)
    assert len(Flaky.content) > 60_000  # several reads
    assert "flaky://a.ts cannot be read (ConnectionResetError: peer went away)" in sentence("flaky://a.ts")


def test_absurd_size_is_refused_before_allocation(tmp_path):
    path = tmp_path / "huge.png"

    # A PNG header that claims 60000 x 60000 pixels, 10 GB as RGB.
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    assert str(path) in sentence(path)


def test_frame_size_limit(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "v.mp4", 3)
    monkeypatch.setattr("datamodules.video.opening.MAX_PIXELS", 80 * 48 - 1)
    assert "80 x 48 pixels, above the limit" in sentence(path)


def test_a_strip_is_not_resized_to_gigabytes(tmp_path):
    Image.fromarray(np.zeros((2, 30_000, 3), np.uint8)).save(tmp_path / "strip.png")
    with VideoReader(tmp_path / "strip.png") as reader:
        assert reader.read([0]).shape == (1, 3, 2, 30_000)
        with pytest.raises(DecodeError, match=r"strip\.png asks for frames of 3360000 x 224 pixels, above the limit"):
            reader.read([0], short_side=224)
    write_tar_of(tmp_path / "P01_01.tar", (tmp_path / "strip.png").read_bytes())
    with pytest.raises(DecodeError, match="asks for frames of 3360000 x 224 pixels"):
        FrameTar(str(tmp_path / "P01_01.tar"), fps=25).read([0], short_side=224)


DESCRIPTIONS = {
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {udp} RTP/AVP 96\n"
           "a=rtpmap:96 H264/90000\n",
    "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    "concat of an address": "ffconcat version 1.0\nfile http://127.0.0.1:{tcp}/secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "hls of an address": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\nhttp://127.0.0.1:{tcp}/secret.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>secret.mp4</BaseURL>'
            "</Representation></AdaptationSet></Period></MPD>",
    "rtsp": "RTSPtext\nrtsp://127.0.0.1:{tcp}/secret\n",
    "asx": "[Reference]\nRef1=http://127.0.0.1:{tcp}/secret\n",
}  # fmt: skip
"""Texts that make libav open something else."""


def write_tar_of(path, content):
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("frame_0000000001.jpg")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


@pytest.mark.skipif(not os.path.exists("/proc/self/net/udp"), reason="what is listened to is read from Linux's /proc")
@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8", "x.sdp"])
def test_a_text_opens_neither_files_nor_sockets(tmp_path, make_video, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # where the texts' relative names lead
    make_video(tmp_path / "secret.mp4", 3)
    make_video(tmp_path / "secret.ts", 3)
    calls, over, listened = [], threading.Event(), set()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        ports = {"tcp": server.getsockname()[1], "udp": free.getsockname()[1]}
        free.close()

        def answer():
            while not over.is_set():
                try:
                    server.accept()[0].close()
                    calls.append(True)
                except OSError:
                    pass

        def watch():
            entry = f":{ports['udp']:04X} "
            while not over.wait(0.01):
                with open("/proc/self/net/udp") as lines:
                    listened.update(line for line in lines if entry in line)

        server.settimeout(0.2)
        threads = [threading.Thread(target=work) for work in (answer, watch)]
        for thread in threads:
            thread.start()
        try:
            for kind, text in DESCRIPTIONS.items():
                folder = tmp_path / kind.replace(" ", "-")
                folder.mkdir()
                content = text.format(**ports).encode()
                (folder / name).write_bytes(content)
                (folder / "img_00001.jpg").write_bytes(content)
                write_tar_of(folder / "P01_01.tar", content)
                MemoryFileSystem().pipe(f"/{kind}/{name}", content)
                attempts = {
                    "file": lambda path=folder / name: VideoReader(path),
                    "url": lambda kind=kind: VideoReader(f"memory://{kind}/{name}"),
                    "stream": lambda path=folder / name: FrameStream(path),
                    "coded anew": lambda path=folder / name: reencode(path, 32),
                    "folder": lambda path=folder: FrameFolder(path).read([0]),
                    "tar": lambda path=folder: FrameTar(str(path / "P01_01.tar"), fps=25).read([0]),
                }
                for how, attempt in attempts.items():
                    with pytest.raises(DecodeError) as refused:
                        attempt()
                    message = str(refused.value)
                    assert message.endswith(".") and "\n" not in message, (kind, how)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert not calls and not listened


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is empty" in sentence(tmp_path / "pipe.mp4")


def test_formats_hold_their_pictures_themselves(tmp_path, make_video):
    known = {part for name in av.formats_available for part in name.split(",")}
    assert known >= set(CONTAINERS)
    text = {"concat", "dash", "ffmetadata", "hls", "image2", "imf", "rtsp", "sap", "sdp", "smoothstreaming"}
    assert not text & set(CONTAINERS)
    for suffix, options in ((".mkv", {}), (".ts", {}), (".flv", {"codec": "flv"}), (".mpg", {"codec": "mpeg1video"}),
                            (".ogv", {"codec": "libvpx"}), (".wmv", {"codec": "wmv2"}), (".3gp", {})):  # fmt: skip
        path = make_video(tmp_path / f"v{suffix}", 4, **options)
        with VideoReader(path) as reader:
            assert len(reader) == 4 and reader.read([3]).shape == (1, 3, 48, 80)
    picture = np.zeros((48, 80, 3), np.uint8)
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".gif"):
        Image.fromarray(picture).save(tmp_path / f"p{suffix}")
        with VideoReader(tmp_path / f"p{suffix}") as reader:
            assert reader.read([0]).shape == (1, 3, 48, 80)
