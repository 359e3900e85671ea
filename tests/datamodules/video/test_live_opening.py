"""What answers at an address that the user named cannot make us open another one, and is read where it is video."""

import io
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from datamodules.video.live_opening import SCHEMES, STREAMED, Ended, LiveInput, is_live
from datamodules.video.opening import DecodeError

BRIEF = 0.5
"""Seconds, where nothing is to come and the test ends no other way."""

TEXTS = {
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n"
           "a=rtpmap:96 H264/90000\r\n",
    "concat": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\nhttp://127.0.0.1:{port}/secret.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" type="static"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>http://127.0.0.1:{port}/'
            "</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "rtsp": "RTSPtext\nrtsp://127.0.0.1:{port}/secret\n",
    "asx": "[Reference]\nRef1=http://127.0.0.1:{port}/secret\n",
}  # fmt: skip
"""Texts that make libav open something else."""

SDP = ("v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
       "a=control:rtsp://127.0.0.1:{port}/all\r\n"
       "m=video {port} RTP/AVP 33\r\na=rtpmap:33 MP2T/90000\r\n"
       "a=control:rtsp://127.0.0.1:{port}/track\r\n")  # fmt: skip


@pytest.fixture
def elsewhere():
    """A port where nobody should call, and a function that counts the calls so far, over TCP and UDP."""
    calls, over = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        server.settimeout(0.05)
        datagrams.setblocking(False)

        def answer() -> None:
            while not over.is_set():
                with suppress(OSError):
                    server.accept()[0].close()
                    calls.append("tcp")
                with suppress(OSError):
                    calls.append(datagrams.recv(65536))

        thread = threading.Thread(target=answer)
        thread.start()
        yield port, calls
        over.set()
        thread.join()


