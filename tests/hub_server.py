"""A small Hugging Face Hub on loopback, for the real client: what downloads need, and some of what can go wrong."""

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

__all__ = ["HubServer"]

LARGE = 100_000  # bytes from which a file is answered with a redirect to the store, as the Hub does for LFS files


class HubServer:
    """Repositories as commits of {file name: content}; ``with HubServer() as hub`` serves them at ``hub.url``.

    Attributes:
        log: "METHOD path" of every request.
        status: repository -> status that every request for it gets.
        on_request: called with each line of the log, after the answer.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.status: dict[str, int] = {}
        self.log: list[str] = []
        self.on_request: Callable[[str], object] = lambda line: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, as the Hub's store is: the client keeps its token from it, and reads the size from the redirect.
        self.store = f"http://localhost:{self._server.server_port}/store"

    def commit(self, repo_id: str, files: dict[str, bytes], ref: str = "main") -> str:
        """Replaces the content of a branch; returns the commit."""
        digest = hashlib.sha1(repr((repo_id, ref, sorted(files.items()))).encode()).hexdigest()
        self.commits.setdefault(repo_id, {})[digest] = dict(files)
        self.refs.setdefault(repo_id, {})[ref] = digest
        return digest

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self._serve(path)
        self.hub.log.append(f"{self.command} {path}")
        self.hub.on_request(self.hub.log[-1])

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, path: str) -> None:
        parts = path.strip("/").split("/")
        if parts[0] == "store":
            return self._answer(200, self._stored(parts[1]))
        if len(parts) < 5 or parts[2] != "resolve":
            return self._error(404, None, "no such page")
        repo_id, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repo_id in self.hub.status:
            status = self.hub.status[repo_id]
            return self._error(status, "GatedRepo" if status == 403 else None, f"status {status}")
        if repo_id not in self.hub.commits:
            return self._error(401, "RepoNotFound", "Repository not found")  # the Hub tells strangers 401, not 404
        commit = self.hub.refs[repo_id].get(revision, revision)
        if commit not in self.hub.commits[repo_id]:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = self.hub.commits[repo_id][commit]
        if name not in files:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        content = files[name]
        if len(content) < LARGE:
            etag = hashlib.sha1(content).hexdigest()
            return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return self._answer(302, b"", {**headers, "Location": f"{self.hub.store}/{sha256}"})

    def _stored(self, sha256: str) -> bytes:
        contents = (c for commits in self.hub.commits.values() for files in commits.values() for c in files.values())
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == sha256)

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        codes = {} if code is None else {"X-Error-Code": code}
        self._answer(status, message.encode(), {"X-Error-Message": message, **codes, **(headers or {})})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
