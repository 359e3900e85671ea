"""PushToHub in real fits by a Trainer, each in a process of its own, against a Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load

from hub.callback import PushToHub

TOKEN = "hf_" + "Zq7" * 11
# Trains on noise, once for each item of the JSON argument, and prints the best checkpoint's path, or what went wrong.
FIT = """
import json, os, sys
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
import hub
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.ops import use_backend

class Clips(LightningDataModule):
    def train_dataloader(self):
        clips = [{"video": torch.rand(3, 2, 16, 16), "label": torch.tensor(i)} for i in range(2)]
        return DataLoader([{**clip, "index": clip["label"]} for clip in clips], batch_size=1)
    val_dataloader = train_dataloader

class Fails(Callback):
    def on_train_epoch_end(self, trainer, module):
        raise hub.HubError("something else broke.")

def fit(folder, token, checkpoints=True, fails=False):
    os.environ["HF_TOKEN"] = token
    seed_everything(0)
    best = ModelCheckpoint(monitor="val/loss", filename="best")
    push = hub.PushToHub("org/fitted", private=True, license="mit", base_model="org/base")
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=CSVLogger(folder, "run", "v"), enable_progress_bar=False,
        enable_model_summary=False, callbacks=[push] + [Fails()] * fails + [best] * checkpoints,
        enable_checkpointing=checkpoints, log_every_n_steps=1,
    )
    sizes = dict(num_classes=2, embed_dim=16, depth=1, num_frames=2, image_size=16)
    module = VideoClassifier(**sizes, optim={"warmup_epochs": 0.0})
    with use_backend("reference"):
        trainer.fit(module, datamodule=Clips())
    return best.best_model_path

answers = []
for wanted in json.loads(sys.argv[1]):
    try:
        answers.append(fit(**wanted))
    except hub.HubError as error:
        answers.append(f"HubError: {error}")
print(json.dumps(answers))
"""


def fit(tmp_path, server, *wanted: dict) -> list[str]:
    wanted = [{"folder": str(tmp_path / str(i)), "token": TOKEN} | one for i, one in enumerate(wanted)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIT, json.dumps(wanted)],
        capture_output=True, text=True, timeout=600, cwd=tmp_path, env=server.environment(tmp_path / "hf"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN in text for text in (done.stdout, done.stderr, *files))
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def server(hub_server):
    hub_server.tokens[TOKEN] = {"org"}
    return hub_server


def test_the_best_checkpoint_is_pushed_at_the_end_or_it_is_said_why_not(tmp_path, server):
    server.fail("commit/main", "drop")  # the first of the two that get so far
    wanted = [{}, {"token": ""}, {"token": TOKEN[:-1] + "x"}, {"checkpoints": False}, {"fails": True}, {}]
    broken, *early, failed, answer = fit(tmp_path, server, *wanted)
    assert broken.startswith("HubError: ") and "the training is complete" in broken
    assert Path(broken.split("`zoo push ")[1].split(" org/fitted` tries again")[0]).is_file()
    # Known at the start: nothing is trained in vain. A fit that fails pushes nothing.
    for sentence, words in zip(early, ("HF_TOKEN", "401", "none is written"), strict=True):
        assert sentence.startswith("HubError: ") and words in sentence
    assert failed == "HubError: something else broke."
    assert not any(list((tmp_path / str(i)).rglob("*.ckpt")) for i in (1, 2, 3))

    best = Path(answer)
    assert best == tmp_path / "5" / "run" / "v" / "checkpoints" / "best.ckpt"
    assert len(server.messages) == 1 and server.private == {"org/fitted"}
    files = server.files("org/fitted")
    pushed, kept = load(files["model.safetensors"]), torch.load(best, weights_only=True)
    assert pushed.keys() == kept["state_dict"].keys()
    assert all(torch.equal(pushed[key], tensor) for key, tensor in kept["state_dict"].items())
    assert json.loads(files["config.json"])["init_args"]["embed_dim"] == 16
    data = ModelCard(files["README.md"].decode()).data
    assert (data.license, data.base_model) == ("mit", "org/base")


def test_it_has_no_place_for_a_token():
    import inspect

    assert list(inspect.signature(PushToHub).parameters) == ["repo_id", "private", "license", "base_model"]