@contextmanager
def served(talk):
    """A port of loopback, at which each connection is handed to ``talk(connection)`` in turn."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def opened(source, timeout=600.0):
    return LiveInput(source, timeout, threading.Event())


def request(connection) -> bytes:
    """Of HTTP or RTSP, without its body."""
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        more = connection.recv(1)
        if not more:
            raise OSError
        text += more
    return text


def http(answer: bytes):
    def talk(connection) -> None:
        request(connection)
        connection.sendall(answer)

    return talk


def sentence(source, timeout=600.0) -> str:
    with pytest.raises(DecodeError) as refused:
        opened(source, timeout).close()
    text = str(refused.value)
    assert text.endswith(".") and "\n" not in text and source.partition("?")[0] in text
    return text


# What is refused -------------------------------------------------------------------------------------------------


def test_a_redirection_is_not_followed(elsewhere):
    port, calls = elsewhere
    target = f"http://127.0.0.1:{port}/secret"
    with served(http(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode())) as here:
        assert f"redirects to {target}" in sentence(f"http://127.0.0.1:{here}/stream")
    assert not calls


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_instead_of_a_stream_opens_nothing(elsewhere, kind):
    port, calls = elsewhere
    text = TEXTS[kind].format(port=port).encode()
    kinds = ["video/mp2t", "application/vnd.apple.mpegurl", "multipart/x-mixed-replace;boundary=x", "application/sdp"]
    for content_type in kinds:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n".encode()
        with served(http(head + text)) as here:
            for name in ("", "a.m3u8", "a.sdp"):
                assert "cannot be opened as a stream" in sentence(f"http://127.0.0.1:{here}/{name}")
    assert not calls


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_in_datagrams_opens_nothing(elsewhere, kind):
    port, calls = elsewhere
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        here = free.getsockname()[1]
    over = threading.Event()

    def send() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            while not over.wait(0.01):
                sender.sendto(TEXTS[kind].format(port=port).encode(), ("127.0.0.1", here))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        sentence(f"udp://127.0.0.1:{here}", timeout=BRIEF)
    finally:
        over.set()
        thread.join()
    assert not calls


OK = "RTSP/1.0 200 OK\r\nCSeq: {n}\r\n"
AWAY = "RTSP/1.0 302 Moved\r\nCSeq: {n}\r\nLocation: rtsp://127.0.0.1:{port}/secret\r\n\r\n"
DESCRIBED = OK + "Content-Type: application/sdp\r\nContent-Length: {length}\r\n\r\n{sdp}"
HOSTILE = {
    "redirection at once": [AWAY],
    "redirection of the description": [OK + "\r\n", AWAY],
    "redirection to the protocol in use": [AWAY.replace("rtsp:", "tcp:")],
    "redirection to another protocol": [AWAY.replace("rtsp:", "http:")],
    "redirection to no protocol": [AWAY.replace("rtsp:", "")],
    "redirection by a base": [OK + "\r\n", DESCRIBED.replace("\r\n\r\n", "\r\nContent-Base: rtsp://127.0.0.1:{port}/"
                                                            "\r\n\r\n"), AWAY],
    "addresses in the description": [OK + "\r\n", DESCRIBED, OK + "Session: 1\r\nTransport: RTP/AVP;unicast;"
                                     "source=127.0.0.1;client_port={port}-{port};server_port={port}-{port}\r\n\r\n"],
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_rtsp_server_leads_nowhere_else(elsewhere, kind):
    port, calls = elsewhere
    asked = []

    def talk(connection) -> None:
        for number, answer in enumerate(HOSTILE[kind], start=1):
            asked.append(request(connection))
            sdp = SDP.format(port=port)
            connection.sendall(answer.format(n=number, port=port, length=len(sdp), sdp=sdp).encode())
        connection.recv(65536)

    with served(talk) as here:
        sentence(f"rtsp://127.0.0.1:{here}/stream")
    assert len(asked) == len(HOSTILE[kind]) and not calls


def test_formats_hold_their_pictures_themselves():
    text = {"concat", "dash", "ffmetadata", "hls", "image2", "imf", "rtsp", "sap", "sdp", "smoothstreaming", "rtp"}
    assert not text & set(STREAMED)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("rtmp://127.0.0.1/live", "has the scheme 'rtmp'; name a file, a camera, or an address with udp://, http://"),
        ("concat://a.mp4", "has the scheme 'concat'"),
        ("udp://127.0.0.1", "names no port"),
        ("http:///stream", "names no host"),
        ("udp://127.0.0.1:99999", "cannot be opened"),
    ],
)
def test_wrong_addresses_are_named(source, words):
    assert words in sentence(source)


def test_nobody_at_home():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for scheme in ("http", "rtsp"):
        assert "Connection refused" in sentence(f"{scheme}://127.0.0.1:{port}/stream")
    with served(http(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")) as here:
        assert "answers 401 Unauthorized" in sentence(f"http://127.0.0.1:{here}/stream")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_says_nothing_is_not_waited_for(scheme):
    if scheme == "udp":
        with socket.socket(type=socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(Ended, match=r"has sent no frame for 0\.5 s"):
            opened(f"udp://127.0.0.1:{port}", timeout=BRIEF)
        return
    over = threading.Event()
    with served(lambda connection: over.wait(600)) as here:
        try:
            with pytest.raises(Ended, match=r"has sent no frame for 0\.5 s"):
                opened(f"{scheme}://127.0.0.1:{here}/", timeout=BRIEF)
        finally:
            over.set()


def test_passwords_are_not_shown():
    with pytest.raises(DecodeError, match=r"rtsp://me@127\.0\.0\.1:1/x") as refused:
        opened("rtsp://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)


def test_what_is_live():
    assert all(map(is_live, ("0", "/dev/video0", "udp://:5000", "rtmp://a/b")))
    assert not any(map(is_live, ("clip.mp4", "/data/0", "0.mp4", "folder")))


# What is read ----------------------------------------------------------------------------------------------------


UNOFFICIAL = {"strict": "-1"}  # JPEG of limited range


def pictures(source) -> tuple[int, LiveInput]:
    stream = opened(source)
    frames = list(stream.container.decode(video=0))
    stream.close()
    return len(frames), stream


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.flv", "flv"), ("a.mkv", "libx264"),
                                             ("a.mjpeg", "mjpeg")])  # fmt: skip
def test_http(tmp_path, make_video, name, codec):
    content = make_video(tmp_path / name, 20, codec=codec, options=UNOFFICIAL).read_bytes()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
    with served(http(head + content)) as here:
        count, stream = pictures(f"http://127.0.0.1:{here}/{name}")
    assert count == 20 and stream.is_timed == (codec != "mjpeg")


def test_a_login_is_sent(tmp_path, make_video):
    content, asked = make_video(tmp_path / "a.ts", 5).read_bytes(), []

    def talk(connection) -> None:
        asked.append(request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + content)

    with served(talk) as here:
        assert pictures(f"http://me:a%40b@127.0.0.1:{here}/x?y=1")[0] == 5
    assert asked[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    assert b"Authorization: Basic bWU6YUBi\r\n" in asked[0]  # me:a@b


def test_pictures_in_parts(tmp_path, make_video):
    """As cameras send them: JPEG files one after the other."""
    content = make_video(tmp_path / "a.mjpeg", 6, codec="mjpeg", options=UNOFFICIAL).read_bytes()
    parts = [b"\xff\xd8" + part for part in content.split(b"\xff\xd8")[1:]]
    body = b"".join(
        b"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(part), part) for part in parts
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=cut\r\nConnection: close\r\n\r\n"
    with served(http(head + body)) as here:
        count, stream = pictures(f"http://127.0.0.1:{here}/")
    assert count == 6 and not stream.is_timed


def test_rtsp(tmp_path, make_video):
    """MPEG-TS in RTP in RTSP's own connection (RFC 2326, section 10.12; RFC 3550, section 5.1; RFC 2250, section 2)."""
    content = make_video(tmp_path / "a.ts", 20).read_bytes()
    asked = []

    def talk(connection) -> None:
        number = 0
        while True:
            asked.append(request(connection).split(b" ")[0].decode())
            number += 1
            head = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 1\r\n"
            if asked[-1] == "DESCRIBE":
                sdp = "v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=rtpmap:33 MP2T/90000\r\na=control:track\r\n"
                head += f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
            elif asked[-1] == "SETUP":
                head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
            else:
                head += "\r\n"
            connection.sendall(head.encode())
            if asked[-1] == "PLAY":
                break
        source = io.BytesIO(content)
        sequence = 0
        while part := source.read(7 * 188):
            packet = bytes([0x80, 33]) + sequence.to_bytes(2, "big") + bytes(4) + b"\0\0\0\1" + part
            connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            sequence += 1

    with served(talk) as here:
        count, _ = pictures(f"rtsp://127.0.0.1:{here}/stream")
    assert asked == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"] and count >= 18  # libav waits for what follows the last
