"""Official MambaVL files: made up from a model of the zoo under the authors' names, and loaded by their name."""

import json
import subprocess
import sys
from argparse import Namespace
from hashlib import sha256

import pytest
import torch

import zoo
from hub import HubError
from lightning_modules import ActionRecognition
from lightning_modules.nets.roberta import RobertaWords
from zoo.commands.main import main as zoo_main
from zoo.errors import ZooError

ROBERTA = "FacebookAI/roberta-base"
REVISION = "e" * 40
ACTIONS = [[0, 0], [1, 2], [96, 299]]
# At real numbers of words and classes, and otherwise tiny.
SMALL = {
    "vision": {"tower": "avion", "embed_dim": 16, "depth": 2, "heads": 2, "patch_size": 16},
    "text": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1},
    "num_frames": 2,
    "image_size": 32,
}
FEATURES = {"tower": "features", "feature_dim": 24}
QUESTIONS = {"verb": ["what is done to the <mask> ?"], "noun": ["what is being <mask> ?"]}
LOAD = """
import json, sys, warnings
import torch, hub, zoo
from lightning_modules.nets import pretrained

pins, questions, requests = json.loads(sys.argv[1])
pretrained.PINNED[pins["repository"]] = {file: (pins["revision"], digest) for file, digest in pins["files"].items()}
answers = []
for name, folder, overrides in requests:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = zoo.load(name, checkpoint=f"{folder}/official.pyth", **overrides)
        except hub.HubError as error:
            answers.append({"error": str(error)})
            continue
    said = [str(w.message) for w in caught if "official.pyth has " in str(w.message)]
    with torch.inference_mode():
        torch.save(model.forward_heads(torch.load(f"{folder}/seen.pt"), questions), f"{folder}/answers.pt")
    answers.append({"warnings": said, "vision": model.hparams.vision})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def words():
    """Word pieces of a few words, in RoBERTa's files."""
    tokenizer = RobertaWords(50_265, 40)
    tokenizer.learn(["what is done to the board ?", "what is being cut ?"] * 2)
    made = json.loads(tokenizer._build().backend_tokenizer.to_str())["model"]
    vocabulary = {**made["vocab"], "<mask>": 50_264}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in made["merges"])])
    return tokenizer, {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": merges.encode()}


def official(model):
    """A model's weights as the authors' code saves them."""
    weights = {}
    blocks = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("net.")
        if name.startswith("tokenizer."):
            continue
        if name.startswith("vision."):
            name = name.replace("vision.layers.", "orvit.transformer.resblocks.").replace("vision.", "orvit.")
            for ours, theirs in blocks.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            if ".q_proj." in name:
                ours = f"net.{name}".replace("orvit.transformer.resblocks", "vision.layers")
                parts = [model.state_dict()[ours.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                name, tensor = name.replace("self_attn.q_proj", "attn.Wqkv"), torch.cat(parts)
            elif ".k_proj." in name or ".v_proj." in name:
                continue
        weights[name] = tensor
    weights["text_model.encoder.layer.0.output.dense.weight"] = torch.ones(2, 2)
    weights["text_model.pooler.dense.bias"] = torch.ones(2)
    return {"epoch": 99, "model_state": weights, "optimizer_state": {"state": {}}, "cfg": "TRAIN: {}"}


def load(server, words, *requests):
    """Loads registered models with files, in one process; what it said of each, and the logits or the error.

    A request is a folder, the name, what the file holds, what is seen, and arguments that differ.
    """
    server.commit(ROBERTA, words, name=REVISION)
    pins = {"repository": ROBERTA, "revision": REVISION}
    pins["files"] = {file: sha256(content).hexdigest() for file, content in words.items()}
    for folder, _, content, seen, _ in requests:
        folder.mkdir()
        torch.save(content, folder / "official.pyth")
        torch.save(seen, folder / "seen.pt")
    plain = [(name, str(folder), overrides) for folder, name, _, _, overrides in requests]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([pins, QUESTIONS, plain])], capture_output=True, text=True,
        timeout=600, env=server.environment(requests[0][0].parent / "hf"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for (folder, *_), answer in zip(requests, answers, strict=True):
        if "error" not in answer:
            answer["logits"] = torch.load(folder / "answers.pt")
    return answers


def randomised(tokenizer, **sizes):
    torch.manual_seed(0)
    model = ActionRecognition(3, vocabulary={"actions": ACTIONS}, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.net.tokenizer.set_pieces((tokenizer.bytes, tokenizer.merges))
    return model.eval()


def expected(model, seen):
    with torch.inference_mode():
        return model.forward_heads(seen, QUESTIONS)


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys() == {"verb", "noun"}
    for name, logits in wanted.items():
        assert torch.equal(found[name], logits)


def test_files_with_and_without_tower_and_damaged_ones(hub_server, tmp_path, words):
    whole, features = randomised(words[0], **SMALL), randomised(words[0], **{**SMALL, "vision": FEATURES})
    preprocessing = zoo.info("mambavl-avion-b-epic100").init_args["preprocessing"]
    whole.set_normalisation(preprocessing["mean"], preprocessing["std"])
    clip, vectors = torch.randint(256, (1, 3, 2, 32, 32), dtype=torch.uint8), torch.randn(1, 5, 24)
    damaged = official(whole)
    del damaged["model_state"]["text_model.embeddings.word_embeddings.weight"]
    damaged["model_state"]["orvit.image_projection"] = torch.ones(2)
    first, second, third = load(
        hub_server,
        words[1],
        (tmp_path / "whole", "mambavl-avion-b-epic100", official(whole), clip, SMALL),
        (tmp_path / "fusion", "mambavl-avion-l-epic100", official(features), vectors,
         {name: value for name, value in SMALL.items() if name != "vision"}),
        (tmp_path / "damaged", "mambavl-avion-b-epic100", damaged, clip, SMALL),
    )  # fmt: skip
    assert_equal(first["logits"], expected(whole, clip))
    (sentence,) = first["warnings"]
    assert sentence.endswith("official.pyth has 2 tensors of layers of RoBERTa that are not used.")
    assert_equal(second["logits"], expected(features, vectors))
    assert second["vision"] == FEATURES and "no AVION tower" in second["warnings"][0]
    assert "1 missing: net.text_model.embeddings.word_embeddings.weight" in third["error"]
    assert "1 not in the model: net.vision.image_projection" in third["error"]


def test_training_starts_from_a_file_of_avions_pretraining(tmp_path, words):
    donor = randomised(words[0], **{**SMALL, "num_frames": 4})
    weights = {name: tensor for name, tensor in official(donor)["model_state"].items() if name.startswith("orvit.")}
    weights = {f"module.visual.{name.removeprefix('orvit.')}": tensor for name, tensor in weights.items()}
    extras = {"module.visual.image_projection": torch.ones(16, 8), "module.textual.ln_final.bias": torch.ones(3)}
    torch.save({"epoch": 5, "state_dict": weights | extras, "args": Namespace(lr=3e-5)}, tmp_path / "avion.pt")
    model = randomised(words[0], **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.initialise(model, tmp_path / "avion.pt")
    for name, tensor in model.state_dict().items():
        if not name.startswith("net.vision."):
            assert torch.equal(tensor, before[name])
        elif name.endswith("temporal_embedding"):  # 4 frames become 2
            torch.testing.assert_close(tensor, donor.state_dict()[name].unflatten(0, (2, 2)).mean(dim=1))
        else:
            assert torch.equal(tensor, donor.state_dict()[name])
    torch.save({"state_dict": extras}, tmp_path / "other.pt")
    with pytest.raises(HubError, match=r"has no video tower \(visual\.\*\)"):
        zoo.initialise(model, tmp_path / "other.pt")


@pytest.mark.slow
def test_a_whole_avion_b(hub_server, tmp_path, words):
    """At full size: builds, converts, answers equal logits, and is saved and loaded."""
    torch.manual_seed(0)
    name = "mambavl-avion-b-epic100"
    model = zoo.create(name, text_weights=None, vision_weights=None, init="official").eval()
    with torch.no_grad():
        model.net.vision.temporal_embedding.normal_(std=0.02)
    model.net.tokenizer.set_pieces((words[0].bytes, words[0].merges))
    seen = torch.randint(256, (1, 3, 16, 224, 224), dtype=torch.uint8)
    (found,) = load(hub_server, words[1], (tmp_path / "whole", name, official(model), seen, {}))
    assert_equal(found["logits"], expected(model, seen))


@pytest.mark.parametrize("name", ["mambavl-avion-b-epic100", "mambavl-avion-l-epic100"])
def test_where_the_authors_keep_the_weights(name, capsys):
    zoo_main(["info", name])
    assert "on a drive that https://github.com/Dongzhikang/MambaVL links" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(
        ZooError, match=rf"drive that https://github\.com/Dongzhikang/MambaVL links.*{name}'.*checkpoint"
    ):
        zoo.load(name)
