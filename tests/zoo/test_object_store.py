"""Two steps of training on s3:// of a store on loopback give the weights of two steps on local files."""

import fsspec
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import VideoCSV, VideoFolder
from datamodules.synthetic.writing import generate
from lightning_modules import VideoClassifier
from zoo.commands.main import main

CLASSES = ("grow", "move_left")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data/ with a folder per class, lists of it, and shards/."""
    folder = tmp_path_factory.mktemp("store")
    generate(folder / "data", num_train=10, num_val=2, num_test=2, classes=CLASSES, size=(48, 40), num_frames=8,
             num_workers=0, progress=False)  # fmt: skip
    for split in ("train", "val"):
        paths = sorted((folder / "data" / split).rglob("*.mp4"))
        rows = (f"{path.relative_to(folder / 'data').as_posix()},{path.parent.name}\n" for path in paths)
        (folder / "data" / f"{split}.csv").write_text("".join(rows))
    main(["shard", str(folder / "data"), "-o", str(folder / "shards"), "--max-size", "20KB"])
    assert len(list((folder / "shards").glob("train-*.tar"))) > 1
    return folder


@pytest.mark.parametrize(
    ("data", "place"),
    [(VideoFolder, "data"), (VideoCSV, "data"), (VideoFolder, "shards")],
    ids=["folder", "list", "tar"],
)
def test_training_from_an_object_store(root, object_store, data, place):
    fsspec.filesystem("s3").put(str(root / place), f"{object_store}/{place}", recursive=True)
    runs = []
    for where in (root, object_store):
        seed_everything(0, verbose=False)
        model = VideoClassifier(num_classes=2, embed_dim=16, depth=1, num_frames=4, image_size=32,
                                class_names=list(CLASSES))  # fmt: skip
        # More than one reader: after a fork nothing is left of what the store's client has running.
        videos = data(f"{where}/{place}", batch_size=4, num_frames=4, image_size=32, num_workers=2)
        trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                          enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(model, videos)
        assert trainer.global_step == 2
        runs.append((model.state_dict(), trainer.callback_metrics))
    (weights, metrics), (remote, remote_metrics) = runs
    assert metrics.keys() == remote_metrics.keys() and torch.isfinite(metrics["val/loss"])
    for name, value in weights.items():
        assert torch.equal(remote[name], value), name
