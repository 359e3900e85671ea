"""The strategy fsdp2: two real processes, each with half of the weights, train as one does."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.utils.data import DataLoader, Dataset

import zoo
from lightning_modules import VideoClassifier
from lightning_modules.errors import ModelError
from lightning_modules.training.sharding import FullyShardedStrategy, blocks, refuse_flat_parameters

TINY = dict(num_classes=3, embed_dim=32, depth=3, num_frames=2, image_size=32)
TRAINING = dict(
    optim=dict(lr=5e-3, warmup_lr=1e-3, warmup_epochs=1, weight_decay=0.1, layer_decay=0.75), activations="balanced"
)


class Clips(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        noise = torch.randint(0, 200, (3, 2, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        return {"video": noise + 25 * (i % 3), "label": i % 3, "index": i, "path": f"{i}.mp4"}


class Data(LightningDataModule):
    class_names = ["dark", "grey", "bright"]

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        """In order, so that a batch of 4 in each of two processes holds what one of 8 does in one process."""
        share = range(self.trainer.global_rank, len(Clips()), self.trainer.world_size)
        return DataLoader(Clips(), batch_size=self.batch_size, sampler=share)

    val_dataloader = train_dataloader


class Losses(Callback):
    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")
        self.train.append(loss.item())

    def on_validation_end(self, trainer, pl_module):
        self.val.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")})


def groups_of(model, optimizer):
    """What each group holds, by name and by what is done to it."""
    names = {id(p): n for n, p in model.named_parameters()}
    keys = ("name", "initial_lr", "weight_decay")
    return [{k: g[k] for k in keys} | {"params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]


def train(folder, batch_size, *, epochs=3, stop=None, ckpt=None, name="run", callbacks=(), **kwargs):
    """One run of 3 steps an epoch; `stop` ends it early, as if interrupted after so many steps."""
    seed_everything(0, verbose=False)
    model = VideoClassifier(**TINY, **TRAINING)
    losses = Losses()
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    run = Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=[losses, *callbacks],
                  gradient_clip_val=0.5, enable_checkpointing=False, use_distributed_sampler=False,
                  **quiet, **kwargs)  # fmt: skip
    if stop is not None:
        losses.on_train_epoch_end = lambda trainer, module: setattr(trainer, "should_stop", True)
    run.fit(model, datamodule=Data(batch_size), ckpt_path=ckpt)
    run.save_checkpoint(folder / f"{name}.ckpt")
    groups = groups_of(model, run.optimizers[0])
    return model, run, {"train": losses.train, "val": losses.val, "groups": groups}


def two_processes(tmp_path, body):
    """Runs `body` in two processes; `helpers` is this file and `folder` the test's."""
    script = tmp_path / "two.py"
    head = f"""
        import importlib.util, json, sys, torch
        from pathlib import Path
        from lightning_modules.callbacks import EMA
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        folder = Path({str(tmp_path)!r})
    """
    # Lightning leaves the process group to the interpreter's exit, where a peer that is gone can abort the other.
    tail = "torch.distributed.barrier()\ntorch.distributed.destroy_process_group()\n"
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body) + tail)
    run = subprocess.run([sys.executable, str(script)], timeout=600, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run


@pytest.mark.slow
def test_two_processes_with_shares_of_the_weights_train_as_one(tmp_path):
    train(tmp_path, 8, stop=1, name="first_alone")
    two_processes(
        tmp_path,
        """
        sharded = dict(devices=2, strategy="fsdp2")
        model, run, result = helpers.train(folder, 4, **sharded)
        result["local"] = [p.to_local().numel() for p in model.net.parameters()]
        units = [m for m in model.modules() if isinstance(m, torch.distributed.fsdp.FSDPModule)]
        result["units"] = [type(m).__name__ for m in units]
        helpers.train(folder, 4, stop=1, name="first", **sharded)
        again = helpers.train(folder, 4, ckpt=folder / "first.ckpt", name="resumed", **sharded)[2]
        result["resumed"] = again["train"]
        other = helpers.train(folder, 4, ckpt=folder / "first_alone.ckpt", name="resumed_alone", **sharded)[2]
        result["resumed_alone"] = other["train"]
        try:
            helpers.train(folder, 4, name="averaged", callbacks=[EMA()], **sharded)
        except helpers.ModelError as error:
            result["refused"] = str(error)
        (folder / f"{run.global_rank}.json").write_text(json.dumps(result))
        """,
    )
    model, _, alone = train(tmp_path, 8, name="alone")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))

    assert first["train"] == pytest.approx(alone["train"], rel=1e-5)
    assert len(alone["train"]) == 9 and len(set(alone["train"])) == 9
    for together, single in zip(first["val"], alone["val"], strict=True):
        assert together == pytest.approx(single, rel=1e-5)
    assert first["groups"] == alone["groups"]
    assert {g["weight_decay"] for g in alone["groups"]} == {0.0, 0.1}

    assert "moving average keeps all weights" in first["refused"] and not (tmp_path / "averaged.ckpt").exists()

    # A unit per block and one for the rest; no process holds all of a weight.
    assert first["units"] == ["FSDPVideoMamba", *["FSDPBlock"] * 3]
    whole = [p.numel() for p in model.net.parameters()]
    assert [a + b for a, b in zip(first["local"], second["local"], strict=True)] == whole
    assert sum(first["local"]) < 0.6 * sum(whole)

    # The checkpoint is an ordinary one: same names and shapes, and everything reads it.
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert list(content["state_dict"]) == list(model.state_dict())
    again = torch.load(tmp_path / "resumed.ckpt", weights_only=True)["state_dict"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(content["state_dict"][name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(again[name], content["state_dict"][name])
    assert first["resumed"] == first["train"][3:]
    # One process goes on from what two wrote, and two from what one wrote.
    assert first["resumed_alone"] == pytest.approx(alone["train"][3:], rel=1e-5)
    other = train(tmp_path, 8, ckpt=tmp_path / "first.ckpt", name="other")[0].state_dict()
    two = torch.load(tmp_path / "resumed_alone.ckpt", weights_only=True)["state_dict"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-6)
    video = Clips()[0]["video"][None]
    expected = model.eval()(video)
    torch.testing.assert_close(zoo.load(tmp_path / "run.ckpt")(video), expected, rtol=1e-4, atol=1e-4)
    loaded = VideoClassifier.load_from_checkpoint(tmp_path / "run.ckpt").eval()
    torch.testing.assert_close(loaded(video), expected, rtol=1e-4, atol=1e-4)
    assert len(blocks(model.net)) == 3


def test_what_cannot_be_sharded_is_refused():
    with pytest.raises(ModelError, match=r"strategy 'fsdp' flattens the weights.* set trainer.strategy to fsdp2"):
        refuse_flat_parameters(FSDPStrategy())
    refuse_flat_parameters(DDPStrategy())
    refuse_flat_parameters(FullyShardedStrategy())
