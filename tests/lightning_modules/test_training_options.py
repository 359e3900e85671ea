"""Options of a training, each by the numbers it leaves: docs/recipes.md says how they are written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

import hub
import zoo
from datamodules.synthetic.writing import generate
from hub.lightning_ckpt import read_lightning
from lightning_modules import VideoClassifier
from lightning_modules.callbacks import EMA
from lightning_modules.nets.videomamba import VideoMamba

TINY = dict(num_classes=3, embed_dim=32, depth=3, num_frames=2, image_size=32)
TRAINING = dict(optim=dict(lr=3e-3, warmup_lr=1e-3, warmup_epochs=1))


class Clips(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        noise = torch.randint(0, 200, (3, 2, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        return {"video": noise + 25 * (i % 3), "label": i % 3, "index": i, "path": f"{i}.mp4"}


class Data(LightningDataModule):
    """Always in the same order."""

    class_names = ["dark", "grey", "bright"]

    def __init__(self, batch_size=8):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(Clips(), batch_size=self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


class Record(Callback):
    """Losses and, after each optimiser step, the weights."""

    def __init__(self):
        self.losses, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        if trainer.global_step > len(self.weights):
            self.weights.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def train(tmp_path, *, batch_size=8, epochs=2, callbacks=(), model_options=None, **kwargs):
    torch.manual_seed(0)
    model = VideoClassifier(**TINY, **TRAINING, **(model_options or {}))
    record = Record()
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    run = Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path,
                  callbacks=[*callbacks, record], **quiet, **kwargs)  # fmt: skip
    run.fit(model, datamodule=Data(batch_size))
    return model, run, record


def farthest(one, other):
    """Largest difference between two state dicts of the same names."""
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Six steps of 8 clips in float32 with no option on."""
    return train(tmp_path_factory.mktemp("plain"))


def test_two_batches_of_four_make_one_step_of_eight(plain, tmp_path):
    model, run, record = train(tmp_path, batch_size=4, accumulate_grad_batches=2)
    assert run.global_step == plain[1].global_step == 6
    sums = [a + b for a, b in zip(record.losses[::2], record.losses[1::2], strict=True)]
    assert sums == pytest.approx(plain[2].losses, rel=1e-5)  # Lightning has divided each by two
    assert farthest(model.state_dict(), plain[0].state_dict()) < 1e-6


def test_bf16_is_autocast_with_weights_in_float32(plain, tmp_path):
    model, run, record = train(tmp_path, precision="bf16-mixed")
    assert record.losses == pytest.approx(plain[2].losses, rel=0.02)
    assert record.losses != plain[2].losses
    assert all(weight.dtype == torch.float32 for weight in model.state_dict().values())
    moments = [value for state in run.optimizers[0].state.values() for value in state.values()]
    assert all(moment.dtype == torch.float32 for moment in moments)


@pytest.mark.parametrize(("activations", "share"), [("balanced", 0.75), ("memory", 0.25)])
def test_recomputing_gives_the_same_gradients_and_keeps_less(activations, share):
    def gradients(activations):
        torch.manual_seed(0)
        net = VideoMamba(**TINY, drop_path=0.5, activations=activations)
        clip, kept = torch.randn(4, 3, 2, 32, 32), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = net(clip).square().sum()
        loss.backward()
        return {name: p.grad for name, p in net.named_parameters()}, sum(kept)

    (expected, all_kept), (got, kept) = gradients("speed"), gradients(activations)
    assert farthest(got, expected) < 1e-7
    assert kept < all_kept * share


def test_a_frozen_backbone_trains_the_head_alone(tmp_path):
    model, run, record = train(tmp_path, model_options={"freeze_backbone": True})
    fresh = record.weights[0]
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, fresh[name])}
    assert moved == {"net.head.weight", "net.head.bias"}
    held = [p for group in run.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.net.head.parameters()}


# Averaged weights ---------------------------------------------------------------------------------------------------


def averages(weights, decay):
    """The averages after each step, in float64."""
    average = {name: weight.double() for name, weight in weights[0].items()}
    yield average
    for step in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in step.items()}
        yield average


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    files = ModelCheckpoint(dirpath=folder, filename="{epoch}", auto_insert_metric_name=False, save_top_k=-1)
    return folder, *train(folder, callbacks=[files, EMA(decay=0.7)])


def test_checkpoints_hold_the_average_and_the_weights_to_go_on_from(averaged, plain):
    folder, model, _, record = averaged
    assert record.losses == plain[2].losses  # averaging does not disturb the training
    by_hand = list(averages(record.weights, 0.7))
    for epoch, step in ((0, 3), (1, 6)):
        content = torch.load(folder / f"{epoch}.ckpt", weights_only=True)
        assert farthest(content["state_dict"], by_hand[step - 1]) < 1e-6
        assert farthest(content["current_model_state"], record.weights[step - 1]) == 0
        assert list(content["state_dict"]) == list(model.state_dict())
    assert farthest(model.state_dict(), by_hand[5]) < 1e-6
    assert farthest(by_hand[5], record.weights[5]) > 1e-3


