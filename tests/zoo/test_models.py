"""Every registered model is built, and the official format is loaded at real sizes."""

import pytest
import torch

import zoo
from datamodules import Breakfast
from lightning_modules.ops import use_backend
from lightning_modules.tasks.classification import VideoClassifier
from zoo.configs import normalise
from zoo.registry import entries

ENTRIES = {entry.name: entry for entry in entries()}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_builds(name):
    entry = ENTRIES[name]
    config = {"class_path": entry.class_path, "init_args": entry.init_args}
    with torch.device("meta"):
        # Pretrained parts would have to be downloaded.
        module = zoo.create(name, **dict.fromkeys(entry.parts))
    assert module.config == normalise(config)
    assert getattr(module, "class_names", None) == entry.init_args.get("class_names")
    assert module.preprocessing["image_size"] <= module.preprocessing["short_side"]
    if entry.meta["params"] is not None:
        assert sum(parameter.numel() for parameter in module.parameters()) == entry.meta["params"]


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.weights and entry.weights.folder])
def test_shipped_weights_load(name):
    module = zoo.load(name)
    assert not module.training
    assert len(module.class_names) == module.num_classes


def randomised(module: VideoClassifier) -> VideoClassifier:
    """Every parameter away from its start, so that none can be mixed up or left out unseen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "nested"), [("videomamba-ti-in1k", True), ("videomamba-ti-k400-f8", False)])
def test_official_format_at_real_size(name, nested, tmp_path):
    source = randomised(zoo.create(name))
    weights = {key.removeprefix("net."): tensor for key, tensor in source.state_dict().items()}
    torch.save({"model": weights} if nested else weights, tmp_path / "official.pth")
    loaded = zoo.load(name, checkpoint=tmp_path / "official.pth")
    frames = source.preprocessing["num_frames"]
    video = torch.randint(256, (1, 3, frames, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(video), source(video))
    assert loaded.class_names == ENTRIES[zoo.info(name).name].init_args["class_names"]


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.meta["dataset"] in ("breakfast", "coin")])
def test_official_files_of_long_videos_load_with_the_names_of_the_annotations(name, tmp_path):
    """At reduced width and depth; frames and classes are those of the entry."""
    sizes = {"embed_dim": 16, "depth": 1, "image_size": 32}
    source = randomised(zoo.create(name, **sizes))
    weights = {key.removeprefix("net."): tensor for key, tensor in source.state_dict().items()}
    torch.save(weights, tmp_path / "official.pth")  # flat, as the authors' video files are
    loaded = zoo.load(name, checkpoint=tmp_path / "official.pth", **sizes)
    video = torch.randint(256, (1, 3, ENTRIES[name].meta["frames"], 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(video), source(video))
    if "breakfast" in name:
        loaded.adopt_classes(Breakfast("data").class_names)  # which refuses other names, or another order
        assert len(loaded.class_names) == 10
    else:
        assert len(loaded.class_names) == 180 and loaded.class_names[131] == "ReplaceCDDriveWithSSD"


def test_the_row_with_a_shorter_temporal_embedding(tmp_path):
    name, overrides = "videomamba-m-mask-breakfast-f64-r224", {"embed_dim": 32, "depth": 1}
    for frames in (32, 64):
        source = zoo.create(name, **overrides, num_frames=frames)
        weights = {key.removeprefix("net."): tensor for key, tensor in source.state_dict().items()}
        torch.save(weights, tmp_path / "official.pth")
        loaded = zoo.load(name, checkpoint=tmp_path / "official.pth", **overrides)
        assert loaded.net.temporal_pos_embedding.shape == (1, 64, 32)


def backends_agree(name: str, **overrides) -> None:
    module = randomised(zoo.create(name, **overrides))
    video = torch.rand(1, 3, module.preprocessing["num_frames"], 224, 224)
    answers = {}
    with torch.inference_mode():
        for backend in ("reference", "numba"):
            with use_backend(backend):
                answers[backend] = module(video)
    difference = (answers["numba"] - answers["reference"]).abs().max()
    assert 0 < difference <= 2e-5 * answers["reference"].abs().max()  # the bound of the project for full-size models


@pytest.mark.slow
def test_backends_agree_at_reduced_size():
    backends_agree("videomamba-ti-k400-f8", depth=2, num_frames=2)


@pytest.mark.slow
def test_backends_agree_at_full_size():
    backends_agree("videomamba-ti-k400-f8")
