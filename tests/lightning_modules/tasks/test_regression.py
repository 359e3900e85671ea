"""VideoRegressor through real Trainers: numbers, errors over distinct videos, checkpoints, mistakes."""

import json

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lightning_modules import VideoClassifier, VideoRegressor
from lightning_modules.errors import ModelError

TINY = dict(embed_dim=32, depth=2, num_frames=2, image_size=16)


def build(**kwargs):
    torch.manual_seed(0)
    return VideoRegressor(**{**TINY, **kwargs}).eval()


class Clips(Dataset):
    """Clips whose number is how bright they are, from 9 (dark) to 10."""

    def __init__(self, length, views=None):
        self.length, self.views = length, views

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        shape = (3, 2, 16, 16) if self.views is None else (self.views, 3, 2, 16, 16)
        noise = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        share = (i % 6) / 5
        video = noise + int(200 * share)
        return {"video": video, "value": torch.tensor(9 + share), "index": i if i != 6 else -1, "path": f"{i}.mp4"}


class ClipData(LightningDataModule):
    value_name, value_mean, class_names = "brightness", 9.5, None

    def train_dataloader(self):
        return DataLoader(Clips(24), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Clips(7), batch_size=2)

    def test_dataloader(self):
        return DataLoader(Clips(7, views=3), batch_size=2)

    predict_dataloader = test_dataloader


def trainer(tmp_path, **kwargs):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    return Trainer(**{**dict(max_epochs=40, accelerator="cpu", default_root_dir=tmp_path), **quiet, **kwargs})


def test_config_holds_the_network_and_not_the_training():
    model = build(optim=dict(lr=0.5), value_name="x", value_mean=3.0)
    config = model.config
    assert config["class_path"] == "lightning_modules.VideoRegressor"
    assert {"value_name": "x", "value_mean": 3.0}.items() <= config["init_args"].items()
    assert "optim" not in config["init_args"] and "num_classes" not in config["init_args"]
    assert json.loads(json.dumps(config)) == config
    assert VideoRegressor(**config["init_args"]).config == config
    classifier, regressor = VideoClassifier.training_only(), VideoRegressor.training_only()
    assert set(classifier) - set(regressor) == {"label_smoothing"} and not set(regressor) - set(classifier)


def test_the_number_is_the_networks_and_the_mean():
    model = build(value_mean=9.5)
    video = torch.randint(0, 256, (4, 3, 2, 16, 16), dtype=torch.uint8)
    alone = model.net(model.normalise(video))
    assert alone.shape == (4, 1)
    torch.testing.assert_close(model(video), alone[:, 0] + 9.5)
    torch.testing.assert_close(build()(video), alone[:, 0])  # without a mean
    with torch.autocast("cpu", torch.bfloat16):
        assert model(video).dtype == torch.float32  # bfloat16 has steps of 0.06 at 9.5
    image = build(num_frames=None)
    assert image(video[:, :, :1]).shape == image(video[:, :, 0]).shape == (4,)


def test_the_loss_is_the_mean_squared_error_and_views_are_averaged():
    model = build(value_mean=1.0)
    model.log = lambda *args, **kwargs: None
    views = torch.randint(0, 256, (2, 4, 3, 2, 16, 16), dtype=torch.uint8)
    said = torch.stack([model(views[:, v]) for v in range(4)])
    torch.testing.assert_close(model.predict_scores(views), said.mean(0))
    value = torch.tensor([0.3, 2.0])
    loss = model.training_step({"video": views[:, 0], "value": value}, 0)
    torch.testing.assert_close(loss, ((said[0, 0] - 0.3) ** 2 + (said[0, 1] - 2.0) ** 2) / 2)


def test_learns_tests_with_views_and_leaves_a_checkpoint_that_describes_itself(tmp_path):
    model = build(optim=dict(lr=5e-3, warmup_epochs=1)).train()
    run = trainer(tmp_path)
    run.fit(model, datamodule=ClipData())
    assert run.callback_metrics["val/mse"] < 0.03  # 0.117 for the mean
    (tested,) = run.test(model, datamodule=ClipData(), verbose=False)
    said = torch.stack([model.predict_scores(Clips(7, views=3)[i]["video"][None])[0] for i in range(6)])
    errors = said - torch.tensor([9 + share / 5 for share in range(6)])
    assert tested["test/mse"] == pytest.approx(float((errors**2).mean()), rel=1e-4)
    assert tested["test/mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-4)
    assert (model.value_name, model.value_mean) == ("brightness", 9.5)
    found = run.predict(model, datamodule=ClipData())
    assert [path for batch in found for path in batch["path"]] == [f"{i}.mp4" for i in range(6)]  # without the seventh
    torch.testing.assert_close(torch.cat([batch["values"] for batch in found]), said, rtol=1e-5, atol=1e-5)

    run.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert content["hyper_parameters"]["_class_path"] == "lightning_modules.VideoRegressor"
    again = VideoRegressor.load_from_checkpoint(tmp_path / "run.ckpt").eval()
    assert again.config == model.config and again.config["init_args"]["value_mean"] == 9.5
    video = Clips(1)[0]["video"][None]
    assert torch.equal(again(video), model.eval()(video))


def test_other_data_is_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match="The model predicts likes and the data has brightness; start from"):
        trainer(tmp_path).fit(build(value_name="likes"), datamodule=ClipData())
    with pytest.raises(ModelError, match="a number for each video, brightness, and no classes; train a VideoRegressor"):
        trainer(tmp_path).fit(VideoClassifier(2, **TINY), datamodule=ClipData())
    data = ClipData()
    data.value_name = None
    with pytest.raises(ModelError, match="The data has classes and no number for each video; train a VideoClassifier"):
        trainer(tmp_path).fit(build(), datamodule=data)
    with pytest.raises(ModelError, match="schedule is 'never'"):
        build(optim=dict(schedule="never"))
    with pytest.raises(ModelError, match="not a multiple of patch_size"):
        build(image_size=20)


def test_a_mean_of_the_models_own_stays(tmp_path):
    model = build(value_mean=3.0)
    model.adopt_value("brightness", 9.5)
    assert (model.value_name, model.value_mean, model.hparams["value_mean"]) == ("brightness", 3.0, 3.0)


def test_a_frozen_backbone_leaves_the_head_to_learn():
    model = build(freeze_backbone=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["net.head.weight", "net.head.bias"]
