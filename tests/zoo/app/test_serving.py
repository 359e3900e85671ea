"""What the page's server hands out and takes, over HTTP: uploads and videos of results, and no other file."""

import json
import os
import socket
from http.client import HTTPConnection
from urllib.parse import quote, urlsplit

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import zoo
from zoo.app.markup import found
from zoo.app.serving import ShownVideos
from zoo.retrieval.table import Hit

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address(serve, indices):
    with serve(index=indices.clips, max_megabytes=1) as address:
        yield address


def ask(address, method, path, body=None, headers=None):
    """Without a library that would tidy the path up: (status, headers, body)."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=600)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def upload(address, name, content):
    body = b"".join([b'--x\r\nContent-Disposition: form-data; name="files"; filename="', name.encode(), b'"\r\n\r\n',
                     content, b"\r\n--x--\r\n"])  # fmt: skip
    return ask(address, "POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})


def join(address, path, headers=JSON, **more):
    """Start the search by a clip, as the page does, with a file of our choice."""
    config = json.loads(ask(address, "GET", "/config")[2])
    number = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 2)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    body = {"data": ["", file], "fn_index": number, "session_hash": "abc"}
    return ask(address, "POST", "/gradio_api/queue/join", json.dumps(body), headers)


def test_a_page_without_absolute_paths_or_other_hosts(address, videos):
    status, headers, body = ask(address, "GET", "/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert str(videos.parent).encode() not in body and os.getcwd().encode() not in body


def test_no_other_file_is_given(address, videos, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    uploaded = json.loads(upload(address, "clip.mp4", b"content")[2])[0]
    assert ask(address, "GET", f"/gradio_api/file={quote(uploaded)}")[2] == b"content"
    os.symlink(secret, os.path.join(os.path.dirname(uploaded), "link.mp4"))
    up = "../" * 30
    wanted = [
        "/etc/passwd",
        "etc/passwd",
        str(secret),
        str(videos / "film.mp4"),
        str(videos.parent / "clips.index/videos.lance"),
        os.path.abspath("pyproject.toml"),
        "pyproject.toml",
        "./zoo/__init__.py",
        f"{up}etc/passwd",
        f"{os.path.dirname(uploaded)}/{up}etc/passwd",
        f"{os.path.dirname(uploaded)}/link.mp4",
        f"{os.path.dirname(uploaded)}/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        os.path.dirname(uploaded),
        "/proc/self/environ",
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "https://example.org/clip.mp4",
        "\x00/etc/passwd",
        "~/.ssh/id_rsa",
        "",
    ]
    for path in wanted:
        for route in ("file=", "file/", "proxy=", "stream/", "custom_component/1/client/component/", "api/"):
            for spelled in {quote(path), quote(path, safe="")}:
                status, _, body = ask(address, "GET", f"/gradio_api/{route}{spelled}")
                assert status in (403, 404, 405), (route, path)
                assert b"root:" not in body and b"secret" not in body
    for route in ("static", "assets", "svelte", "shown"):
        for path in (f"/{route}/{up}etc/passwd", f"/{route}//etc/passwd", f"/{route}/{quote(up, safe='')}etc%2fpasswd"):
            status, _, body = ask(address, "GET", path)
            assert status >= 400 and b"root:" not in body, path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "pyproject.toml", "http://127.0.0.1:1/a.mp4", "https://example.org/a.mp4"]
)
def test_no_other_file_is_taken(address, path):
    for more in ({}, {"url": path}, {"is_stream": True}):
        status, _, body = join(address, path, **more)
        assert (status, body) == (403, b"Upload a file; this page reads no other files.")
    status, _, body = join(address, path, {"Content-Type": "application/json; multipart/form-data"})
    assert status == 403
    status, _, body = join(address, path, {"Content-Type": "multipart/form-data; boundary=x"})
    assert status >= 400


def test_the_model_is_reached_through_the_queue_alone(address):
    config = json.loads(ask(address, "GET", "/config")[2])
    for dependency in config["dependencies"]:
        body = json.dumps({"data": ["", None], "fn_index": dependency["id"], "session_hash": "abc"})
        assert ask(address, "POST", "/gradio_api/run/predict", body, JSON)[0] >= 400


def test_what_is_closed(address):
    for path in ("process_recording", "api/predict", "call/predict"):
        assert ask(address, "POST", f"/gradio_api/{path}", b"{}", JSON)[0] == 404
    for path in ("/monitoring", "/monitoring/summary", "/gradio_api/runs", "/gradio_api/deep_link"):
        assert ask(address, "GET", path)[0] == 404


def test_large_bodies_are_refused_before_they_are_read(address):
    status, _, body = upload(address, "clip.mp4", bytes(2_100_000))
    assert (status, body) == (413, b"The file is larger than 1 MB; cut it.")
    status, _, body = upload(address, "clip.mp4", bytes(2**20 + 1))
    assert status == 413 and b"maximum allowed size" in body
    host = urlsplit(address)
    with socket.create_connection((host.hostname, host.port), timeout=600) as connection:
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 411")
    assert ask(address, "POST", "/gradio_api/queue/join", bytes(2_000_000), JSON)[0] == 413
    assert ask(address, "POST", "/gradio_api/queue/join", b"[" * 100_000, JSON)[0] == 400


def test_a_video_is_given_in_parts(indices, videos):
    page = zoo.web_app(index=indices.clips)
    path = videos / "film.mp4"
    content = path.read_bytes()
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        where = f"/{page.videos.address(str(path))}"
        address = page.local_url
        assert page.videos.address(str(path)) == where[1:]
        status, headers, body = ask(address, "GET", where)
        assert (status, body) == (200, content)
        assert headers["Content-Type"] == "video/mp4" and headers["Accept-Ranges"] == "bytes"
        size = len(content)
        for asked, part in {
            "bytes=0-": content,
            "bytes=100-": content[100:],
            "bytes=100-199": content[100:200],
            f"bytes={size - 5}-{size + 100}": content[-5:],
            "bytes=-7": content[-7:],
        }.items():
            status, headers, body = ask(address, "GET", where, headers={"Range": asked})
            assert body == part, asked
            if len(part) < size:
                start = content.index(part)
                assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{start + len(part) - 1}/{size}")
        for asked in ("bytes=5-1", f"bytes={size}-", "pages=1-2", "bytes=-", "bytes=0-1,3-4", "bytes=٣-٤"):
            status, _, body = ask(address, "GET", where, headers={"Range": asked.encode()})
            assert (status, body) == (200, content), asked
        assert ask(address, "GET", "/shown/other")[0] == 404
        assert ask(address, "POST", where, b"{}", JSON)[0] == 405
    finally:
        page.close(verbose=False)


def test_a_video_behind_a_url_is_given_too_and_one_that_is_gone_is_not(indices, videos, tmp_path):
    page = zoo.web_app(index=indices.clips)
    content = (videos / "grow.mp4").read_bytes()
    MemoryFileSystem().pipe("/app/grow.mp4", content)
    gone = tmp_path / "gone.mp4"
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        where = f"/{page.videos.address('memory://app/grow.mp4')}"
        assert ask(page.local_url, "GET", where)[2] == content
        status, headers, body = ask(page.local_url, "GET", where, headers={"Range": "bytes=10-19"})
        assert (status, body, headers["Content-Type"]) == (206, content[10:20], "video/mp4")
        assert ask(page.local_url, "GET", f"/{page.videos.address(str(gone))}")[0] == 404
    finally:
        MemoryFileSystem().rm("/app", recursive=True)
        page.close(verbose=False)


def test_addresses_are_few_and_of_what_was_found(monkeypatch):
    monkeypatch.setattr("zoo.app.serving.KEPT", 2)
    shown = ShownVideos()
    first, second = shown.address("a.mp4"), shown.address("b.mp4")
    assert first != second and shown.address("a.mp4") == first
    assert shown.address("c.mp4") not in (first, second)
    assert shown.address("a.mp4") == first and shown.address("b.mp4") != second


def test_names_of_others_are_text():
    hit = Hit('/videos/<img src=x onerror=alert(1)> ${a} {{b}} "`.mp4', 0.5, 1.5, 0.25)
    assert "The index is empty." in found("<b>", [])
    page = found("<b>", [(hit, 'shown/"x', b"")])
    assert "<img" not in page and "${" not in page and "{{" not in page and "`" not in page and "<b>" not in page
    assert "/videos/" not in page and "#t=0.500,1.500" in page and "shown/&quot;x" in page
