"""What your own module needs: a network and a loss."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

import zoo
from datamodules.clips import ClipFormat
from lightning_modules import BaseModule, VideoClassifier
from lightning_modules.base import IMAGENET_MEAN, PREPROCESSING_DEFAULTS
from lightning_modules.errors import ModelError
from lightning_modules.training.optim import Optim
from zoo.registry import _user_entries

BATCHES = [{"video": torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8), "label": torch.tensor([0, 1])}] * 2


def network(outputs=2):
    return nn.Sequential(nn.Conv3d(3, 4, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, outputs))


class Plain(BaseModule):
    """The least there can be."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["video"]), batch["label"])


class Sized(Plain):
    def __init__(self, num_classes: int = 2, num_frames: int | None = 4, *extra, optim: Optim = Optim(lr=0.1), **rest):
        super(Plain, self).__init__()
        self.save_config(locals())
        self.net = network(num_classes)


def fit(module, folder):
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(BATCHES, batch_size=None))
    return trainer


def test_a_network_and_a_loss_train_and_are_loaded(tmp_path, monkeypatch):
    module = Plain()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    trainer = fit(module, tmp_path)
    assert all(not torch.equal(weight, before[name]) for name, weight in module.state_dict().items() if "bias" in name)
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["no_decay", "decay"]
    assert trainer.optimizers[0].defaults["betas"] == (0.9, 0.999)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    monkeypatch.setattr("zoo.registry._user_entries", dict(_user_entries))
    zoo.register("plain", Plain)
    video = torch.randint(256, (1, 3, 2, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(zoo.load(tmp_path / "plain.ckpt")(video), module.eval()(video))


def test_arguments_that_are_not_declared_have_the_classifiers_defaults():
    declared = {name: p.default for name, p in inspect.signature(VideoClassifier).parameters.items()}
    assert VideoClassifier(2, 16, 1).optim == Plain().optim
    assert declared.items() >= PREPROCESSING_DEFAULTS.items()
    assert torch.allclose(Plain().mean.flatten(), torch.tensor(IMAGENET_MEAN))


@pytest.mark.parametrize(("module", "frames"), [(Plain(), 16), (Sized(), 4), (Sized(num_frames=None), 1)])
def test_preprocessing_is_what_is_declared_and_defaults_for_the_rest(module, frames):
    expected = dict(num_frames=frames, image_size=224, short_side=224, sampling="sparse", frame_stride=4,
                    interpolation="bilinear")  # fmt: skip
    assert module.preprocessing == expected
    assert ClipFormat(**module.preprocessing).num_frames == frames


@pytest.mark.parametrize("optim", [Optim(lr=0.4, weight_decay=0.3), {"lr": 0.4, "weight_decay": 0.3}])
def test_the_optimiser_is_the_argument_or_the_default_with_changes(tmp_path, optim):
    used = fit(Sized(optim=optim), tmp_path).optimizers[0]
    assert used.defaults["lr"] == 0.4 and [group["weight_decay"] for group in used.param_groups] == [0.0, 0.3]
    assert fit(Sized(), tmp_path).optimizers[0].defaults["lr"] == 0.1


def test_options_of_the_optimiser_that_would_do_nothing_are_refused(tmp_path):
    class Lone(Plain):
        def __init__(self, *, lr: float = 0.1):
            super(Plain, self).__init__()
            self.save_config(locals())
            self.net = network()

    class Saved(Plain):
        def __init__(self, optim: Optim = Optim()):
            super(Plain, self).__init__()
            self.save_config(locals())

    class Own(Lone):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.training_arguments["lr"])

    with pytest.raises(ModelError, match="Lone declares lr, which is part of optim"):
        fit(Lone(), tmp_path)
    with pytest.raises(ModelError, match="Saved declares optim among what is saved"):
        Saved()
    assert fit(Own(lr=0.3), tmp_path).optimizers[0].defaults["lr"] == 0.3


def test_the_config_is_what_stands_before_the_star():
    module = Sized(3, None, optim=Optim(lr=0.5))
    assert module.config["init_args"] == {"num_classes": 3, "num_frames": None}
    assert module.training_arguments == {"optim": Optim(lr=0.5)}


def test_what_is_not_recorded_is_named():
    class Silent(Plain):
        def __init__(self, width: int = 2):
            super().__init__()

    class Partial(Plain):
        def __init__(self, width: int = 2):
            super().__init__()
            self.save_config({"height": width})

    with pytest.raises(ModelError, match=r"Silent has not recorded its argument 'width'; its constructor has to call"):
        Silent().config  # noqa: B018
    with pytest.raises(ModelError, match=r"Partial does not get the argument 'width'; pass locals\(\)"):
        Partial()


def test_weights_that_nothing_would_train_are_named(tmp_path):
    module = Plain()
    module.head = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"head\.weight is trainable and outside net"):
        fit(module, tmp_path)
    module.head.requires_grad_(False)
    fit(module, tmp_path)
    del module.net
    with pytest.raises(ModelError, match=r"Plain has no network; set self\.net"):
        fit(module, tmp_path)
