"""Official files of Video Mamba Suite: made up from models of the zoo under the authors' names, and loaded by name."""

import argparse
import json
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch

import hub
import zoo
from hub import HubError
from lightning_modules.nets.clip_tower import ClipTokenizer

CLIP = "openai/clip-vit-base-patch16"
REVISION = "e" * 40
WORDS = 49_408
TEXT = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2,
        "vocab_size": WORDS}  # fmt: skip
SMALL = {
    "vivim-s-ego4d": {"vision": {"tower": "vivim", "embed_dim": 16, "depth": 2}, "text": TEXT, "num_frames": 2,
                      "image_size": 32, "dim": 12},
    "timemamba-b-frozen-ego4d-f4": {"vision": {"tower": "timemamba", "embed_dim": 16, "depth": 2, "heads": 2,
                                               "style": "frozen"}, "text": TEXT, "num_frames": 2, "image_size": 32,
                                    "dim": 12},
    "vivim-ti-k400": {"embed_dim": 16, "depth": 2, "num_frames": 2, "image_size": 32},
}  # fmt: skip
CAPTIONS = ["the person cuts the onion", "C opens a drawer"]
LOAD = """
import json, sys
import torch, hub, zoo
from lightning_modules.nets import pretrained

pins, folder, small = json.loads(sys.argv[1])
pretrained.PINNED[pins["repository"]] = {"merges.txt": (pins["revision"], pins["sha256"])}
clip = torch.load(f"{folder}/clip.pt")
for name, overrides in small.items():
    model = zoo.load(name, checkpoint=f"{folder}/{name}.pt", **overrides)
    hub.save(model, f"{folder}/{name}")
    again = zoo.load(f"{folder}/{name}")
    with torch.inference_mode():
        answers = [again(clip)]
        assert torch.equal(answers[0], model(clip))
        if hasattr(again, "encode_text"):
            answers.append(again.encode_text(json.loads(sys.argv[2])))
    torch.save(answers, f"{folder}/answers-{name}.pt")
"""


def official(model):
    """A model's weights as the authors' code names them."""
    state = {name.removeprefix("net."): tensor for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("tokenizer.")}
    weights = {}
    for name, tensor in state.items():
        if name.startswith("text."):
            weights |= as_openai(name.removeprefix("text."), tensor, state)
        elif name == "vision_proj.weight":
            weights["visual.image_projection"] = tensor.T
        elif name.startswith("head.") and "vision.cls_token" in state:
            weights[name.replace("head.", "fc_cls.")] = tensor
        else:
            renamed = name.replace("vision.", "visual.", 1)
            is_vivim = any(key.endswith("temporal_pos_embedding") for key in state)
            weights |= as_vivim(renamed, tensor) if is_vivim else {renamed: tensor}
    return weights


def as_vivim(name, tensor):
    if name.endswith("temporal_pos_embedding"):
        return {name.replace("temporal_pos_embedding", "temporal_embedding"): tensor.transpose(0, 1)}
    if name.endswith("patch_embed.proj.weight"):
        return {name: tensor[:, :, 0]}
    if name.endswith("pos_embed"):
        middle = tensor.shape[1] // 2
        return {name: torch.cat([tensor[:, 1 : middle + 1], tensor[:, :1], tensor[:, middle + 1 :]], dim=1)}
    return {name: tensor}


