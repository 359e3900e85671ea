"""hub.push through the real huggingface_hub client, against a Hub of our own on loopback.

The client reads its environment when imported, so each scenario is a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import hub
from hub.checkpoint import Checkpoint, write

CONFIG = {
    "class_path": "lightning_modules.VideoClassifier",
    "init_args": {"num_classes": 2, "class_names": ["a", "b"], "num_frames": 8, "image_size": 32, "mean": [0.5] * 3},
}
TOKEN = "hf_" + "Zq7" * 11
# Pushes what the JSON on standard input asks for, one after the other, and prints what became of each.
PUSH = """
import json, os, sys
import hub
answers = []
for arguments in json.load(sys.stdin):
    os.environ["HF_TOKEN"] = arguments.pop("token", os.environ["HF_TOKEN"])
    try:
        answers.append(hub.push(**arguments))
    except hub.HubError as error:
        answers.append(f"HubError: {error}")
print(json.dumps(answers))
"""


def push(tmp_path, server, *requests: tuple, **env: str) -> tuple[list[str], str]:
    """Answers to the requests from one fresh process, and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PUSH],
        input=json.dumps([{"model": str(folder), "repo_id": repo, **more} for folder, repo, more in requests]),
        capture_output=True, text=True, timeout=600,
        env=server.environment(tmp_path / "hf", HF_TOKEN=TOKEN, **env),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr + "".join(f.read_text() for f in tmp_path.rglob("hf/**/*") if f.is_file())
    assert "Traceback" not in done.stderr and TOKEN not in said
    return json.loads(done.stdout), done.stderr


def one_sentence(answer: str, *words: str) -> bool:
    return answer.startswith("HubError: ") and "\n" not in answer and all(word in answer for word in words)


@pytest.fixture
def server(hub_server):
    hub_server.tokens[TOKEN] = {"org"}
    return hub_server


@pytest.fixture
def folder(tmp_path):
    run = {"model": CONFIG, "data": {"class_path": "datamodules.Kinetics"}}
    recipe = f"# dataset: Kinetics-400\n{yaml.safe_dump(run)}"
    extras = {"metrics.csv": b"epoch,step\n", "curves.png": b"\x89PNG" + os.urandom(200)}
    weights = {"net.a": torch.randn(200, 200), "net.b": torch.tensor(3)}
    return write(Checkpoint(CONFIG, weights, recipe, extras), tmp_path / "model")


