"""hub.pull through the real huggingface_hub client, against a Hub of our own on loopback.

The client reads its environment when imported, so each scenario is a process of its own.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from hub.remote import commit_of

# Pulls what the JSON on standard input asks for, one after the other, and prints what became of each.
PULL = """
import json, sys
import hub
answers = []
for arguments in json.load(sys.stdin):
    try:
        answers.append(str(hub.pull(**arguments)))
    except hub.HubError as error:
        answers.append(f"HubError: {error}")
print(json.dumps(answers))
"""


def pull(tmp_path, endpoint: str, *requests: dict, **env: str) -> tuple[list[str], str]:
    """Answers to the requests from one fresh process, and what it wrote to standard error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **env,
    }
    done = subprocess.run(
        [sys.executable, "-c", PULL],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def one_sentence(answer: str, *words: str) -> bool:
    return answer.startswith("HubError: ") and "\n" not in answer and all(word in answer for word in words)


def test_downloads_once_and_works_offline(tmp_path, hub_server):
    large, small = os.urandom(300_000), b"{}"
    first = hub_server.commit("org/model", {"weights.bin": large, "sub/config.json": small})
    second = hub_server.commit("org/model", {"weights.bin": b"new", "sub/config.json": small})
    requests = [
        {"repo_id": "org/model", "filename": "weights.bin", "revision": first},
        {"repo_id": "org/model", "filename": "weights.bin", "sha256": hashlib.sha256(b"new").hexdigest().upper()},
        {"repo_id": "org/model", "filename": "sub/config.json"},
    ]
    (old, new, nested), _ = pull(tmp_path, hub_server.url, *requests)
    for path, content, name, commit in (
        (old, large, "weights.bin", first),
        (new, b"new", "weights.bin", second),
        (nested, small, "sub/config.json", second),
    ):
        with open(path, "rb") as file:
            assert file.read() == content
        assert commit_of(type(tmp_path)(path), name) == commit
    assert sum(line.startswith("GET /store/") for line in hub_server.log) == 1

    asked = len(hub_server.log)
    again, _ = pull(tmp_path, hub_server.url, *requests, HF_HUB_OFFLINE="1")
    assert again == [old, new, nested]
    assert len(hub_server.log) == asked


def test_what_the_hub_refuses_is_one_sentence(tmp_path, hub_server):
    hub_server.commit("org/model", {"weights.bin": b"tensors"})
    for repo_id, status in (("org/private", 401), ("org/gated", 403)):
        hub_server.commit(repo_id, {"weights.bin": b"tensors"})
        hub_server.status[repo_id] = status
    weights = {"filename": "weights.bin"}
    answers, errors = pull(
        tmp_path,
        hub_server.url,
        {"repo_id": "org/nothing", **weights},
        {"repo_id": "org/model", "filename": "other.bin"},
        {"repo_id": "org/model", "revision": "v9", **weights},
        {"repo_id": "org/private", **weights},
        {"repo_id": "org/gated", **weights},
        {"repo_id": "not a name", **weights},
        {"repo_id": "org/model", "sha256": "0" * 64, **weights},
    )
    nothing, other, revision, private, gated, name, swapped = answers
    assert one_sentence(nothing, "org/nothing", "HF_TOKEN")
    assert one_sentence(other, "org/model", "other.bin")
    assert one_sentence(revision, "org/model", "'v9'")
    assert one_sentence(private, "org/private", "HF_TOKEN")
    assert one_sentence(gated, "org/gated", "HF_TOKEN")
    assert one_sentence(name, "'not a name'", "organisation/name")
    assert one_sentence(swapped, "weights.bin", "SHA-256", "000000000000", "delete")
    assert "Traceback" not in errors


def test_no_connection_is_said_soon(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound but not listening: refused
        start = time.monotonic()
        (answer,), errors = pull(tmp_path, endpoint, {"repo_id": "org/model", "filename": "weights.bin"})
    assert one_sentence(answer, "weights.bin", endpoint, "checkpoint")
    assert time.monotonic() - start < 15  # huggingface_hub on its own tries for 23 s
    assert "Retrying" not in errors

    (answer,), _ = pull(tmp_path, endpoint, {"repo_id": "org/model", "filename": "w.bin"}, HF_HUB_OFFLINE="1")
    assert one_sentence(answer, "w.bin", "HF_HUB_OFFLINE")


@pytest.mark.slow  # the client tries five times
def test_a_hub_that_fails_is_one_sentence(tmp_path, hub_server):
    hub_server.commit("org/model", {"weights.bin": b"tensors"})
    hub_server.status["org/model"] = 503
    (answer,), _ = pull(tmp_path, hub_server.url, {"repo_id": "org/model", "filename": "weights.bin"})
    assert one_sentence(answer, "weights.bin", "org/model")
