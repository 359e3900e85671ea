"""A folder served on loopback as object stores do: with ranges, and with what can go wrong."""

import re
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["ShardServer"]


class ShardServer:
    """``with ShardServer(folder) as server`` serves a folder at ``server.url``.

    Attributes:
        log: (path, range asked for or "") of the answered GET requests for tars.
        drop: how many of the next such requests to hang up on.
        ranges: whether ranges are understood; otherwise the whole file is sent.
        delay: seconds before an answer.
        most: how many such requests were answered at a time, at most.
    """

    def __init__(self, folder: Path) -> None:
        self.log: list[tuple[str, str]] = []
        self.drop = 0
        self.ranges, self.delay = True, 0.0
        self.most = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: SimpleHTTPRequestHandler) -> None:
        path = Path(request.translate_path(request.path))
        if not path.is_file():
            request.send_error(404)
            return
        wanted = request.headers.get("Range", "")
        if path.suffix == ".tar":
            if self.drop:
                self.drop -= 1
                request.close_connection = True
                request.connection.close()
                return
            with self._lock:
                self.log.append((path.name, wanted))
                self._now += 1
                self.most = max(self.most, self._now)
            time.sleep(self.delay)
            with self._lock:
                self._now -= 1
        data, status = path.read_bytes(), 200
        headers = {"Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if found and self.ranges:
            start, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def __enter__(self) -> "ShardServer":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
