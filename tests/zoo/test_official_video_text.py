"""The official model of videos and language written out in float64, weight by weight under its official names, against
the model that takes over its file (docs/protocol.md, section 11)."""

import math

import numpy as np
import pytest
import torch

import hub
import zoo
from hub.convert.videomamba_text import to_zoo
from lightning_modules import VideoTextPretraining
from lightning_modules.nets.bert import BertWords

WIDTH, DEPTH, FRAMES, SIDE, PATCH, SHARED = 16, 2, 3, 16, 8, 12
WORDS, HIDDEN, LAYERS, FUSION, HEADS, PLACES = 60, 24, 3, 1, 2, 16
TEXT = {"vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": 32, "max_position_embeddings": PLACES}  # fmt: skip
TABLE, HEAD = "text_encoder.bert.embeddings.word_embeddings.weight", "text_encoder.cls.predictions"
CAPTIONS = ["a red circle moves left", "a green square", "blue"]


def official_shapes():
    """Every tensor of the file but the teacher's."""
    inner, rank = 2 * WIDTH, math.ceil(WIDTH / 16)
    tokens = (SIDE // PATCH) ** 2
    shapes = {"patch_embed.proj.weight": (WIDTH, 3, 1, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,),
              "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + tokens, WIDTH),
              "temporal_pos_embedding": (1, FRAMES, WIDTH), "norm.weight": (WIDTH,),
              "pool_norm.weight": (WIDTH,), "pool_norm.bias": (WIDTH,)}  # fmt: skip
    for n in range(DEPTH):
        mixer = {"in_proj.weight": (2 * inner, WIDTH), "out_proj.weight": (WIDTH, inner)}
        for b in ("", "_b"):
            mixer |= {f"conv1d{b}.weight": (inner, 1, 4), f"conv1d{b}.bias": (inner,),
                      f"x_proj{b}.weight": (rank + 32, inner), f"dt_proj{b}.weight": (inner, rank),
                      f"dt_proj{b}.bias": (inner,), f"A{b}_log": (inner, 16), f"D{b}": (inner,)}  # fmt: skip
        shapes |= {f"layers.{n}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"layers.{n}.norm.weight"] = (WIDTH,)
    shapes = {f"vision_encoder.{name}": shape for name, shape in shapes.items()}

    def linear(name, outputs, inputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name):
        return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}

    bert = {f"embeddings.{kind}_embeddings.weight": (count, HIDDEN)
            for kind, count in (("word", WORDS), ("position", PLACES), ("token_type", 2))}  # fmt: skip
    bert |= norm("embeddings.LayerNorm")
    for n in range(LAYERS):
        for attention in ("attention", "crossattention")[: 2 if n >= LAYERS - FUSION else 1]:
            seen = WIDTH if attention == "crossattention" else HIDDEN
            place = f"encoder.layer.{n}.{attention}"
            bert |= linear(f"{place}.self.query", HIDDEN, HIDDEN) | linear(f"{place}.self.key", HIDDEN, seen)
            bert |= linear(f"{place}.self.value", HIDDEN, seen) | linear(f"{place}.output.dense", HIDDEN, HIDDEN)
            bert |= norm(f"{place}.output.LayerNorm")
        bert |= linear(f"encoder.layer.{n}.intermediate.dense", 32, HIDDEN)
        bert |= linear(f"encoder.layer.{n}.output.dense", HIDDEN, 32) | norm(f"encoder.layer.{n}.output.LayerNorm")
    shapes |= {f"text_encoder.bert.{name}": shape for name, shape in bert.items()}
    head = linear("transform.dense", HIDDEN, HIDDEN) | norm("transform.LayerNorm") | {"bias": (WORDS,)}
    shapes |= {f"text_encoder.cls.predictions.{name}": shape for name, shape in head.items()}
    shapes |= linear("vision_proj", SHARED, WIDTH) | linear("text_proj", SHARED, HIDDEN) | linear("itm_head", 2, HIDDEN)
    return shapes | {"temp": ()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as released, with the teacher's weights and BERT's copies, and its own weights as float64 arrays."""
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in official_shapes().items()}
    weights = {name: w + 1 if name.endswith(("norm.weight", "Norm.weight")) else w for name, w in weights.items()}
    weights["temp"] = torch.tensor(0.05)
    extras = {"clip_teacher.visual.proj": torch.ones(3),
              "vision_encoder.clip_decoder.0.head.weight": torch.ones(2, 2),
              f"{HEAD}.decoder.weight": weights[TABLE], f"{HEAD}.decoder.bias": weights[f"{HEAD}.bias"],
              "text_encoder.bert.embeddings.position_ids": torch.arange(PLACES)[None]}  # fmt: skip
    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save({"model": weights | extras}, path)
    return path, {name: weight.double().numpy() for name, weight in weights.items()}


# The computation ----------------------------------------------------------------------------------------------------


class Official:
    """What the official model makes of a normalised clip (3, T, H, W) and of token ids (L,), one at a time."""

    def __init__(self, weights):
        self.weights = weights

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def layer_norm(self, name, x, eps):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def rms_norm(self, name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * self.weights[f"{name}.weight"]

    def direction(self, name, x, suffix):
        """Convolution and scan along the first axis, (L, E)."""
        w = {k.removeprefix(f"{name}."): v for k, v in self.weights.items() if k.startswith(f"{name}.")}
        padded = np.concatenate([np.zeros((3, x.shape[1])), x])
        taps = w[f"conv1d{suffix}.weight"][:, 0]
        x = sum(padded[k : k + len(x)] * taps[:, k] for k in range(4)) + w[f"conv1d{suffix}.bias"]
        x = x / (1 + np.exp(-x))
        selected = x @ w[f"x_proj{suffix}.weight"].T
        rank = selected.shape[1] - 32
        delta = selected[:, :rank] @ w[f"dt_proj{suffix}.weight"].T + w[f"dt_proj{suffix}.bias"]
        delta, b, c = np.log1p(np.exp(delta)), selected[:, rank : rank + 16], selected[:, rank + 16 :]
        rates, state, rows = -np.exp(w[f"A{suffix}_log"]), np.zeros((x.shape[1], 16)), []
        for t in range(len(x)):
            state = np.exp(delta[t][:, None] * rates) * state + (delta[t] * x[t])[:, None] * b[t]
            rows.append(state @ c[t] + w[f"D{suffix}"] * x[t])
        return np.stack(rows)

    def see(self, clip):
        """Patch tokens (K, D), and the vector of each frame in the shared space (T, E)."""
        name, w = "vision_encoder", self.weights
        spatial, count = w[f"{name}.pos_embed"][0], SIDE // PATCH
        kernel, tokens = w[f"{name}.patch_embed.proj.weight"][:, :, 0], [w[f"{name}.cls_token"][0, 0] + spatial[0]]
        for frame in range(clip.shape[1]):
            for place in range(count**2):
                y, x = PATCH * (place // count), PATCH * (place % count)
                patch = (kernel * clip[:, frame, y : y + PATCH, x : x + PATCH]).sum((1, 2, 3))
                token = patch + w[f"{name}.patch_embed.proj.bias"] + spatial[1 + place]
                if clip.shape[1] > 1:  # a picture has no place in time
                    token = token + w[f"{name}.temporal_pos_embedding"][0, frame]
                tokens.append(token)
        stream = np.stack(tokens)
        for n in range(DEPTH):
            mixer = f"{name}.layers.{n}.mixer"
            x, z = np.split(
                self.linear(f"{mixer}.in_proj", self.rms_norm(f"{name}.layers.{n}.norm", stream)), 2, axis=1
            )
            both = self.direction(mixer, x, "") + self.direction(mixer, x[::-1], "_b")[::-1]
            stream = stream + self.linear(f"{mixer}.out_proj", both * z / (1 + np.exp(-z)))
        stream = self.rms_norm(f"{name}.norm", stream)
        frames = stream[1:].reshape(clip.shape[1], count**2, WIDTH).mean(1)
        vectors = self.linear("vision_proj", self.layer_norm(f"{name}.pool_norm", stream[0] + frames, 1e-5))
        return stream[1:], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def attend(self, name, x, seen):
        heads = []
        for part in np.split(np.arange(HIDDEN), HEADS):
            q, k, v = (self.linear(f"{name}.self.{kind}", y)[:, part]
                       for kind, y in (("query", x), ("key", seen), ("value", seen)))  # fmt: skip
            scores = np.exp(q @ k.T / math.sqrt(HIDDEN / HEADS))
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        out = self.linear(f"{name}.output.dense", np.concatenate(heads, axis=1))
        return self.layer_norm(f"{name}.output.LayerNorm", x + out, 1e-12)

    def layer(self, n, x, video=None):
        name = f"text_encoder.bert.encoder.layer.{n}"
        x = self.attend(f"{name}.attention", x, x)
        if video is not None:
            x = self.attend(f"{name}.crossattention", x, video)
        inner = self.linear(f"{name}.output.dense", gelu(self.linear(f"{name}.intermediate.dense", x)))
        return self.layer_norm(f"{name}.output.LayerNorm", x + inner, 1e-12)

    def read(self, ids):
        """Words before fusion (L, D of BERT), and the text's vector (E,)."""
        name, w = "text_encoder.bert.embeddings", self.weights
        x = w[f"{name}.word_embeddings.weight"][ids] + w[f"{name}.position_embeddings.weight"][: len(ids)]
        x = self.layer_norm(f"{name}.LayerNorm", x + w[f"{name}.token_type_embeddings.weight"][0], 1e-12)
        for n in range(LAYERS - FUSION):
            x = self.layer(n, x)
        vector = self.linear("text_proj", x[0])
        return x, vector / np.linalg.norm(vector)

    def fuse(self, words, video):
        """Logits of "no" and "yes" (2,), and scores of the vocabulary at each place (L, words)."""
        for n in range(LAYERS - FUSION, LAYERS):
            words = self.layer(n, words, video)
        guess = gelu(self.linear(f"{HEAD}.transform.dense", words))
        guess = self.layer_norm(f"{HEAD}.transform.LayerNorm", guess, 1e-12)
        return self.linear("itm_head", words[0]), guess @ self.weights[TABLE].T + self.weights[f"{HEAD}.bias"]


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


# The model that takes the file over ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(file, tmp_path_factory):
    """Converted by the registry's way, in a folder of the zoo's format, loaded from there."""
    path, _ = file
    words = BertWords(WORDS, 12)
    words.learn(CAPTIONS)
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_frames": FRAMES, "image_size": SIDE, "patch_size": PATCH,
             "text": TEXT, "fusion_layers": FUSION, "dim": SHARED, "max_words": 12}  # fmt: skip
    template = VideoTextPretraining(**sizes)
    weights = to_zoo(torch.load(path)["model"])
    template.load_state_dict(weights | {"net.words.pieces": words.pieces})  # strict: every tensor finds its place
    folder = tmp_path_factory.mktemp("zoo")
    hub.save(template, folder / "model")
    return zoo.load(folder / "model").double()


@pytest.mark.parametrize("frames", [FRAMES, 1])
def test_vectors_matches_and_words_are_those_of_the_official_computation(file, model, frames):
    official = Official(file[1])
    clips = torch.randn(2, 3, frames, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        video, text = model.net.encode_video(clips), model.net.encode_text(CAPTIONS)
        for i, clip in enumerate(clips):
            tokens, vectors = official.see(clip.numpy())
            np.testing.assert_allclose(video.tokens[i], tokens, atol=1e-6)
            np.testing.assert_allclose(video.vectors[i], vectors, atol=1e-6)
            for j in range(len(CAPTIONS)):
                length = int(text.mask[j].sum())
                words, vector = official.read(text.ids[j, :length].numpy())
                np.testing.assert_allclose(text.vectors[j], vector, atol=1e-6)
                logits, guesses = official.fuse(words, tokens)
                one = (text.mask[j : j + 1], video.tokens[i : i + 1])
                np.testing.assert_allclose(model.net.match(text.hidden[j : j + 1], *one)[0], logits, atol=1e-6)
                found = model.net.guess_words(text.ids[j : j + 1], *one)[0, :length]
                np.testing.assert_allclose(found, guesses, atol=1e-5)
