"""Videos and indices at s3:// of a store on loopback give what local ones give."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.retrieval.table import Index

ZOO = Path(sys.executable).with_name("zoo")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
CLIPS = 12
ODD_NAME = "deep/a +b 100% #1 café?.mp4"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """model/ and videos/, one with an odd name."""
    folder = tmp_path_factory.mktemp("object-store")
    torch.manual_seed(0)
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4), folder / "model")
    generate(folder / "made", num_train=0, num_val=0, num_test=CLIPS, size=(48, 40), num_frames=8, num_workers=0,
             progress=False)  # fmt: skip
    (folder / "made/test").rename(folder / "videos")
    first = min((folder / "videos").glob("*/*.mp4"))
    (folder / "videos" / ODD_NAME).parent.mkdir()
    first.rename(folder / "videos" / ODD_NAME)
    return folder


@pytest.fixture
def bucket(workspace, object_store):
    fsspec.filesystem("s3").put(str(workspace / "videos"), f"{object_store}/videos", recursive=True)
    return object_store


def content(index, root):
    """Vectors by the file's name below the root, and stretch."""
    found = {}
    for (path, start, end), vector in Index.open(index).records():
        path = path if "://" in path else os.path.normpath(Path(index, "..", path))
        assert path.startswith(f"{root}/")
        found[path[len(f"{root}/") :], start, end] = vector.numpy().tobytes()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_at_s3_equals_a_local_one(workspace, bucket, tmp_path, workers, capsys):
    model, local, remote = workspace / "model", tmp_path / "my.index", f"{bucket}/my.index"
    options = {"num_workers": workers, "batch_size": 4, "window": 0.4}
    expected = zoo.index(str(model), workspace / "videos", local, **options)
    assert zoo.index(str(model), f"{bucket}/videos/", remote, **options) == expected
    assert content(remote, f"{bucket}/videos") == content(local, workspace / "videos")
    assert any(name == ODD_NAME for name, *_ in content(remote, f"{bucket}/videos"))

    clip = f"{bucket}/videos/{ODD_NAME}"
    found = zoo.search(remote, ["red", "a dog"], like=clip, topk=7)
    there = zoo.search(local, ["red", "a dog"], like=workspace / "videos" / ODD_NAME, topk=7)
    below = [[(hit.path.partition("/videos/")[2], *hit[1:]) for hit in hits] for hits in found]
    assert below == [[(hit.path.partition("/videos/")[2], *hit[1:]) for hit in hits] for hits in there]
    assert found[2][0].path == clip

    main(["search", remote, "red", "--topk", "3", "--where", "start > 0.1", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    kept = [hit for hit in zoo.search(remote, "red", topk=99)[0] if hit.start > 0.1][:3]
    assert [(hit["path"], hit["score"]) for hit in answer["results"]] == [(hit.path, hit.score) for hit in kept]

    # Changed, gone and new files are seen, in this process too, which has listed the folder already.
    store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    names = sorted(path.partition("/videos/")[2] for path in store.find(f"{bucket}/videos"))
    store.rm(f"{bucket}/videos/{names[0]}")
    store.pipe(f"{bucket}/videos/new.mp4", (workspace / "videos" / names[1]).read_bytes())
    store.pipe(f"{bucket}/videos/{names[2]}", (workspace / "videos" / names[3]).read_bytes())
    summary = zoo.index(str(model), f"{bucket}/videos", remote, **options)
    assert summary[:5] == (CLIPS, 2, 0, CLIPS - 2, 2)
    vectors = {name: vector for (name, start, _), vector in content(remote, f"{bucket}/videos").items() if not start}
    assert vectors["new.mp4"] == vectors[names[1]] and vectors[names[2]] == vectors[names[3]]


@pytest.mark.slow
def test_the_commands_find_the_store_by_their_environment(workspace, bucket, tmp_path):
    def run(*arguments):
        done = subprocess.run([ZOO, *arguments], cwd=workspace, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr
        return json.loads(done.stdout)

    remote = run("index", "model", f"{bucket}/videos", "-o", f"{bucket}/my.index", "--workers", "2", "--json")
    assert (remote["indexed"], remote["vectors"]) == (CLIPS, CLIPS)
    (found,) = run("search", f"{bucket}/my.index", "red", "--json")
    zoo.index(str(workspace / "model"), workspace / "videos", tmp_path / "i", num_workers=0)
    for here, there in zip(zoo.search(tmp_path / "i", "red")[0], found["results"], strict=True):
        assert there["path"] == here.path.replace(str(workspace), bucket) and there["score"] == here.score


@pytest.mark.slow
def test_places_that_are_not_there_are_one_sentence(workspace, object_store, tmp_path, monkeypatch):
    model, videos = str(workspace / "model"), workspace / "videos"

    def sentence(call):
        with pytest.raises(ZooError) as raised:
            call()
        assert str(raised.value).endswith(".") and "\n" not in str(raised.value)
        return str(raised.value)

    none = sentence(lambda: zoo.index(model, "s3://no-such-bucket/videos", tmp_path / "i", num_workers=0))
    assert none.startswith("There is no file or folder s3://no-such-bucket/videos")
    none = sentence(lambda: zoo.search(f"{object_store}/none", "red", model=model))
    assert none.startswith(f"{object_store}/none is no index of videos; make one")
    none = sentence(lambda: zoo.index(model, videos, "s3://no-such-bucket/i", num_workers=0))
    assert none == ("s3://no-such-bucket/i cannot be read (The specified bucket does not exist); check the address and "
                    "your access.")  # fmt: skip

    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true); check" in sentence(lambda: Index.open(f"{object_store}/none"))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused = sentence(lambda: Index.open(f"{object_store}/none"))
    assert refused == f"{object_store}/none cannot be read (Connection refused); check the address and your access."
