"""VideoClassifier through real Trainers: config, scores, checkpoints, several processes."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lightning_modules import VideoClassifier
from lightning_modules.errors import ModelError

TINY = dict(num_classes=3, embed_dim=32, depth=2, num_frames=2, image_size=16)


def build(**kwargs):
    torch.manual_seed(0)
    return VideoClassifier(**{**TINY, **kwargs}).eval()


class Clips(Dataset):
    """Clips of one brightness per class."""

    def __init__(self, length, views=None):
        self.length, self.views = length, views

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        shape = (3, 2, 16, 16) if self.views is None else (self.views, 3, 2, 16, 16)
        noise = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        return {"video": noise + 80 * (i % 3), "label": i % 3, "index": i, "path": f"{i}.mp4"}


class ClipData(LightningDataModule):
    class_names = ["dark", "grey", "bright"]

    def train_dataloader(self):
        return DataLoader(Clips(24), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Clips(7), batch_size=2)

    def test_dataloader(self):
        return DataLoader(Clips(7, views=3), batch_size=2)


def trainer(tmp_path, **kwargs):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    return Trainer(**{**dict(max_epochs=12, accelerator="cpu", default_root_dir=tmp_path), **quiet, **kwargs})


def test_config_holds_the_network_and_not_the_training():
    model = build(optim=dict(lr=0.5), drop_path=0.3)
    config = model.config
    assert config["class_path"] == "lightning_modules.VideoClassifier"
    assert config["init_args"]["embed_dim"] == 32
    assert config["init_args"]["mean"] == [0.485, 0.456, 0.406]
    assert not set(config["init_args"]) & set(VideoClassifier.training_only())
    assert {"optim", "drop_path", "label_smoothing"} <= set(VideoClassifier.training_only())
    assert json.loads(json.dumps(config)) == config
    assert VideoClassifier(**config["init_args"]).config == config


def test_uint8_and_float_input_are_normalised_alike():
    model = build(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    video = torch.randint(0, 256, (2, 3, 2, 16, 16), dtype=torch.uint8)
    expected = torch.stack(
        [(video[:, c] / 255 - m) / s for c, (m, s) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.3)])], 1
    )
    torch.testing.assert_close(model.normalise(video), expected)
    torch.testing.assert_close(model(video), model.net(expected))
    torch.testing.assert_close(model(video.float() / 255), model(video))


def test_scores_are_the_mean_softmax_over_views():
    model = build()
    views = torch.randint(0, 256, (2, 4, 3, 2, 16, 16), dtype=torch.uint8)
    expected = sum(model(views[:, v]).softmax(1) for v in range(4)) / 4
    torch.testing.assert_close(model.predict_scores(views), expected)


def test_image_model_takes_images_and_one_frame_clips():
    model = build(num_frames=None)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(model(image), model(image.unsqueeze(2)))
    with pytest.raises(ModelError, match="image model and the clip has 2 frames"):
        model(torch.zeros(1, 3, 2, 16, 16))


def test_soft_targets_and_label_smoothing_enter_the_loss():
    model = build(label_smoothing=0.1)
    model.log = lambda *args, **kwargs: None
    video, label = torch.rand(2, 3, 2, 16, 16), torch.tensor([0, 2])
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    log_p = model(video).log_softmax(1)
    smoothed = 0.9 * soft + 0.1 / 3
    loss = model.training_step({"video": video, "label": label, "target": soft}, 0)
    torch.testing.assert_close(loss, -(smoothed * log_p).sum(1).mean())
    plain = model.training_step({"video": video, "label": label}, 0)
    torch.testing.assert_close(plain, -((0.9 * F.one_hot(label, 3) + 0.1 / 3) * log_p).sum(1).mean())


def test_learns_tests_with_views_and_leaves_a_checkpoint_that_describes_itself(tmp_path):
    model = build(optim=dict(lr=5e-3, warmup_epochs=1), label_smoothing=0.0).train()
    run = trainer(tmp_path, max_epochs=40)
    run.fit(model, datamodule=ClipData())
    assert run.callback_metrics["val/top1"] == 1.0
    tested = run.test(model, datamodule=ClipData(), verbose=False)[0]
    assert tested["test/top1"] == 1.0
    assert model.class_names == ["dark", "grey", "bright"]

    run.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert content["hyper_parameters"]["_class_path"] == "lightning_modules.VideoClassifier"
    assert "optim" not in content["hyper_parameters"]
    again = VideoClassifier.load_from_checkpoint(tmp_path / "run.ckpt").eval()
    video = Clips(1)[0]["video"][None]
    assert torch.equal(again(video), model.eval()(video))
    assert again.config == model.config


def test_learning_rates_follow_warm_up_and_cosine(tmp_path):
    model = build(optim=dict(lr=1e-2, warmup_lr=1e-3, min_lr=1e-4, warmup_epochs=2)).train()
    rates = []
    model.on_train_batch_end = lambda *args: rates.append(model.optimizers().param_groups[0]["lr"])
    trainer(tmp_path, max_epochs=4, limit_val_batches=0).fit(model, datamodule=ClipData())
    assert len(rates) == 12  # 4 epochs of 3 steps, warm-up over the first 6
    assert rates[2] == pytest.approx(1e-3 + 9e-3 * 3 / 6, rel=0.35)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 2e-3


@pytest.mark.parametrize(("scale_all", "start"), [(True, 4e-3), (False, 1e-3)])
def test_learning_rates_scale_with_the_clips_per_step(tmp_path, scale_all, start):
    """8 clips a batch, 2 batches accumulated, a recipe written for 4 clips: four times the learning rate."""
    model = build(optim=dict(lr=1e-2, warmup_lr=1e-3, warmup_epochs=1, lr_samples=4, scale_all_lr=scale_all)).train()
    seen = {}

    def record():
        group = model.optimizers().param_groups[-1]
        seen.update(first=group["lr"], peak=group["initial_lr"])

    model.on_train_start = record
    data = ClipData()
    data.batch_size = 8
    quiet = dict(limit_val_batches=0, accumulate_grad_batches=2, enable_checkpointing=False)
    trainer(tmp_path, max_epochs=2, **quiet).fit(model, datamodule=data)
    assert seen["peak"] == pytest.approx(4e-2)
    assert seen["first"] == pytest.approx(start)


def test_a_learning_rate_of_nothing_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"lr is 0\.0; it has to be a finite number above 0"):
        trainer(tmp_path, max_epochs=1).fit(build(optim=dict(lr=0.0)), datamodule=ClipData())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fitted = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fitted.fit(build(), datamodule=ClipData())
    fitted.save_checkpoint(tmp_path / "run.ckpt")
    for changes, words in (
        ({"num_classes": 5}, "checkpoint has 3 classes and the model 5; set model.num_classes to 3"),
        ({"embed_dim": 16}, r"checkpoint is of another model: net\.cls_token has the shape \(1, 1, 32\) there"),
    ):
        run = trainer(tmp_path)
        for call in (run.test, run.validate, run.predict):
            with pytest.raises(ModelError, match=words):
                call(build(**changes), DataLoader(Clips(2)), ckpt_path=tmp_path / "run.ckpt")


def test_a_frozen_backbone_leaves_the_head_to_learn():
    model = build(freeze_backbone=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["net.head.weight", "net.head.bias"]


def test_other_classes_than_the_data_are_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match=r"data has 3 classes and the model 5; set model.num_classes to 3"):
        trainer(tmp_path).fit(build(num_classes=5), datamodule=ClipData())
    with pytest.raises(ModelError, match="Class 1 is 'x' in the model and 'grey' in the data"):
        trainer(tmp_path).fit(build(class_names=["dark", "x", "bright"]), datamodule=ClipData())
    with pytest.raises(ModelError, match="2 names for num_classes 3"):
        build(class_names=["a", "b"])


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    """7 videos over 2 processes: the sampler repeats one, the score must not count it twice."""
    model = build()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    alone = trainer(tmp_path).test(model, datamodule=ClipData(), verbose=False)[0]
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import importlib.util, json, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        model = helpers.build()
        model.load_state_dict(torch.load({str(tmp_path / "weights.pt")!r}))
        run = helpers.trainer({str(tmp_path)!r}, devices=2, strategy="ddp")
        result = run.test(model, datamodule=helpers.ClipData(), verbose=False)[0]
        if run.is_global_zero:
            open({str(tmp_path / "result.json")!r}, "w").write(json.dumps(result))
        # Lightning leaves the process group to the interpreter's exit, where a peer that is gone can abort the other.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        """)
    )
    run = subprocess.run([sys.executable, str(script)], timeout=600, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    together = json.loads((tmp_path / "result.json").read_text())
    assert together == pytest.approx(alone, rel=1e-5)
