"""Masked pretraining: the published loss (golden tensors), what learns and is saved, and classifiers that follow."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from numpy.random import SeedSequence
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hub
import lightning_modules.tasks.masked_pretraining as under_test
from hub.convert.videomamba import to_zoo
from lightning_modules import MaskedPretraining, VideoClassifier
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD, ClipTeacher
from lightning_modules.nets.masking import MASK_TYPES
from lightning_modules.training.losses import alignment_loss
from zoo.build import initialise, load

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES = {"projection_dim": 12, "vision_config": {"image_size": 32, "patch_size": 8, **TOWER}}
TINY = dict(embed_dim=32, depth=3, num_frames=4, image_size=32, patch_size=8, target_dim=12)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(7)
    return ClipTeacher(sizes=SIZES)


def tiny(teacher=None, **kwargs) -> MaskedPretraining:
    torch.manual_seed(0)
    return MaskedPretraining(**{**TINY, **kwargs}, teacher=teacher)


def clips(count=4, frames=4, seed=1):
    return torch.randint(256, (count, 3, frames, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(seed))


# The published numbers ----------------------------------------------------------------------------------------------


def test_loss_is_the_official_one(golden, official_teacher, monkeypatch):
    """The official student and teacher on the official clip under the official mask give the official loss."""
    student, _ = golden("videomamba_pretrain")
    tensors, teacher = official_teacher
    module = MaskedPretraining(
        64, 3, 4, 64, target_dim=32, variant="official", mean=[0.0] * 3, std=[1.0] * 3, teacher=teacher
    ).eval()
    weights = {k.removeprefix("state_dict."): v for k, v in student.items() if k.startswith("state_dict.")}
    module.load_state_dict(to_zoo(weights))
    shown = (~tensors["mask"]).nonzero()[:, 1].reshape(2, -1)
    drawn = {}

    def published(mask_type, ratio, batch, frames, side, *, attention, **_):
        drawn.update(mask_type=mask_type, ratio=ratio, attention=attention)
        return shown

    monkeypatch.setattr(under_test, "draw_visible", published)
    losses = module.clip_losses(student["input"])
    torch.testing.assert_close(losses.mean(), tensors["loss"], rtol=1e-4, atol=1e-5)
    assert (drawn["mask_type"], drawn["ratio"]) == ("attention", 0.8)
    torch.testing.assert_close(drawn["attention"].flatten(0, 1), tensors["attn"], rtol=1e-4, atol=1e-5)
    output = F.normalize(module(student["input"], shown), dim=-1)
    torch.testing.assert_close(output, tensors["student_output"], rtol=1e-4, atol=1e-5)


def test_alignment_losses_by_hand():
    torch.manual_seed(0)
    student, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    cosine = F.cosine_similarity(student, target, dim=-1)
    torch.testing.assert_close(alignment_loss(student, target), 2 - 2 * cosine)
    unit = (student / student.norm(dim=-1, keepdim=True) - target / target.norm(dim=-1, keepdim=True)).square()
    torch.testing.assert_close(alignment_loss(student, target), unit.sum(-1))
    torch.testing.assert_close(alignment_loss(student, target, "mse"), unit.mean(-1))
    difference = (student - target).abs()
    torch.testing.assert_close(alignment_loss(student, target, "mse", "none"), difference.square().mean(-1))
    huber = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5)
    torch.testing.assert_close(alignment_loss(student, target, "smooth_l1", "none"), huber.mean(-1))


# What is asked of the teacher ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["official", "all_blocks"])
def test_the_teacher_sees_pixels_of_the_variant(teacher, variant):
    module, video = tiny(teacher, variant=variant, tubelet_size=2), clips()
    pixels = module._teacher_pixels(module.normalise(video))
    mean, std = (module.mean, module.std) if variant == "official" else (CLIP_MEAN, CLIP_STD)
    mean, std = (torch.as_tensor(v).view(3, 1, 1, 1) for v in (mean, std))
    torch.testing.assert_close(pixels, (video[:, :, 1::2] / 255 - mean) / std)


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_masks_follow_the_seed(teacher, mask_type):
    module, video = tiny(teacher, mask_type=mask_type, mask_ratio=0.6).eval(), clips()
    with torch.no_grad():
        first, again, other = (module.clip_losses(video, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
        own = [torch.Generator().manual_seed(s) for s in (5, 6, 7, 8)]
        together = module.clip_losses(video, own)
        alone = module.clip_losses(video[2:3], [torch.Generator().manual_seed(7)])
    assert first.shape == (4,) and torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(alone, together[2:3])


def test_several_layers_meet_in_order(teacher):
    """With decoders that copy, each student block is compared with its own block of the teacher."""
    module = tiny(teacher, align_layers=2, align_interval=2, mask_ratio=0.0).eval()
    assert (module.net.aligned, module._teacher_blocks) == ([0, 2], [1, 2])
    video = clips()
    with torch.no_grad():
        hidden = teacher(module._teacher_pixels(module.normalise(video)), 4, [1, 2]).hidden
        targets = teacher.project(hidden)
        expected = alignment_loss(module(video), targets).mean(dim=(0, 2))
        torch.testing.assert_close(module.clip_losses(video), expected)
    assert len(module.net.clip_decoder) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_type": "cube"}, "mask_type is 'cube'; choose one of random, tube"),
        ({"mask_ratio": 1.2}, "mask_ratio is 1.2"),
        ({"norm": "none"}, "which needs unit vectors; set norm: l2"),
        ({"loss": "l1"}, "norm is 'l2' and loss 'l1'"),
        ({"align_layers": 4}, "4 blocks, 1 apart, cannot be aligned in a network of 3 blocks"),
        ({"variant": "raw"}, "variant is 'raw'"),
        ({"image_size": 30}, "image_size 30 is not a multiple"),
    ],
)
def test_mistakes_are_named_when_it_is_built(arguments, message):
    with pytest.raises(ModelError, match=message):
        tiny(**arguments)


def test_mistakes_about_the_teacher_are_named_before_the_first_step(teacher, tmp_path):
    for module, message in (
        (tiny(), "needs a teacher; set model.teacher to a CLIP checkpoint"),
        (tiny("/nowhere/at/all"), "'/nowhere/at/all' cannot be read"),
        (tiny(teacher, target_dim=8), "features have 12 channels and target_dim is 8; set model.target_dim to 12"),
    ):
        with pytest.raises(ModelError, match=message):
            trainer(tmp_path).fit(module, datamodule=Data())
    with pytest.raises(ModelError, match="The teacher: 2 blocks, 3 apart, cannot be aligned in a network of 3"):
        tiny(teacher, align_layers=2, align_interval=1, teacher_interval=3).clip_losses(clips())


# Training -----------------------------------------------------------------------------------------------------------


class Clips(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        noise = torch.randint(0, 200, (3, 4, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        return {"video": noise + 14 * (i % 4), "index": i if i else -1}


class Data(LightningDataModule):
    """Clips without labels, the first of them unreadable."""

    batch_size = 8

    def train_dataloader(self):
        return DataLoader(Clips(), batch_size=8)

    val_dataloader = train_dataloader


def trainer(folder, **kwargs) -> Trainer:
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    kwargs = {"max_epochs": 1, "enable_checkpointing": False, **kwargs}
    return Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **kwargs)


@pytest.fixture(scope="module", params=["all_blocks", pytest.param("official", marks=pytest.mark.slow)])
def trained(request, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    module = tiny(teacher, variant=request.param, optim=dict(lr=3e-3, warmup_epochs=0), drop_path=0.2)
    fresh = {name: weight.clone() for name, weight in module.state_dict().items()}
    asked = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    run = trainer(folder, max_epochs=8)
    before = run.validate(module, datamodule=Data(), verbose=False)[0]["val/loss"]
    run.fit(module, datamodule=Data())
    run.save_checkpoint(folder / "run.ckpt")
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, asked[name]), name
    return module, run, folder, fresh, before


def test_the_loss_falls(trained):
    module, run, _, _, before = trained
    after = run.validate(module, datamodule=Data(), verbose=False)[0]["val/loss"]
    assert after < before - 0.1
    assert after == run.validate(module, datamodule=Data(), verbose=False)[0]["val/loss"]  # the same masks every time


def test_validation_leaves_out_unreadable_videos(trained):
    """The mean over the others, each under a mask that its index alone decides."""
    module, run, *_ = trained
    module.eval()
    mask_of = [torch.Generator().manual_seed(int(SeedSequence([i + 1]).generate_state(1)[0])) for i in range(16)]
    with torch.no_grad():
        losses = [module.clip_losses(Clips()[i]["video"][None], mask_of[i : i + 1]).item() for i in range(1, 16)]
    logged = run.validate(module, datamodule=Data(), verbose=False)[0]["val/loss"]
    assert logged == pytest.approx(sum(losses) / 15, rel=1e-5)


def test_what_was_trained_and_what_is_saved(trained):
    module, _, folder, fresh, _ = trained
    moved = {name for name, weight in module.state_dict().items() if not torch.equal(weight, fresh[name])}
    frozen = {name for name in fresh if name.startswith(("net.layers.2.", "net.norm_f."))}
    assert moved == set(fresh) - (frozen if module.hparams.variant == "official" else set())
    content = torch.load(folder / "run.ckpt", weights_only=True)
    assert set(content["state_dict"]) == set(fresh)
    assert not any("teacher" in name for name in content["state_dict"])
    assert content["hyper_parameters"]["_class_path"] == "lightning_modules.MaskedPretraining"
    assert set(content["hyper_parameters"]) - {"_class_path"} == set(module.config["init_args"])
    assert not set(module.training_only()) & set(content["hyper_parameters"])


def test_it_is_loaded_without_a_teacher(trained, tmp_path):
    module, _, folder, *_ = trained
    hub.save(module, tmp_path / "model")
    module.eval()
    with torch.no_grad():
        for source in (folder / "run.ckpt", tmp_path / "model"):
            again = load(source)
            assert again.config == module.config
            assert torch.equal(again(clips()), module(clips()))
            tokens = again.forward_features(clips(), pool=None)
            assert tokens.shape == (4, 1 + 4 * 16, 32)
            assert torch.equal(again.forward_features(clips()), tokens[:, 0])
        longer = load(folder / "run.ckpt", num_frames=8)
        assert longer(clips(frames=8)).shape == (1, 4, 1 + 8 * 16, 12)


def test_it_starts_from_its_own_kind_or_from_a_classifier(trained, tmp_path):
    """From the first with the decoder, whatever the frames; from the second without."""
    module, _, folder, *_ = trained
    more = tiny(variant=module.hparams.variant, num_frames=8)
    initialise(more, folder / "run.ckpt")
    ours, theirs = more.net.state_dict(), module.net.state_dict()
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"temporal_pos_embedding"}
    classifier = VideoClassifier(5, 32, 3, num_frames=4, image_size=32, patch_size=8)
    hub.save(classifier, tmp_path / "classifier")
    fresh = tiny(variant=module.hparams.variant)
    decoder = {k: v.clone() for k, v in fresh.net.state_dict().items() if k.startswith("clip_decoder.")}
    assert decoder and initialise(fresh, tmp_path / "classifier") is False
    ours = fresh.net.state_dict()
    for name, weight in (classifier.net.state_dict() | decoder).items():
        assert name.startswith("head.") or torch.equal(ours[name], weight), name


def test_a_classifier_starts_from_it(trained):
    """All but head, decoder and, for the official variant, the final norm; other frames are interpolated."""
    module, _, folder, *_ = trained
    torch.manual_seed(1)
    classifier = VideoClassifier(5, 32, 3, num_frames=8, image_size=32, patch_size=8)
    head = classifier.net.head.weight.clone()
    assert initialise(classifier, folder / "run.ckpt") is False
    ours, theirs = classifier.net.state_dict(), module.net.state_dict()
    different = {name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])}
    official = module.hparams.variant == "official"
    assert different - {"norm_f.weight"} == {"head.weight", "head.bias", "temporal_pos_embedding"}
    assert torch.equal(ours["norm_f.weight"], torch.ones(32)) if official else "norm_f.weight" not in different
    assert torch.equal(ours["head.weight"], head)
    expected = nn.functional.interpolate(
        theirs["temporal_pos_embedding"].mT, size=8, mode="linear", align_corners=False
    ).mT
    torch.testing.assert_close(ours["temporal_pos_embedding"], expected)


def test_the_final_norm_of_an_official_file_is_not_taken_over(tmp_path):
    module = tiny(variant="official")
    nn.init.constant_(module.net.norm_f.weight, 3.0)
    hub.save(module, tmp_path / "model")
    classifier = VideoClassifier(5, 32, 3, num_frames=4, image_size=32, patch_size=8)
    initialise(classifier, tmp_path / "model")
    assert classifier.net.norm_f.weight.eq(1).all()
    assert load(tmp_path / "model").net.norm_f.weight.eq(3).all()


def test_a_step_is_repeatable(teacher, tmp_path, monkeypatch):
    """Masks and stochastic depth depend on the run's seed and the step, not on what was drawn before."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    results = []
    for noise in (1, 2):
        module = tiny(teacher, drop_path=0.2, optim=dict(lr=1e-3))
        torch.manual_seed(noise)
        trainer(tmp_path).fit(module, datamodule=Data())
        results.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))