def as_openai(name, tensor, state):
    """A tensor of the text tower; queries, keys and values come with the queries."""
    plain = {"text_projection.weight": "text_projection",
             "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
             "text_model.embeddings.position_embedding.weight": "positional_embedding",
             "text_model.final_layer_norm.weight": "ln_final.weight",
             "text_model.final_layer_norm.bias": "ln_final.bias"}  # fmt: skip
    if name in plain:
        return {f"textual.{plain[name]}": tensor.T if name == "text_projection.weight" else tensor}
    _, _, _, number, *rest = name.split(".")
    layer, kind = ".".join(rest[:-1]), rest[-1]
    block = f"textual.transformer.resblocks.{number}"
    if layer in ("self_attn.k_proj", "self_attn.v_proj"):
        return {}
    if layer == "self_attn.q_proj":
        parts = [state[f"text.{name}".replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
        return {f"{block}.attn.in_proj_{kind}": torch.cat(parts)}
    layers = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
              "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
    return {f"{block}.{layers[layer]}.{kind}": tensor}


def as_released(weights):
    """What the authors' program saves: the parsed command line, and a best score that is a number of NumPy."""
    weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    return {"epoch": 5, "state_dict": weights, "best_acc1": np.float64(22.8), "args": argparse.Namespace(lr=3e-5)}


def randomised(name, **overrides):
    torch.manual_seed(0)
    model = zoo.create(name, **dict.fromkeys(zoo.info(name).parts), **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_made_up_files_load_by_name_and_survive_saving(tmp_path, hub_server):
    tokenizer = ClipTokenizer(WORDS, 77)
    tokenizer.learn(CAPTIONS)
    made = json.loads(tokenizer._build().backend_tokenizer.to_str())["model"]
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in made["merges"]]
    merges = "\n".join(["#version: 0.2", *pairs]).encode()
    hub_server.commit(CLIP, {"merges.txt": merges}, name=REVISION)
    clip = torch.randint(0, 256, (1, 3, 2, 32, 32), dtype=torch.uint8)
    torch.save(clip, tmp_path / "clip.pt")
    models = {}
    for name, overrides in SMALL.items():
        model = models[name] = randomised(name, **overrides)
        content = as_released(official(model)) if "ego4d" in name else {"model": official(model)}
        torch.save(content, tmp_path / f"{name}.pt")
        if hasattr(model, "encode_text"):
            model.net.tokenizer.set_merges(tokenizer.merges)
    pins = {"repository": CLIP, "revision": REVISION, "sha256": sha256(merges).hexdigest()}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([pins, str(tmp_path), SMALL]), json.dumps(CAPTIONS)],
        capture_output=True, text=True, timeout=600, env=hub_server.environment(tmp_path / "hf"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        answers = torch.load(tmp_path / f"answers-{name}.pt")
        with torch.inference_mode():
            assert torch.equal(answers[0], model(clip))
            if hasattr(model, "encode_text"):
                assert torch.equal(answers[1], model.encode_text(CAPTIONS))


@pytest.mark.parametrize("form", ["module", "flat", "model"])
def test_a_classifier_is_found_wherever_the_program_puts_it(tmp_path, form):
    model = randomised("vivim-ti-k400", **SMALL["vivim-ti-k400"])
    weights = official(model)
    content = weights if form == "flat" else {form: weights, "epoch": 3, "scaler": {}}
    torch.save(content, tmp_path / "official.pt")
    loaded = zoo.load("vivim-ti-k400", checkpoint=tmp_path / "official.pt", **SMALL["vivim-ti-k400"])
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


def test_every_tensor_has_to_be_used_up(tmp_path):
    small = SMALL["vivim-ti-k400"]
    weights = official(randomised("vivim-ti-k400", **small))
    for changed, complaint in (
        (weights | {"rope.freqs": torch.ones(3)}, r"1 not in the model: net\.rope\.freqs"),
        ({k: v for k, v in weights.items() if k != "cls_token"}, r"1 missing: net\.cls_token"),
        (weights | {"module.head.bias": weights["head.bias"]}, r"has two tensors for net\.head\.bias"),
        (weights | {"pos_embed": torch.ones(5, 16)}, r"pos_embed of .* has the shape \(5, 16\) and not 3 dimensions"),
    ):
        torch.save({"model": changed}, tmp_path / "official.pt")
        with pytest.raises(HubError, match=complaint):
            zoo.load("vivim-ti-k400", checkpoint=tmp_path / "official.pt", **small)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vivim-ti-k400"])
def test_full_size_models_convert_and_answer_equally(tmp_path, name):
    model = randomised(name)
    torch.save({"model": official(model)}, tmp_path / "official.pt")
    zoo.convert(tmp_path / "official.pt", tmp_path / "folder", name)
    loaded = zoo.load(tmp_path / "folder")
    video = torch.randint(0, 256, (1, 3, 16, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(video), model(video))
    assert hub.read(tmp_path / "folder").config == loaded.config
