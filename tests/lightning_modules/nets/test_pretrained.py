"""Checkpoints of CLIP and BERT from a Hub on loopback: which files, from which commit, and what is refused.

The client reads its environment when imported, so all that goes through it is one process.
"""

import json
import re
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel, CLIPTokenizer

from lightning_modules.nets.clip_tower import ClipTokenizer
from lightning_modules.nets.pretrained import PINNED

TOWER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES = {"text_config": {**TOWER, "vocab_size": 520, "max_position_embeddings": 16},
         "vision_config": {**TOWER, "image_size": 32, "patch_size": 16}, "projection_dim": 8}  # fmt: skip
B32, BERT = "openai/clip-vit-base-patch32", "google-bert/bert-base-uncased"

LOAD = """
import json, sys
from lightning_modules.errors import ModelError
from lightning_modules.nets import bert
from lightning_modules.nets import clip_tower as clip
from lightning_modules.nets.pretrained import PINNED
for repository, files in json.loads(sys.argv[1]).items():
    PINNED[repository] = {name: tuple(pin) for name, pin in files.items()}
answers = []
for function, source in json.loads(sys.argv[2]):
    try:
        load = {"tower": clip.load_image_tower, "clip": clip.load_clip, "bert": bert.pretrained_sizes}[function]
        found = load(source)
        if function == "bert":
            answers.append(found["hidden_size"])
        else:
            model, merges = found if function == "clip" else (found, ())
            answers.append([sum(p.double().sum().item() for p in model.vision_model.parameters()), len(merges)])
    except ModelError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def load(server, home, pins, *requests, **env) -> list:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(pins), json.dumps(requests)], capture_output=True, text=True,
        timeout=600, env=server.environment(home, **env),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_of_the_zoo_is_pinned_in_safetensors():
    assert set(PINNED) == {B32, "openai/clip-vit-base-patch16", BERT, "FacebookAI/roberta-base"}
    for repository, files in PINNED.items():
        assert "model.safetensors" in files and not any(name.endswith(".bin") for name in files)
        for name, (revision, digest) in files.items():
            assert re.fullmatch(r"[0-9a-f]{64}", digest)
            # Of one commit only its short name was published; there the hash alone decides.
            known = (repository, name) != ("openai/clip-vit-base-patch16", "model.safetensors")
            assert re.fullmatch(r"[0-9a-f]{40}" if known else r"refs/pr/10", revision)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """A tiny CLIP as transformers writes it, and a pickle of it beside."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = ClipTokenizer(520, 16)
    words.learn(["a low tone, a lower tone, the lowest tone"])
    vocabulary = words._build().get_vocab()
    CLIPModel(CLIPConfig(**SIZES)).save_pretrained(folder)
    words._build().save_pretrained(folder)
    assert len(CLIPTokenizer.from_pretrained(folder).get_vocab()) == len(vocabulary)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"pytorch_model.bin": b"a pickle", "README.md": b"#", "onnx/model.onnx": b"x"}


@pytest.mark.slow
def test_pinned_files_are_those_of_their_commits_and_hashes(tmp_path, hub_server, files):
    settings, weights = "a" * 40, "refs/pr/3"
    old = {name: content for name, content in files.items() if name != "model.safetensors"}
    hub_server.commit(B32, old, name=settings)
    hub_server.commit(B32, files, ref=weights)
    hub_server.commit(B32, {"config.json": b"somebody else's", "model.safetensors": b"too"})
    wanted = [name for name in PINNED[B32] if name in files]
    pins = {B32: {name: ("refs/pr/3" if name == "model.safetensors" else settings, sha256(files[name]).hexdigest())
                  for name in wanted}}  # fmt: skip
    total, merges = load(hub_server, tmp_path, pins, ["clip", B32])[0]
    assert merges == 6 and total != 0
    assert hub_server.count(r"/resolve/main/") == 0 and hub_server.count(r"\.bin|onnx|README|/api/models") == 0
    asked = len(hub_server.log)
    assert load(hub_server, tmp_path, pins, ["tower", B32], ["clip", B32], HF_HUB_OFFLINE="1") == [
        [total, 0], [total, merges],
    ]  # fmt: skip
    assert len(hub_server.log) == asked
    # The commit is moved to other weights, and what is in the cache is not what was recorded.
    pins[B32]["model.safetensors"] = (weights, "0" * 64)
    other, unknown = load(hub_server, tmp_path, pins, ["tower", B32], ["tower", "org/none"])
    assert "model.safetensors is not the recorded file, so it is not loaded" in other and "\n" not in other
    assert "There is no repository org/none" in unknown


@pytest.mark.slow
def test_other_repositories_and_revisions_load_as_before(tmp_path, hub_server, files):
    first = hub_server.commit("org/clip", files, ref="v1")
    hub_server.commit("org/clip", {**files, "model.safetensors": b"broken"})
    text = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(text).save_pretrained(tmp_path / "bert")
    config = {"config.json": (tmp_path / "bert" / "config.json").read_bytes()}
    hub_server.commit("org/bert", config)
    hub_server.commit(BERT, config, ref="mine")
    hub_server.commit("org/trap", files)
    hub_server.fail("HEAD /org/trap/resolve/.*/model.safetensors", "serve", 9, X_Linked_Etag=f'"{tmp_path}/evil"')
    requests = [["clip", "org/clip@v1"], ["clip", f"hf://org/clip@{first}"], ["bert", "org/bert"],
                ["bert", "bert-base-uncased@mine"]]  # fmt: skip
    answers = load(hub_server, tmp_path / "hf", {}, *requests, ["tower", "org/clip"], ["tower", "org/trap"])
    assert answers[0] == answers[1] and answers[0][1] == 6 and answers[2:4] == [8, 8]
    assert "The CLIP checkpoint 'org/clip' cannot be read" in answers[4]
    assert "not a plain name" in answers[5] and not (tmp_path / "evil").exists()
    assert hub_server.count(r"\.bin|onnx|README") == 0
    asked = len(hub_server.log)
    offline = load(hub_server, tmp_path / "hf", {}, *requests, HF_HUB_OFFLINE="1")
    assert offline == answers[:4] and len(hub_server.log) == asked
