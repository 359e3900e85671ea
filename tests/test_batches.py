"""docs/batches.md kept: a real batch of every DataModule goes through every module that accepts it."""

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import VideoCSV, VideoFolder
from datamodules.synthetic import generate
from lightning_modules import VideoClassifier

CLASSES = ("grow", "move_left")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("batches") / "data", num_train=4, num_val=2, classes=CLASSES, size=(48, 40),
                    num_frames=6, num_workers=0, progress=False)  # fmt: skip


DATAMODULES = {
    "VideoFolder": lambda root, **kwargs: VideoFolder(root, **kwargs),
    "VideoCSV": lambda root, **kwargs: VideoCSV(root, classes="classes.txt", **kwargs),
}
MODULES = {
    "VideoClassifier": lambda: VideoClassifier(2, embed_dim=16, depth=1, num_frames=4, image_size=32),
    "VideoClassifier dense": lambda: VideoClassifier(2, 16, 1, num_frames=2, image_size=32, sampling="dense"),
}


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}], ids=["plain", "mixed"])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("datamodule", DATAMODULES)
def test_batches_fit(root, tmp_path, datamodule, module, mixing):
    data = DATAMODULES[datamodule](root, batch_size=2, num_workers=0, num_clips=2, **mixing)
    model = MODULES[module]()
    seen = {}
    for stage in ("training", "validation", "test", "predict"):
        step = getattr(model, f"{stage}_step")
        setattr(model, f"{stage}_step", lambda batch, i, s=stage, f=step: (seen.setdefault(s, batch), f(batch, i))[1])
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data, return_predictions=True)

    clip = model.preprocessing
    shape = (3, clip["num_frames"], clip["image_size"], clip["image_size"])
    for stage, batch in seen.items():
        views = (6,) if stage in ("test", "predict") else ()
        size = len(batch["label"])
        assert batch["video"].shape == (size, *views, *shape), stage
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert len(batch["path"]) == size and all(isinstance(path, str) for path in batch["path"])
        mixed = stage == "training" and bool(mixing)
        assert batch["video"].dtype == (torch.float32 if mixed else torch.uint8)
        assert ("target" in batch) == mixed
        if mixed:
            torch.testing.assert_close(batch["target"].sum(1), torch.ones(size))
    assert set(seen) == {"training", "validation", "test", "predict"}
    assert model.class_names == sorted(CLASSES)