def test_a_full_disk_is_one_sentence(tmp_path, server):
    code = f"""
import resource, torch
import hub
from hub.checkpoint import Checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    hub.push(Checkpoint({CONFIG!r}, {{"net.a": torch.ones(200, 200)}}), "org/model")
except hub.HubError as error:
    print(f"HubError: {{error}}")
"""
    (tmp_path / "scratch").mkdir()
    env = server.environment(tmp_path / "hf", HF_TOKEN=TOKEN, TMPDIR=str(tmp_path / "scratch"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=env)
    answer = done.stdout.strip()
    assert one_sentence(answer, f"cannot be written to {tmp_path / 'scratch'}", "nothing was pushed", "TMPDIR")
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert "org/model" not in server.commits


def test_a_push_is_one_commit_with_everything(tmp_path, server, folder):
    # Later the picture is gone, and the card is written by hand.
    later = write(hub.read(folder)._replace(extras={"README.md": b"# My card\n\nBy hand.\n"}), tmp_path / "later")
    requests = [
        (folder, "org/model", {"private": True}),
        (folder, "org/model", {"private": True}),
        (later, "org/model", {"message": "Without the picture"}),
        (later, "org/licensed", {"license": "mit"}),
    ]
    (first, second, third, _), _ = push(tmp_path, server, *requests)
    old, new = (address.removeprefix(f"{server.url}/org/model/commit/") for address in (first, third))
    assert second == first and new == server.refs["org/model"]["main"]
    # The second found nothing to change.
    assert server.messages == ["Upload a model of the zoo", "Without the picture", "Upload a model of the zoo"]
    assert server.private == {"org/model"}
    assert server.leaks == []
    assert server.count("PUT /store/") == 2 and server.count("verify") == 2  # the weights and the picture
    files = server.files("org/model", old)
    assert files.keys() == {
        ".gitattributes", "config.json", "model.safetensors", "recipe.yaml", "metrics.csv", "curves.png", "README.md",
    }  # fmt: skip
    for name in files.keys() - {"README.md", ".gitattributes"}:
        assert files[name] == (folder / name).read_bytes(), name
    config = json.loads(files["config.json"])
    assert config.pop("sha256") == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert config == CONFIG
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "video-classification" and card.data.datasets == ["kinetics-400"]
    assert 'zoo.load("org/model")' in card.text and "![Training curves](curves.png)" in card.text
    assert not any(TOKEN.encode() in content for content in files.values())

    # What the model no longer has is taken away in the same commit; a card by hand is changed only where asked.
    assert server.files("org/model").keys() == files.keys() - {"curves.png", "metrics.csv"}
    assert server.files("org/model")["README.md"] == b"# My card\n\nBy hand.\n"
    assert server.files("org/licensed")["README.md"] == b"---\nlicense: mit\n---\n\n# My card\n\nBy hand.\n"


def test_what_breaks_leaves_the_remote_as_it_was_and_a_rerun_succeeds(tmp_path, server, folder):
    """Faults at every step of a push, each at a repository that holds an older model."""
    old = {"README.md": b"# old", "config.json": b"{}"}
    places = {
        "at-create": ("POST /api/repos/create", "drop", "push again"),  # the first push makes this request first
        "at-info": ("GET /api/models/org/at-info$", "drop", "push again"),
        "at-preupload": ("org/at-preupload/preupload", 403, "403"),
        "at-batch": (r"/org/at-batch\.git/info/lfs/objects/batch", 404, "404"),
        "at-upload": ("PUT /store/", 403, "403"),  # the first that gets that far
        "at-verify": (r"/org/at-verify\.git/info/lfs/objects/verify", 404, "404"),
        "at-commit": ("POST /api/models/org/at-commit/commit/main", "drop", "all of it arrived or nothing"),
        "at-commit500": ("POST /api/models/org/at-commit500/commit/main", 500, "500"),
        "at-late": ("POST /api/models/org/at-late/commit/main", 412, "somebody else pushed"),
    }
    requests, before = [], {}
    for i, (name, (match, kind, _)) in enumerate(places.items()):
        before[name] = server.commit(f"org/{name}", old)
        weights = write(Checkpoint(CONFIG, {"net.a": torch.full((3,), i)}), tmp_path / name)
        requests.append((weights, f"org/{name}", {}))
        server.fail(match, kind)
    answers, _ = push(tmp_path, server, *requests, *requests)
    failed, succeeded = answers[: len(places)], answers[len(places) :]
    for (name, (_, _, words)), answer in zip(places.items(), failed, strict=True):
        assert one_sentence(answer, f"org/{name}", words), (name, answer)
    assert all(fault.times == 0 for fault in server.faults)
    assert [answer for answer in succeeded if answer.startswith("HubError")] == []
    assert len(server.messages) == len(places)
    for name in places:
        # Two commits: the old one, and the whole of the new one on top of it.
        assert list(server.commits[f"org/{name}"]) == [before[name], server.refs[f"org/{name}"]["main"]]
        assert server.files(f"org/{name}", before[name]) == old
    for weights, repo_id, _ in requests:
        assert server.files(repo_id)["model.safetensors"] == (weights / "model.safetensors").read_bytes()


@pytest.mark.slow  # the client waits between its attempts
def test_transient_failures_are_sat_out_and_an_answer_that_is_lost_is_no_second_commit(tmp_path, server, folder):
    server.fail("PUT /store/", "drop", 1)
    server.fail("PUT /store/", 503, 1)
    server.fail("preupload", 429, 1, Retry_After="0")
    server.fail("commit/main", "lose", 1)
    (lost, again), errors = push(tmp_path, server, (folder, "org/model", {}), (folder, "org/model", {}))
    assert one_sentence(lost, "all of it arrived or nothing")
    assert again.endswith(server.refs["org/model"]["main"])
    assert server.messages == ["Upload a model of the zoo"]
    assert "Retry" in errors  # the client tells that it waits


def test_what_is_refused(tmp_path, server, folder):
    server.commit("org/public", {"README.md": b"# old"})
    mirror = "secret-of-a-mirror"  # does not look like a token of the Hub, but is the one in use
    server.tokens[mirror] = {"org"}
    found = hub.read(folder)
    with_tokens = {
        secret: write(found._replace(recipe=f"{found.recipe}note: {secret}\n"), tmp_path / secret)
        for secret in (TOKEN, "hf_" + "aB3" * 12, mirror)
    }
    broken = write(found._replace(extras={"README.md": b"---\ntags: [\n---\n# x\n"}), tmp_path / "broken")
    damaged = write(found, tmp_path / "damaged")
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    refused = [
        ((folder, "other/model", {}), "403", "other/model", "HF_TOKEN"),
        ((folder, "org/public", {"private": True}), "org/public exists and is public", "nothing was pushed"),
        ((folder, "model", {}), "'model' is not a repository name"),
        ((folder, "org/../model", {}), "write organisation/name"),
        ((tmp_path, "org/model", {}), "has no config.json"),
        ((folder, "org/model", {"token": TOKEN[:-1] + "x"}), "401", "HF_TOKEN"),
        ((folder, "org/model", {"token": ""}), "401", "HF_TOKEN"),
        ((damaged, "org/model", {}), "model.safetensors is not the recorded file"),
        *(
            (
                (written, "org/model", {"token": mirror if secret == mirror else TOKEN}),
                "recipe.yaml holds an access token",
            )
            for secret, written in with_tokens.items()
        ),
        ((broken, "org/broken", {}), "README.md"),
    ]
    for secret, written in with_tokens.items():
        request = (written, "org/model", {"token": mirror if secret == mirror else TOKEN})
        refused.append((request, "recipe.yaml holds an access token"))
    answers, errors = push(tmp_path, server, *(request for request, *_ in refused))
    for answer, (request, *words) in zip(answers, refused, strict=True):
        assert one_sentence(answer, *words), (request, answer)
        assert not any(secret in answer for secret in (TOKEN[:-1], "aB3aB3", mirror))
    assert mirror not in errors
    assert server.messages == [] and "org/model" not in server.commits
    assert server.files("org/broken").keys() == {".gitattributes"}
    # A Hub without the newer storage, which the client tries first: the remedy is named.
    (xet,), _ = push(tmp_path, server, (folder, "org/model", {}), HF_HUB_DISABLE_XET="0")
    if "/commit/" in xet:  # some clients find that out by themselves
        assert server.files("org/model")
    else:
        assert one_sentence(xet, "HF_HUB_DISABLE_XET=1") and server.messages == []
