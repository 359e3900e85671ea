"""Self-distillation against the official head (golden tensors), the loss written out, and real trainings."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, Sampler

import hub
import zoo
from lightning_modules import SelfDistillation, VideoClassifier
from lightning_modules.callbacks import EMA
from lightning_modules.errors import ModelError

STUDENT = dict(num_classes=3, embed_dim=24, depth=2, num_frames=2, image_size=32)
TEACHER = dict(num_classes=5, embed_dim=16, depth=1, num_frames=2, image_size=32)
IMAGES = dict(num_frames=None)


class Clips(Dataset):
    """Random clips; training batches as after mixing on the device where `mixed`."""

    def __init__(self, frames=2, mixed=False):
        generator = torch.Generator().manual_seed(5)
        shape = (8, 3, frames, 32, 32)
        self.video = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        self.target = torch.rand(8, 3, generator=generator).softmax(1) if mixed else None
        self.video = self.video / 255 if mixed else self.video

    def __len__(self):
        return len(self.video)

    def __getitem__(self, i):
        item = {"video": self.video[i], "label": i % 3, "index": i, "path": str(i)}
        return item if self.target is None else {**item, "target": self.target[i]}


class Share(Sampler):
    """Every second clip, the other process has the others: Lightning's own sampler would shuffle them."""

    def __iter__(self):
        return iter(range(torch.distributed.get_rank(), 8, 2))

    def __len__(self):
        return 4


def batch_of(**kwargs):
    return next(iter(DataLoader(Clips(**kwargs), 4)))


def make(student=STUDENT, teacher=TEACHER, **kwargs):
    torch.manual_seed(3)
    return SelfDistillation(teacher=VideoClassifier(**teacher), **{**student, **kwargs})


def fit(model, folder, epochs=2, callbacks=(), ckpt=None, mixed=False, batch_size=4, **kwargs):
    seed_everything(0, verbose=False)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **quiet,
                      enable_checkpointing=False, use_distributed_sampler=False, **kwargs)  # fmt: skip
    frames = model.hparams.num_frames or 1
    sampler = Share() if trainer.world_size > 1 else None
    train = DataLoader(Clips(frames, mixed), batch_size, sampler=sampler)
    trainer.fit(model, train, DataLoader(Clips(frames), 4), ckpt_path=ckpt)
    return trainer


# The loss ------------------------------------------------------------------------------------------------------------


