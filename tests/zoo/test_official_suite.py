"""Official files of Video Mamba Suite: made up from models of the zoo under the authors' names, and loaded by name."""

import argparse
import json
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch

import zoo
from datamodules.synthetic.writing import generate
from hub import HubError
from lightning_modules.nets.clip_tower import ClipTokenizer
from zoo.commands.main import main

CLIP = "openai/clip-vit-base-patch16"
REVISION = "e" * 40
TOKEN = "hf_" + "Zq7" * 11
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
    "timemamba-b-ek100-cls-f16": {"vision": {"tower": "timemamba", "embed_dim": 16, "depth": 2, "heads": 2},
                                  "num_frames": 2, "image_size": 32},
}  # fmt: skip
CAPTIONS = ["the person cuts the onion", "C opens a drawer"]
LOAD = """
import json, sys
import torch, hub, zoo
from lightning_modules.nets import pretrained

pins, captions, folder, models, push = json.loads(sys.argv[1])
pretrained.PINNED[pins["repository"]] = {"merges.txt": (pins["revision"], pins["sha256"])}
for name, overrides in models.items():
    file, saved = f"{folder}/{name}.pt", f"{folder}/{name}"
    if overrides:
        hub.save(zoo.load(name, checkpoint=file, **overrides), saved)
    else:
        zoo.convert(file, saved, name)
    if push:
        zoo.push(saved, f"me/{name}")
    model = zoo.load(f"hf://me/{name}" if push else saved)
    with torch.inference_mode():
        answers = [model(torch.load(f"{folder}/clip-{name}.pt"))]
        if hasattr(model, "encode_text"):
            answers.append(model.encode_text(captions))
    torch.save(answers, f"{folder}/answers-{name}.pt")
if push:
    from zoo.fetch import fetch
    print(json.dumps([path.name for path in fetch("vivim-s-ego4d")]))
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


def as_released(weights, table):
    """What the authors' program saves: the parsed command line, and a best score that is a number of NumPy. That of the
    classifier of actions has a table of pandas there."""
    pandas = pytest.importorskip("pandas")
    args = argparse.Namespace(lr=3e-5)
    if table:
        args.actions = pandas.DataFrame({"verb": [0, 1], "noun": [1, 10], "action": ["take plate", "put onion"]})
    weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    return {"epoch": 5, "state_dict": weights, "best_acc1": np.float64(22.8), "args": args}


def randomised(name, **overrides):
    torch.manual_seed(0)
    model = zoo.create(name, **dict.fromkeys(zoo.info(name).parts), **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def files_load_and_answer(server, folder, models, push=False):
    """Models by their names, with other sizes or without: their weights in official files, loaded by name or converted,
    saved, shared where wanted, and loaded again in a process of their own."""
    tokenizer = ClipTokenizer(WORDS, 77)
    tokenizer.learn(CAPTIONS)
    made = json.loads(tokenizer._build().backend_tokenizer.to_str())["model"]
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in made["merges"]]
    merges = "\n".join(["#version: 0.2", *pairs]).encode()
    server.commit(CLIP, {"merges.txt": merges}, name=REVISION)
    server.tokens[TOKEN] = {"me"}
    pins = {"repository": CLIP, "revision": REVISION, "sha256": sha256(merges).hexdigest()}
    expected = {}
    for name, overrides in models.items():
        model = randomised(name, **overrides)
        released = as_released(official(model), table="cls" in name)
        torch.save({"model": official(model)} if "k400" in name else released, folder / f"{name}.pt")
        clip = model.preprocessing
        shape = (1, 3, clip["num_frames"], clip["image_size"], clip["image_size"])
        video = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        torch.save(video, folder / f"clip-{name}.pt")
        with torch.inference_mode():
            expected[name] = [model(video)]
            if hasattr(model, "encode_text"):
                model.net.tokenizer.set_merges(tokenizer.merges)
                expected[name].append(model.encode_text(CAPTIONS))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([pins, CAPTIONS, str(folder), models, push])], capture_output=True,
        text=True, timeout=1200, env=server.environment(folder / "hf", HF_TOKEN=TOKEN),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, answers in expected.items():
        for answer, found in zip(answers, torch.load(folder / f"answers-{name}.pt"), strict=True):
            assert torch.equal(found, answer)
    return done.stdout


@pytest.mark.slow
def test_made_up_files_load_by_name_and_survive_sharing(tmp_path, hub_server):
    weights = zoo.info("vivim-s-ego4d").weights
    hub_server.commit(weights.repo_id, {weights.filename: b"weights"}, name=weights.revision)
    said = files_load_and_answer(hub_server, tmp_path, SMALL, push=True)
    assert json.loads(said.splitlines()[-1]) == [weights.filename, "merges.txt"]  # what `zoo pull` fetches


@pytest.mark.slow
def test_full_size_files_convert_answer_and_are_searched(tmp_path, hub_server, capsys):
    models = {"vivim-s-ego4d": {}, "vivim-ti-k400": {}, "timemamba-b-ek100-cls-f16": {"num_frames": 2}}
    files_load_and_answer(hub_server, tmp_path, models)
    clips = generate(tmp_path / "clips", num_train=0, num_val=0, num_test=2, classes=("grow", "move_left"),
                     size=(48, 40), num_frames=8, num_workers=0, progress=False)  # fmt: skip
    main(["index", str(tmp_path / "vivim-s-ego4d"), str(clips), "-o", str(tmp_path / "my.index"), "--workers", "0"])
    capsys.readouterr()
    main(["search", str(tmp_path / "my.index"), CAPTIONS[0], "--json"])
    assert "move_left" in capsys.readouterr().out


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
