"""`zoo.export`: every kind of model as an ONNX file and in ONNX Runtime, what the file says, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

import hub
import zoo
from lightning_modules import (
    ActionClassifier,
    BaseModule,
    DualEncoder,
    MaskedPretraining,
    TextVideoRetrieval,
    VideoClassifier,
    VideoRegressor,
)
from zoo.commands.main import main
from zoo.deploy import export as under_test
from zoo.deploy import onnx_file
from zoo.deploy.onnx_file import OPSET
from zoo.deploy.parts import part_of
from zoo.errors import ZooError

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
    pytest.skip("the exporters of older torch know no loops", allow_module_level=True)

CLIP = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32}
TEXT = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 64, "patch_size": 16}  # fmt: skip
TIME = {"tower": "timemamba", "embed_dim": 16, "depth": 1, "heads": 2}
MUSE = {"clip": {"projection_dim": 16, "text_config": TEXT, "vision_config": VISION}, "num_frames": 3, "max_words": 24,
        "depth": 1}  # fmt: skip
KINDS = {
    "videomamba": (lambda: VideoClassifier(3, **CLIP, class_names=["a", "b", "ü"]), {}, "logits"),
    "vivim": (lambda: VideoClassifier(3, **CLIP, network="vivim"), {}, "logits"),
    "image": (lambda: VideoClassifier(3, **CLIP | {"num_frames": None}), {}, "logits"),
    "crossed": (lambda: VideoClassifier(3, **CLIP, scan_order="spatiotemporal_v1"), {"input": "float32"}, "logits"),
    "features": (lambda: VideoClassifier(3, **CLIP), {"output": "features"}, "features"),
    "pretraining": (lambda: MaskedPretraining(16, 2, 4, 32, align_layers=1, target_dim=8), {}, "features"),
    "regression": (lambda: VideoRegressor(**CLIP, value_name="views", value_mean=4.0), {}, "value"),
    "actions": (
        lambda: ActionClassifier(
            5, TIME, 2, 32,
            vocabulary={"num_verbs": 3, "num_nouns": 12, "verb_names": ["take", "put", "wash"],
                        "noun_names": [f"noun {i}" for i in range(12)],
                        "actions": [[0, 0], [0, 1], [1, 2], [2, 3], [2, 4]]},
        ),
        {},
        "logits",
    ),
    "muse-video": (lambda: TextVideoRetrieval(**MUSE), {"tower": "video"}, "embedding"),
    "muse-one-way": (lambda: TextVideoRetrieval(**MUSE, learner="mamba"), {"tower": "video"}, "embedding"),
    "clip4clip-video": (
        lambda: TextVideoRetrieval(**MUSE | {"head": "sequential"}), {"tower": "video"}, "embedding",
    ),
    "mean-video": (lambda: TextVideoRetrieval(**MUSE | {"head": "mean"}), {"tower": "video"}, "embedding"),
    "muse-text": (lambda: TextVideoRetrieval(**MUSE), {"tower": "text"}, "embedding"),
    "dual-video": (
        lambda: DualEncoder(TIME, TEXT, 8, num_frames=2, image_size=32, max_words=24), {"tower": "video"}, "embedding",
    ),
    "dual-text": (
        lambda: DualEncoder(TIME, TEXT, 8, num_frames=2, image_size=32, max_words=24), {"tower": "text"}, "embedding",
    ),
}  # fmt: skip


def made(kind):
    """A model of a kind in which nothing is as it starts: gates and last layers of 0 would hide what is before them."""
    torch.manual_seed(0)
    model = KINDS[kind][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def videos(model, batch, dtype=torch.uint8):
    sizes = model.preprocessing
    shape = (batch, 3, sizes["num_frames"], sizes["image_size"], sizes["image_size"])
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(batch))
    return video if dtype == torch.uint8 else video / 255


@torch.no_grad()
def answers(model, options, batch):
    """An input, and what the model itself says to it on its own backend."""
    if options.get("tower") == "text":
        texts = ["a red ball", "it grows", "two words and a third"][:batch]
        ids = model.net.tokenizer(texts)
        padded = torch.full((batch, model.net.tokenizer.max_words), int(ids.max()))
        padded[:, : ids.shape[1]] = ids
        return padded, model.encode_text(texts)
    video = videos(model, batch, torch.float32 if options.get("input") == "float32" else torch.uint8)
    features = options.get("output") == "features" or isinstance(model, MaskedPretraining)
    return video, model.forward_features(video) if features else model(video)


QUICK = ("videomamba", "muse-text")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported(kind)``: a model of a kind in eval mode, and what `zoo.export` says of its ONNX file."""

    @cache
    def export(kind):
        model = made(kind)
        done = zoo.export(model, tmp_path_factory.mktemp(kind) / "model.onnx", **KINDS[kind][1])
        return model.eval(), done

    return export


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_onnx_runtime_gives_what_the_model_gives(exported, kind):
    _, options, output = KINDS[kind]
    model, done = exported(kind)
    onnx.checker.check_model(str(done.path), full_check=True)
    runtime = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    (given,), (gives,) = runtime.get_inputs(), runtime.get_outputs()
    assert (given.shape[0], gives.shape[0]) == ("batch", "batch") and gives.name == done.output == output
    for batch in (1, 3):
        tensor, expected = answers(model, options, batch)
        (found,) = runtime.run(None, {given.name: tensor.numpy()})
        assert np.abs(found - expected.numpy()).max() <= 1e-5 * expected.abs().max()
    assert done.difference <= 1e-4 * done.largest
    assert [file.name for file in done.path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth", "frames"), [("videomamba-ti-k400", 24, 8), ("videomamba-m-k400", 32, 2)])
def test_a_model_of_full_size(name, depth, frames, tmp_path):
    """Fresh weights; the export itself compares it, at batches of 3 and 1, which takes a minute of a core."""
    done = zoo.export(zoo.create(name, num_frames=frames), tmp_path / "model.onnx")
    assert done.shape == (3, frames, 224, 224) and done.difference <= 1e-4 * done.largest
    assert [node.op_type for node in onnx.load(done.path).graph.node].count("Scan") == depth


def test_the_file_tells_how_to_use_it(exported):
    file = onnx.load(exported("videomamba")[1].path)
    found = {entry.key: entry.value for entry in file.metadata_props}
    assert file.opset_import[0].version == OPSET and not file.opset_import[0].domain and len(file.opset_import) == 1
    assert json.loads(found["class_names"]) == ["a", "b", "ü"] and found["output"] == "logits"
    prepared = json.loads(found["preprocessing"])
    assert prepared["mean"] == pytest.approx([0.485, 0.456, 0.406]) and prepared["num_frames"] == 4
    assert [node.op_type for node in file.graph.node].count("Scan") == 1  # for both directions of the block
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_the_text_tower_brings_its_tokenizer(exported):
    model, done = exported("muse-text")
    runtime = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    found = runtime.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_str(found["tokenizer"])
    tokenizer.enable_truncation(int(found["max_words"]))
    tokenizer.enable_padding(length=int(found["max_words"]), pad_id=int(found["padding"]))
    texts = ["A cat", "the long story of a cat that sleeps all day and all night and all week"]
    ids = np.array([entry.ids for entry in tokenizer.encode_batch(texts)], np.int64)
    with torch.no_grad():
        expected = model.encode_text(texts)
    assert np.abs(runtime.run(None, {"ids": ids})[0] - expected.numpy()).max() < 1e-5


def test_the_model_is_left_as_it_was():
    model = made("videomamba")
    model.net.head.requires_grad_(False)
    with part_of(model) as part:
        assert not part.module.training and not any(p.requires_grad for p in model.parameters())
    assert model.training and model.net.training
    assert not model.net.head.weight.requires_grad and model.net.pos_embed.requires_grad


@pytest.mark.slow
def test_weights_of_a_large_model_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_INLINE", 1000)
    model = made("videomamba")
    for _ in range(2):  # the second replaces the first, and its weights
        zoo.export(model, tmp_path / "model.onnx")
        names = sorted(file.name for file in tmp_path.iterdir())
        assert len(names) == 2 and names[1] == "model.onnx" and names[0].endswith(".data")
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in names:
        (tmp_path / name).rename(moved / name)
    video = videos(model, 1)
    found = onnxruntime.InferenceSession(moved / "model.onnx").run(None, {"video": video.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - model.eval()(video).numpy()).max() < 1e-5


PLAIN = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("zoo", "lightning_modules", "datamodules", "hub", "numba", "lightning"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocker())
import torch
torch.set_num_threads(1)
extra = {"metadata.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
clips = torch.load(sys.argv[2], weights_only=True)
torch.save([[model(clip) for clip in clips], extra["metadata.json"]], sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["videomamba", pytest.param("muse-video", marks=pytest.mark.slow)])
def test_pt2_runs_without_our_packages(tmp_path, kind):
    _, options, _ = KINDS[kind]
    model = made(kind)
    zoo.export(model, tmp_path / "model.pt2", **options)
    model.eval()
    pairs = [answers(model, options, batch) for batch in (1, 3)]
    torch.save([given for given, _ in pairs], tmp_path / "clips.pt")
    files = [str(tmp_path / name) for name in ("model.pt2", "clips.pt", "found.pt")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PLAIN, *files], check=True, cwd=tmp_path, env=environment, timeout=600)
    found, metadata = torch.load(files[2], weights_only=True)
    for (_, expected), result in zip(pairs, found, strict=True):
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert json.loads(metadata)["model"] == type(model).__name__
    # The weights of the other tower stay at home.
    names = torch.export.load(files[0]).state_dict
    assert names and not [name for name in names if "text_model" in name or "text_projection" in name]


# Refusals -----------------------------------------------------------------------------------------------------------


class Own(BaseModule):
    """Somebody else's module, whose result depends on a value in a way that no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Identity()

    def training_step(self, batch, batch_idx):
        return 0

    def forward(self, video):
        return video.float().mean(dim=(1, 2, 3, 4))[: int(video.sum())]


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (lambda: made("muse-video"), {}, "TextVideoRetrieval has two towers"),
        (lambda: made("videomamba"), {"tower": "video"}, "has no tower for text; omit tower"),
        (lambda: made("videomamba"), {"format": "tflite"}, "choose onnx or pt2"),
        (lambda: made("videomamba"), {"output": "x"}, "choose scores or features"),
        (lambda: made("videomamba"), {"input": "x"}, "choose uint8 or float32"),
        (lambda: torch.nn.Linear(2, 2), {}, "Linear is not a model of the zoo"),
        (lambda: Own(), {}, "Own cannot be exported"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_sentence(tmp_path, model, options, sentence):
    with pytest.raises(ZooError, match=sentence) as caught:
        zoo.export(model(), tmp_path / "model.onnx", **options)
    assert str(caught.value).count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    hub.save(made("muse-video"), tmp_path / "muse")
    hub.save(made("videomamba"), tmp_path / "foreign")
    config = tmp_path / "foreign/config.json"
    config.write_text(config.read_text().replace("lightning_modules.VideoClassifier", "os.system"))
    for words, sentence in (
        ([tmp_path / "muse", "out.onnx"], "pass tower text or video"),
        ([tmp_path / "foreign", "out.onnx"], "os.system"),
        ([tmp_path / "muse", "out.bin"], "ends neither in .onnx nor in .pt2"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["export", str(words[0]), str(tmp_path / words[1])])
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and sentence in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["foreign", "muse"]


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("old")
    monkeypatch.setattr(under_test, "TOLERANCE", 0.0)
    with pytest.raises(ZooError, match="differ from the model's by up to"):
        zoo.export(made("videomamba"), tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


FULL = """
import resource, sys
import torch
torch.set_num_threads(1)
import hub, zoo
from lightning_modules.ops import available_backends
model = zoo.load(sys.argv[1])
available_backends()  # kernels are compiled, and kept in files
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
from zoo.deploy import onnx_file, session
onnx_file.MOST_INLINE = int(sys.argv[3])
from zoo.commands.main import report
report(lambda: zoo.export(model, sys.argv[4]), program="zoo")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "inline"), [("model.onnx", 0), ("model.pt2", 0)])
def test_a_full_disk_leaves_nothing(tmp_path, name, inline):
    """As on a full disk, no file grows beyond 20 kB."""
    hub.save(made("videomamba"), tmp_path / "model")
    out = tmp_path / "out"
    words = [tmp_path / "model", 20_000, inline, out / name]
    result = subprocess.run([sys.executable, "-c", FULL, *map(str, words)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("zoo: ") and "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists() or not list(out.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(SystemExit) as caught:
        main(["export", "gone", str(tmp_path / "model.onnx")])  # said before the model is looked for
    error = capsys.readouterr().err
    assert (caught.value.code, error) == (
        1, "zoo: ONNX files need onnxscript; install it: pip install 'video-mamba-zoo[onnx]'.\n",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())