def test_the_projection_is_the_official_one(golden):
    tensors, sidecar = golden("videomamba_image_distill")
    sizes = sidecar["constructor"]
    weights = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    shape = dict(num_frames=None, image_size=sizes["img_size"])
    student = dict(num_classes=sizes["num_classes"], embed_dim=sizes["embed_dim"], depth=sizes["depth"], **shape)
    model = make(student, dict(num_classes=2, embed_dim=sizes["teacher_embed_dim"], depth=1, **shape)).eval()
    model.load_state_dict({k if k.startswith("distill_head.") else f"net.{k}": v for k, v in weights.items()})
    logits, tokens = model.net.forward_with_tokens(tensors["input"])
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 0], tensors["features"], rtol=1e-4, atol=1e-5)
    projected = F.normalize(model.distill_head(tokens), dim=-1)
    torch.testing.assert_close(projected, tensors["distill_features"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("loss", "kind"), [("cosine", {}), ("l2", {}), ("cosine", IMAGES)])
def test_the_loss_is_classification_plus_distance_of_all_tokens(loss, kind, mixed):
    model = make({**STUDENT, **kind}, {**TEACHER, **kind}, distill_loss=loss, distill_weight=0.5, label_smoothing=0.0)
    (teacher,) = model._teacher
    batch = batch_of(frames=1 if kind else 2, mixed=mixed)
    model.log = lambda *args, **kwargs: None
    total = model.training_step(batch, 0)

    video = batch["video"] if mixed else batch["video"].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (video - mean) / std
    x = x.squeeze(2) if kind else x
    student, target = model.net.forward_tokens(x), teacher.net.forward_tokens(x)
    assert student.shape == (4, 5 if kind else 9, 24) and target.shape == (4, student.shape[1], 16)
    norm, linear = model.distill_head
    rms = student * (student.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
    projected = rms @ linear.weight.T + linear.bias
    if loss == "cosine":
        cosine = (projected * target).sum(-1) / (projected.norm(dim=-1) * target.norm(dim=-1))
        distance = (2 - 2 * cosine).mean()
    else:
        distance = (projected - target).square().mean()
    log_p = model.net.head(student[:, 0]).log_softmax(1)
    rows = batch["target"] if mixed else F.one_hot(batch["label"], 3).float()
    torch.testing.assert_close(total, -(rows * log_p).sum(1).mean() + 0.5 * distance)


def test_the_teacher_is_frozen_in_eval_mode_and_costs_no_gradient_memory():
    model = make()
    (teacher,) = model._teacher
    model.train()
    assert not teacher.training and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = model.normalise(batch_of()["video"])
        tokens = model.net.forward_tokens(x)
        without = len(kept)
        model.distillation_loss(tokens, batch_of()["video"])
    # What is kept for the backward pass beyond the student: the projection's and the loss's, not the teacher's blocks.
    names = {id(p): n for n, p in teacher.named_parameters()}
    assert not any(id(t) in names for t in kept)
    assert len(kept) - without < 20
    widths = {t.shape[-1] for t in kept[without:] if t.ndim}
    assert 2 * TEACHER["embed_dim"] not in widths  # a mixer's inner channels


def test_the_teacher_moves_with_the_module_and_is_in_no_checkpoint(tmp_path):
    model = make()
    assert not any("teacher" in name for name in [*model.state_dict(), *dict(model.named_modules())])
    teacher = model._teacher[0].to("meta")
    model.to("meta")  # the module's device is what the teacher is moved to
    model.distillation_loss(torch.empty(4, 9, 24, device="meta"), batch_of()["video"].to("meta"))
    assert next(teacher.parameters()).device.type == "meta"

    model = make()
    fit(model, tmp_path, epochs=1).save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert content["state_dict"].keys() == model.state_dict().keys()
    assert {name.split(".")[0] for name in content["state_dict"]} == {"net", "distill_head"}
    assert "teacher" not in content["hyper_parameters"] and "distill_weight" not in content["hyper_parameters"]
    again = SelfDistillation.load_from_checkpoint(tmp_path / "run.ckpt", teacher=VideoClassifier(**TEACHER))
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_training_pulls_the_tokens_to_the_teachers(tmp_path, loss):
    model = make(distill_loss=loss, optim=dict(lr=1e-2, warmup_epochs=0), distill_weight=10.0)
    before = {k: v.clone() for k, v in model._teacher[0].state_dict().items()}
    batch = batch_of()

    @torch.no_grad()
    def distance():
        return float(model.distillation_loss(model.net.forward_tokens(model.normalise(batch["video"])), batch["video"]))

    start = distance()
    trainer = fit(model, tmp_path, epochs=15, mixed=True)
    assert distance() < 0.5 * start
    assert trainer.callback_metrics["train/loss"] > trainer.callback_metrics["train/distill_loss"]
    assert all(torch.equal(v, before[k]) for k, v in model._teacher[0].state_dict().items())


def test_the_projection_is_in_the_optimiser_and_its_matrix_alone_is_decayed(tmp_path):
    model = make(optim=dict(weight_decay=0.3, lr=2e-3))
    trainer = fit(model, tmp_path, epochs=1)
    groups = trainer.optimizers[0].param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["weight_decay"], g["initial_lr"]) for g in groups for p in g["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["distill_head.1.weight"] == (0.3, 2e-3)
    assert found["distill_head.0.weight"] == found["distill_head.1.bias"] == (0.0, 2e-3)


def test_without_the_teacher_after_its_epochs(tmp_path):
    """From then on it is plain training: the loss is the classifier's and nothing reaches the projection."""
    model = make(teacher_epochs=1, optim=dict(weight_decay=0.0))
    seen = []
    step = model.distillation_loss
    model.distillation_loss = lambda tokens, video: (seen.append(model.current_epoch), step(tokens, video))[1]
    fit(model, tmp_path, epochs=3)
    assert seen == [0, 0]
    model.log = lambda *args, **kwargs: None
    model.training_arguments["teacher_epochs"] = 0
    model.train()
    batch = batch_of()
    model.zero_grad()
    loss = model.training_step(batch, 0)
    loss.backward()
    torch.testing.assert_close(loss, model.loss_of(model(batch["video"]), batch))
    assert all(p.grad is not None and not p.grad.any() for p in model.distill_head.parameters())


def test_lightnings_early_stopping_and_averages_work(tmp_path):
    model = make()
    stopping = EarlyStopping("val/loss", patience=2, min_delta=100.0)  # nothing counts as better
    trainer = fit(model, tmp_path, epochs=9, callbacks=[stopping, EMA(decay=0.5)])
    assert trainer.current_epoch == 3


def test_a_training_goes_on_where_it_was(tmp_path):
    kwargs = dict(optim=dict(lr=1e-2, warmup_epochs=0), drop_path=0.2)
    whole = make(**kwargs)
    fit(whole, tmp_path, epochs=3)
    first = make(**kwargs)
    first.on_train_epoch_end = lambda: setattr(first.trainer, "should_stop", True)
    fit(first, tmp_path, epochs=3).save_checkpoint(tmp_path / "first.ckpt")
    again = make(**kwargs)
    torch.nn.init.zeros_(again.distill_head[1].weight)
    fit(again, tmp_path, epochs=3, ckpt=tmp_path / "first.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


# What is shared ------------------------------------------------------------------------------------------------------


def test_what_is_shared_is_an_ordinary_classifier(tmp_path):
    model = make(scan_order="temporal_first")
    fit(model, tmp_path, epochs=1).save_checkpoint(tmp_path / "run.ckpt")
    video = batch_of()["video"]
    expected = model.eval()(video)
    hub.save(model, tmp_path / "saved")
    zoo.convert(tmp_path / "run.ckpt", tmp_path / "converted")
    for source in (tmp_path / "run.ckpt", tmp_path / "saved", tmp_path / "converted"):
        loaded = zoo.load(source)
        assert type(loaded) is VideoClassifier
        assert torch.equal(loaded(video), expected)
    for folder in ("saved", "converted"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["class_path"] == "lightning_modules.VideoClassifier"
        assert not any("distill" in name for name in load_file(tmp_path / folder / "model.safetensors"))


def test_a_student_starts_from_weights_and_keeps_its_projection(tmp_path):
    torch.manual_seed(1)
    hub.save(VideoClassifier(**{**STUDENT, **IMAGES}), tmp_path / "image")
    model = make()
    projection = model.distill_head[1].weight.clone()
    assert zoo.build.initialise(model, tmp_path / "image")
    image = zoo.load(tmp_path / "image")
    assert torch.equal(model.net.patch_embed.proj.weight[:, :, 0], image.net.patch_embed.proj.weight)
    assert torch.equal(model.distill_head[1].weight, projection)


def test_a_checkpoint_is_tested_without_the_teacher(tmp_path):
    model = make()
    fit(model, tmp_path, epochs=1).save_checkpoint(tmp_path / "run.ckpt")
    alone = SelfDistillation(teacher="somewhere/else", **STUDENT)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    loader = DataLoader(Clips(), 4)
    (scores,) = trainer.test(alone, loader, ckpt_path=tmp_path / "run.ckpt", verbose=False, weights_only=True)
    (expected,) = trainer.test(model, loader, verbose=False)
    assert scores == expected
    assert torch.equal(alone.net.head.weight, model.net.head.weight)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ModelError, match="distill_loss is 'kl'; choose one of cosine, l2"):
        make(distill_loss="kl")
    with pytest.raises(ModelError, match="The teacher divides its input into 4 x 2 x 2 patches and the student into 2"):
        make(teacher={**TEACHER, "num_frames": 4})
    with pytest.raises(ModelError, match="needs a teacher to train with"):
        fit(SelfDistillation(**STUDENT), tmp_path)
    with pytest.raises(ModelError, match="scan_order is 'time'"):
        make(scan_order="time")
    with pytest.raises(TypeError, match="dept"):
        make(dept=3)


# Several processes ---------------------------------------------------------------------------------------------------

TWO = """
import importlib.util, json, sys, torch
from pathlib import Path
spec = importlib.util.spec_from_file_location("helpers", {file!r})
helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
torch.set_num_threads(1)
folder = Path({folder!r})
result = {{}}
for strategy in ("ddp", "fsdp2"):
    model = helpers.make(**helpers.TOGETHER)
    trainer = helpers.fit(model, folder, devices=2, strategy=strategy, batch_size=2)
    trainer.save_checkpoint(folder / f"{{strategy}}.ckpt")
    result[strategy] = float(trainer.callback_metrics["train/loss"])
    if strategy == "fsdp2":
        result["local"] = [p.to_local().numel() for p in model.distill_head.parameters()]
(folder / f"{{trainer.global_rank}}.json").write_text(json.dumps(result))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
# The teacher leaves after the first of two epochs, so that both kinds of step are seen.
TOGETHER = dict(teacher_epochs=1, optim=dict(lr=1e-2, warmup_epochs=0))


@pytest.mark.slow
def test_two_processes_train_as_one_with_and_without_the_teacher(tmp_path):
    (tmp_path / "two.py").write_text(TWO.format(file=__file__, folder=str(tmp_path)))
    done = subprocess.run([sys.executable, tmp_path / "two.py"], timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = make(**TOGETHER)
    fit(alone, tmp_path, batch_size=4)
    result = json.loads((tmp_path / "0.json").read_text())
    other = json.loads((tmp_path / "1.json").read_text())
    # Each process holds a part of the projection.
    whole = [p.numel() for p in alone.distill_head.parameters()]
    assert [a + b for a, b in zip(result["local"], other["local"], strict=True)] == whole
    for strategy in ("ddp", "fsdp2"):
        content = torch.load(tmp_path / f"{strategy}.ckpt", weights_only=True)["state_dict"]
        assert content.keys() == alone.state_dict().keys()
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(content[name], weight, rtol=1e-4, atol=1e-5)
