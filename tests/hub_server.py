"""A small Hugging Face Hub on loopback for the real client: downloads, pushes, and what can go wrong with either.

Content is kept as on the Hub: a repository is a line of commits, small files are in git (their etag is the git blob id)
and large ones in a store at another address, to which the repository redirects (their etag is the SHA-256). Uploads go
through preupload, LFS batch, a PUT to the store, verify, and one commit of NDJSON.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

__all__ = ["HubServer"]

ENDLESS = 2**28  # bytes; more than any limit on a body in the tests
LARGE = 100_000  # bytes from which a file goes to the store; *.safetensors and *.png always do, as by .gitattributes


@dataclass
class Fault:
    """What goes wrong with the requests whose "METHOD path" contains `match`.

    Attributes:
        match: regular expression.
        kind: a status to answer with; ``drop`` (hang up at once), ``lose`` (do it, then hang up without an answer),
            ``truncate`` (hang up after half of the body), ``short`` (half of the body, and call that all of it),
            ``flip`` (one bit of the body differs), ``swap`` (other bytes, as many), ``endless`` (`ENDLESS` bytes in
            place of the body, without a length), ``trickle`` (one byte at a time, for ever), ``trickle-headers`` (the
            headers do so), ``serve`` (nothing but the headers).
        times: how often; later requests are served.
        headers: replace those of the answer.
    """

    match: str
    kind: str | int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class HubServer:
    """Repositories as commits of {file name: content}; ``with HubServer() as hub`` serves them at ``hub.url``. Names of
    data sets begin with ``datasets/``.

    Attributes:
        commits: repository -> commit -> files.
        refs: repository -> branch -> commit.
        private: names of private repositories.
        tokens: access token -> organisations it may write to.
        store: SHA-256 -> content of large files.
        messages: the first line of each pushed commit.
        log: "METHOD path" of every request.
        status: repository -> status that every download from it gets.
        faults: see `fail`; the first that matches and is not used up is taken.
        leaks: requests to the store that carried an access token, which must stay with the Hub.
        on_request: called with each line of the log, after the answer.
        stopped: set when no more is to trickle.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.tokens: dict[str, set[str]] = {}
        self.store: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.status: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.leaks: list[str] = []
        self.on_request: Callable[[str], object] = lambda line: None
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, as the Hub's store is: the client keeps its token from it, and reads the size from the redirect.
        self.store_url = f"http://localhost:{self._server.server_port}/store"

    def commit(self, repo_id: str, files: dict[str, bytes], ref: str = "main", name: str | None = None) -> str:
        """Replaces the content of a branch; returns the commit, which has a name of its own unless one is given."""
        parent = self.refs.get(repo_id, {}).get(ref)
        digest = name or hashlib.sha1(repr((repo_id, ref, parent, sorted(files.items()))).encode()).hexdigest()
        self.commits.setdefault(repo_id, {})[digest] = dict(files)
        self.refs.setdefault(repo_id, {})[ref] = digest
        for name, content in files.items():
            if is_large(name, content):
                self.store[sha256(content)] = content
        return digest

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[repo_id][self.refs[repo_id].get(revision, revision)]

    def fail(self, match: str, kind: str | int, times: int = 1, **headers: str) -> None:
        """Plans a `Fault`; underscores in the names of headers stand for dashes."""
        self.faults.append(Fault(match, kind, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables for a process that uses this Hub, with its cache below `home`.

        Uploads take the way of the LFS protocol: the other, Xet, is a store of its own with a client in Rust.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | ours | {"HF_HUB_DISABLE_XET": "1"} | more

    def count(self, pattern: str) -> int:
        """How many requests there were whose "METHOD path" matches a regular expression."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that hung up; what else is wrong fails the test that asked."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(name: str, content: bytes) -> bool:
    return len(content) >= LARGE or name.endswith((".safetensors", ".png"))


def oid(name: str, content: bytes) -> str:
    """What the Hub calls a file's etag or oid."""
    if is_large(name, content):
        return sha256(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def as_json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def error(status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> Answer:
    codes = {} if code is None else {"X-Error-Code": code}
    body = json.dumps({"error": message}).encode()
    return Answer(status, body, {"X-Error-Message": message, **codes, **(headers or {})})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    # Each pattern is matched with "METHOD path"; its groups are the arguments of the method.
    ROUTES = (
        (r"(?:GET|HEAD) /store/(\w+)", "download_stored"),
        (r"PUT /store/(\w+)", "upload"),
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/validate-yaml", "validate_card"),
        (r"POST /api/repos/create", "create"),
        (r"GET /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/revision/(.+))?", "info"),
        (r"GET /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", "tree"),
        (r"POST /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/paths-info/(.+)", "paths_info"),
        (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
        (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", "accept_commit"),
        (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/verify", "verify"),
        (r"(?:GET|HEAD) /((?:datasets/)?[^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", "resolve"),
    )

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            fault = next((f for f in self.hub.faults if f.times > 0 and re.search(f.match, line)), None)
            if fault is not None:
                fault.times -= 1
            self.hub.log.append(line)
        if path.startswith("/store/") and self.headers.get("Authorization"):
            self.hub.leaks.append(line)
        if fault is not None and fault.kind == "drop":
            return self.hang_up()
        if fault is not None and isinstance(fault.kind, int):
            answer = error(fault.kind, None, f"status {fault.kind}", fault.headers)
        else:
            answer = self.route(line)
        if fault is not None and fault.kind == "lose":
            return self.hang_up()
        self.send(answer, fault)
        self.hub.on_request(line)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def route(self, line: str) -> Answer:
        for pattern, name in self.ROUTES:
            if match := re.fullmatch(pattern, line):
                return getattr(self, name)(*match.groups())
        return error(404, None, "no such page")

    def send(self, answer: Answer, fault: Fault | None) -> None:
        status, body, headers = answer
        if fault is not None:
            headers = {**headers, **fault.headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and status == 200 and self.command == "GET":
            start, end = int(asked[1]), int(asked[2] or len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        kind = None if fault is None or self.command == "HEAD" else fault.kind
        half = len(body) // 2
        if kind == "flip":
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        if kind == "swap":
            body = bytes(byte ^ 0x55 for byte in body)
        if kind == "short":
            body = body[:half]
        if kind == "endless" or (fault is not None and fault.kind == "trickle-headers"):
            return self.send_without_end(status, headers, fault.kind)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if kind == "trickle":
                return self.trickle()
            self.wfile.write(body[:half] if kind == "truncate" else body)
        if kind == "truncate":
            self.wfile.flush()
            self.hang_up()

    def send_without_end(self, status: int, headers: dict[str, str], kind: str) -> None:
        self.close_connection = True
        self.send_response(status)
        if kind == "trickle-headers":
            self.flush_headers()
            return self.trickle()
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        for _ in range(ENDLESS // 2**16):
            self.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def trickle(self) -> None:
        """Sends byte after byte until the client hangs up."""
        self.close_connection = True
        while not self.hub.stopped.wait(0.02):
            self.wfile.write(b"x")

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # Who may do what.

    def token(self) -> str | None:
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if kind == "Bearer" else None

    def refuse_reading(self, repo_id: str) -> Answer | None:
        known = self.token() in self.hub.tokens
        if self.token() is not None and not known:
            return error(401, None, "Invalid credentials in Authorization header")
        hidden = repo_id in self.hub.private and repo_id.split("/")[0] not in self.hub.tokens.get(self.token(), ())
        if repo_id not in self.hub.commits or hidden:
            # The Hub tells strangers 401, not 404, so that they do not learn which private repositories exist.
            return error(404 if known else 401, "RepoNotFound", "Repository not found")
        return None

    def refuse_writing(self, organisation: str) -> Answer | None:
        if self.token() not in self.hub.tokens:
            return error(401, None, "Invalid credentials in Authorization header")
        if organisation not in self.hub.tokens[self.token()]:
            return error(403, None, f"You have no right to write to {organisation}")
        return None

    def whoami(self) -> Answer:
        if self.token() not in self.hub.tokens:
            return error(401, None, "Invalid credentials in Authorization header")
        return as_json({"type": "user", "name": "tester", "orgs": []})

    # Reading.

    def resolve(self, repo_id: str, revision: str, name: str) -> Answer:
        if repo_id in self.hub.status:
            status = self.hub.status[repo_id]
            return error(status, "GatedRepo" if status == 403 else None, f"status {status}")
        if refusal := self.refuse_reading(repo_id):
            return refusal
        commit = self.hub.refs[repo_id].get(revision, revision)
        if commit not in self.hub.commits[repo_id]:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = self.hub.commits[repo_id][commit]
        if name not in files:
            return error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        content, headers = files[name], {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        etag = f'"{oid(name, content)}"'
        if not is_large(name, content):
            return Answer(200, content, {**headers, "ETag": etag})
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        return Answer(302, b"", {**headers, "Location": f"{self.hub.store_url}/{sha256(content)}"})

    def download_stored(self, digest: str) -> Answer:
        if digest not in self.hub.store:
            return error(404, None, "no such object")
        return Answer(200, self.hub.store[digest], {"ETag": f'"{digest[:32]}"', "Accept-Ranges": "bytes"})

    def info(self, repo_id: str, revision: str | None) -> Answer:
        if refusal := self.refuse_reading(repo_id):
            return refusal
        commit = self.hub.refs[repo_id].get(revision or "main", revision)
        if commit not in self.hub.commits[repo_id]:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        names = [{"rfilename": name} for name in self.hub.files(repo_id, commit)]
        private = repo_id in self.hub.private
        return as_json({"_id": "1", "id": repo_id, "sha": commit, "private": private, "siblings": names, "tags": []})

    def tree(self, repo_id: str, revision: str, folder: str | None) -> Answer:
        """Files and folders in a folder or, recursively, below it."""
        if refusal := self.refuse_reading(repo_id):
            return refusal
        if self.hub.refs[repo_id].get(revision, revision) not in self.hub.commits[repo_id]:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entries = self.entries(repo_id, revision)
        parents = {name.rpartition("/")[0] for name in entries}
        if folder and folder not in parents:
            return error(404, "EntryNotFound", f"{folder} does not exist")
        if "recursive=true" in self.path.lower():
            found = [name for name in entries if not folder or name.startswith(f"{folder}/")]
        else:
            found = [name for name in entries if name.rpartition("/")[0] == (folder or "")]
        return as_json([entries[name] for name in found])

    def paths_info(self, repo_id: str, revision: str) -> Answer:
        """Those of the files and folders asked for that are there."""
        if refusal := self.refuse_reading(repo_id):
            return refusal
        entries = self.entries(repo_id, revision)
        asked = parse_qs(self.content.decode()).get("paths", [])
        return as_json([entries[name] for name in asked if name in entries])

    def entries(self, repo_id: str, revision: str) -> dict[str, dict]:
        """What the Hub says of each file and folder."""
        found = {}
        for name, content in self.hub.files(repo_id, revision).items():
            for parent in list(PurePosixPath(name).parents)[:-1]:
                found[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": "0" * 40}
            found[name] = {"type": "file", "path": name, "size": len(content), "oid": oid(name, content)[:40]}
            if is_large(name, content):
                found[name]["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return found

    # Writing.

    def create(self) -> Answer:
        wanted = json.loads(self.content)
        if refusal := self.refuse_writing(wanted["organization"]):
            return refusal
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.commits:
            return as_json({"error": "You already created this model repo", **url}, 409)
        if wanted.get("visibility") == "private":
            self.hub.private.add(repo_id)
        self.hub.commit(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n*.png filter=lfs\n"})
        return as_json(url)

    def validate_card(self) -> Answer:
        """The metadata between the lines of dashes has to be a YAML mapping; without any there is a warning."""
        text = json.loads(self.content)["content"]
        head = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
        if head is None:
            return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            metadata = yaml.safe_load(head[1])
            complaints = [] if isinstance(metadata, dict) else ["the metadata is not a mapping"]
        except yaml.YAMLError as problem:
            metadata, complaints = {}, [str(problem)]
        for dataset in metadata.get("datasets") or [] if isinstance(metadata, dict) else []:
            if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", dataset):
                complaints.append(f"{dataset!r} is not a data set id")
        return as_json({"errors": [{"message": c} for c in complaints], "warnings": []}, 400 if complaints else 200)

    def preupload(self, repo_id: str, revision: str) -> Answer:
        if refusal := self.refuse_writing(repo_id.split("/")[0]) or self.refuse_reading(repo_id):
            return refusal
        there = self.hub.files(repo_id, revision)
        answers = []
        for file in json.loads(self.content)["files"]:
            large = is_large(file["path"], b"") or file["size"] >= LARGE
            entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in there:
                entry["oid"] = oid(file["path"], there[file["path"]])
            answers.append(entry)
        return as_json({"files": answers})

    def batch(self, repo_id: str) -> Answer:
        if refusal := self.refuse_writing(repo_id.split("/")[0]):
            return refusal
        objects = []
        for wanted in json.loads(self.content)["objects"]:
            verify = {"href": f"{self.hub.url}/{repo_id}.git/info/lfs/objects/verify"}
            upload = {"href": f"{self.hub.store_url}/{wanted['oid']}"}
            new = wanted["oid"] not in self.hub.store
            objects.append({**wanted, "actions": {"upload": upload, "verify": verify}} if new else wanted)
        return as_json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> Answer:
        if sha256(self.content) != digest:
            return error(400, None, "the content is not what its name says")
        self.hub.store[digest] = self.content
        return Answer(200)

    def verify(self, repo_id: str) -> Answer:
        wanted = json.loads(self.content)
        if len(self.hub.store.get(wanted["oid"], b"")) != wanted["size"]:
            return error(404, None, "this object was not uploaded")
        return as_json({})

    def accept_commit(self, repo_id: str, branch: str) -> Answer:
        if refusal := self.refuse_writing(repo_id.split("/")[0]) or self.refuse_reading(repo_id):
            return refusal
        header, *operations = map(json.loads, self.content.splitlines())
        with self.hub.lock:
            files = dict(self.hub.files(repo_id, branch))
            if header["value"].get("parentCommit", self.hub.refs[repo_id][branch]) != self.hub.refs[repo_id][branch]:
                return error(412, None, "A commit has happened since. Please refresh and try again.")
            for operation in operations:
                key, value = operation["key"], operation["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile" and value["oid"] in self.hub.store:
                    files[value["path"]] = self.hub.store[value["oid"]]
                elif key == "deletedFile" and value["path"] in files:
                    del files[value["path"]]
                else:
                    return error(400, None, f"cannot do {operation}")
            digest = self.hub.commit(repo_id, files, branch)
            self.hub.messages.append(header["value"]["summary"])
        url = f"{self.hub.url}/{repo_id}/commit/{digest}"
        return as_json({"success": True, "commitUrl": url, "commitOid": digest, "hookOutput": ""})