def test_bf16_with_recomputed_blocks(teacher, tmp_path):
    module = tiny(teacher, activations="memory")
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(module, datamodule=Data())
    assert run.callback_metrics["train/loss"].isfinite()
    assert all(p.dtype == torch.float32 for p in module.parameters())


# Several processes --------------------------------------------------------------------------------------------------


class Shares(Data):
    """Dealt out in turn, so that a batch of 4 in each of two processes holds what one of 8 does in one process."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        share = range(self.trainer.global_rank, 16, self.trainer.world_size)
        return DataLoader(Clips(), self.batch_size, sampler=share)

    def val_dataloader(self):
        """15 clips: two processes get 8 each, the last being one that the other has too."""
        count = 15 + (self.trainer.world_size - 1)
        share = range(self.trainer.global_rank, count, self.trainer.world_size)
        return DataLoader(Clips(), self.batch_size, sampler=[1 if i == 15 else i for i in share])


class Losses(Callback):
    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean").item())

    def on_validation_end(self, trainer, pl_module):
        self.val.append(trainer.callback_metrics["val/loss"].item())


def fit(folder, name, batch_size, variant, **kwargs):
    """Three epochs of two steps; the losses, with those of validation, and a checkpoint of this name."""
    seed_everything(0, verbose=False)
    module = tiny(ClipTeacher(sizes=SIZES), variant=variant, mask_ratio=0.6, optim=dict(lr=3e-3, warmup_epochs=1))
    losses = Losses()
    run = trainer(folder, max_epochs=3, callbacks=[losses], use_distributed_sampler=False, **kwargs)
    run.fit(module, datamodule=Shares(batch_size))
    run.save_checkpoint(folder / f"{name}.ckpt")
    return {"train": losses.train, "val": losses.val}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Under ddp and fsdp2, for both variants: the same masks, losses and weights."""
    body = f"""
        import importlib.util, json, sys, torch
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        folder, results = Path({str(tmp_path)!r}), {{}}
        for strategy in ("ddp", "fsdp2"):
            for variant in ("all_blocks", "official"):
                name = f"{{strategy}}-{{variant}}"
                results[name] = helpers.fit(folder, name, 4, variant, devices=2, strategy=strategy)
        rank = torch.distributed.get_rank()
        (folder / f"{{rank}}.json").write_text(json.dumps(results))
        # Lightning leaves the process group to the interpreter's exit, where a peer that is gone can abort the other.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    """
    (tmp_path / "two.py").write_text(textwrap.dedent(body))
    run = subprocess.run([sys.executable, tmp_path / "two.py"], timeout=600, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "0.json").read_text())
    assert results == json.loads((tmp_path / "1.json").read_text())
    for variant in ("all_blocks", "official"):
        alone = fit(tmp_path, "alone", 8, variant)
        assert len(alone["train"]) == len(set(alone["train"])) == 6 and alone["val"][-1] < alone["val"][0]
        weights = torch.load(tmp_path / "alone.ckpt", weights_only=True)["state_dict"]
        for strategy in ("ddp", "fsdp2"):
            name = f"{strategy}-{variant}"
            for kind, losses in alone.items():
                assert results[name][kind] == pytest.approx(losses, rel=1e-4), (name, kind)
            theirs = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"]
            assert list(theirs) == list(weights)
            for key, weight in weights.items():
                torch.testing.assert_close(theirs[key], weight, rtol=1e-4, atol=1e-5)