def test_everything_that_reads_a_checkpoint_takes_the_average(averaged):
    folder, model, _, _ = averaged
    expected = model.state_dict()
    assert farthest(read_lightning(folder / "1.ckpt").state_dict, expected) == 0
    assert farthest(zoo.load(folder / "1.ckpt").state_dict(), expected) == 0
    assert farthest(VideoClassifier.load_from_checkpoint(folder / "1.ckpt").state_dict(), expected) == 0
    zoo.convert(folder / "1.ckpt", folder / "model")
    assert farthest(hub.read(folder / "model").state_dict, expected) == 0
    assert torch.equal(zoo.load(folder / "1.ckpt").mean, model.mean)


def test_validation_and_tests_see_the_average(averaged, tmp_path):
    folder, model, run, record = averaged
    validated = run.callback_metrics["val/loss"].item()
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=tmp_path)
    alone = Trainer(accelerator="cpu", **quiet)

    def loss_of(weights):
        module = VideoClassifier(**TINY)
        module.load_state_dict(weights)
        return alone.validate(module, datamodule=Data(), verbose=False)[0]["val/loss"]

    assert validated == pytest.approx(loss_of(model.state_dict()), rel=1e-6)
    assert abs(validated - loss_of(record.weights[-1])) > 1e-3
    # In the process that trained, and with the callback still there.
    for epoch in range(2):
        weights = torch.load(folder / f"{epoch}.ckpt", weights_only=True)["state_dict"]
        tested = run.test(model, datamodule=Data(), ckpt_path=folder / f"{epoch}.ckpt", verbose=False)
        assert tested[0]["test/loss"] == pytest.approx(loss_of(weights), rel=1e-6)
        assert farthest(model.state_dict(), weights) == 0


def test_an_averaged_run_goes_on_as_if_not_interrupted(averaged, tmp_path):
    folder, model, _, record = averaged
    torch.manual_seed(1)
    again, rest = VideoClassifier(**TINY, **TRAINING), Record()
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    run = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, callbacks=[EMA(decay=0.7), rest], **quiet)
    run.fit(again, datamodule=Data(), ckpt_path=folder / "0.ckpt")
    assert rest.losses == record.losses[3:]
    assert farthest(again.state_dict(), model.state_dict()) == 0


# Compilation --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_blocks_train_alike_under_the_same_names(plain, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of other tests
    files = ModelCheckpoint(dirpath=tmp_path, filename="last")
    model, _, record = train(tmp_path, callbacks=[files, EMA(decay=0.7)], model_options={"compile": True})
    assert record.losses == pytest.approx(plain[2].losses, rel=1e-4)
    assert farthest(record.weights[-1], plain[2].weights[-1]) < 1e-3
    # One code for all blocks but the first, which has no residual yet: forward with and without gradients.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert not torch._dynamo.utils.counters["graph_break"]
    state_dict = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert list(state_dict) == list(plain[0].state_dict())
    assert farthest(zoo.load(tmp_path / "last.ckpt").state_dict(), model.state_dict()) == 0


# From the command line ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_options_together_from_the_command_line(tmp_path):
    generate(tmp_path / "data", num_train=8, num_val=4, num_test=2, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    config = yaml.safe_load((Path(__file__).parents[1] / "conf" / "tiny.yaml").read_text())
    saved = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"filename": "run"}}
    config["trainer"]["callbacks"] = [saved]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    options = """
        --model.depth 2 --model.compile true --model.activations memory --trainer.precision bf16-mixed
        --trainer.accumulate_grad_batches 2 --trainer.max_epochs 2
        --trainer.callbacks+=lightning_modules.callbacks.EMA --trainer.callbacks.decay 0.9
    """
    strategies = {"alone": "", "sharded": "--trainer.strategy fsdp2 --trainer.devices 2"}
    for name, flags in strategies.items():
        given = options if name == "alone" else options.split("--trainer.callbacks+")[0]
        command = [Path(sys.executable).parent / "lightning", "fit", "--config", "config.yaml"]
        command += [*given.split(), *flags.split(), f"--trainer.logger.init_args.name={name}"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stdout + run.stderr
        content = torch.load(tmp_path / name / "checkpoints" / "run.ckpt", weights_only=True)
        assert content["global_step"] == 2
        assert ("current_model_state" in content) == (name == "alone")
        assert all(torch.isfinite(weight).all() for weight in zoo.load(
            tmp_path / name / "checkpoints" / "run.ckpt").state_dict().values())  # fmt: skip
