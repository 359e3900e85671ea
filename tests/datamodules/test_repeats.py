import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.repeats import RepeatedSampler

REPOSITORY = Path(__file__).resolve().parents[2]


def expected(length, repeats, world_size, rank, seed, epoch):
    """The published sampler, step by step: repeat everything, pad, deal out, cut to the epoch's length."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    drawn = [index for index in order for _ in range(repeats)]
    per_process = math.ceil(length * repeats / world_size)
    drawn += drawn[: per_process * world_size - len(drawn)]
    mine = [drawn[i] for i in range(len(drawn)) if i % world_size == rank]
    return mine[: math.floor(length // 256 * 256 / world_size)]


@pytest.mark.parametrize(("length", "repeats", "world_size"), [
    (256, 3, 1), (1000, 3, 1), (1000, 3, 8), (1023, 2, 4), (515, 3, 5), (300, 7, 3), (2048, 1, 2),
])  # fmt: skip
def test_published_rule(length, repeats, world_size):
    for rank in range(world_size):
        sampler = RepeatedSampler(range(length), repeats, num_replicas=world_size, rank=rank, seed=3)
        for epoch in (0, 1, 7):
            sampler.set_epoch(epoch)
            wanted = expected(length, repeats, world_size, rank, 3, epoch)
            assert list(sampler) == wanted and len(sampler) == len(wanted)


def test_copies_meet_in_one_step():
    """With 8 processes and 3 repeats, the first step's 8 x 6 images are 16 different ones, three of each."""
    ranks = [list(RepeatedSampler(range(512), 3, num_replicas=8, rank=rank)) for rank in range(8)]
    step = [index for rank in ranks for index in rank[:6]]
    assert sorted(step.count(index) for index in set(step)) == [3] * 16


def test_sets_of_less_than_256():
    drawn = list(RepeatedSampler(range(7), 3))
    assert len(drawn) == 7 and drawn[0:3] == drawn[:1] * 3 and drawn[3:6] == drawn[3:4] * 3
    halves = [list(RepeatedSampler(range(7), 3, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [len(half) for half in halves] == [3, 3]


SCRIPT = """
import json, sys
import lightning as L, torch
from datamodules import VideoFolder

class Recorder(L.LightningModule):
    preprocessing = dict(num_frames=2, image_size=32, short_side=32, sampling="sparse", frame_stride=1,
                         interpolation="bilinear")
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []
    def training_step(self, batch):
        same = [bool((a == b).all()) for a, b in zip(batch["video"][::2], batch["video"][1::2])]
        self.seen.append([self.current_epoch, batch["index"].tolist(), same])
        return self.weight * batch["video"].float().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def on_train_end(self):
        with open(f"{out}/{mode}{self.global_rank}.json", "w") as file:
            json.dump(self.seen, file)

root, out = sys.argv[1:]
for mode in ("views", "sampler"):
    L.seed_everything(5)
    data = VideoFolder(root, batch_size=2, repeats=2, repeat_mode=mode, num_workers=0, check_files=False)
    L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, limit_val_batches=0,
              enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(Recorder(), data)
"""


def test_two_processes(class_root, tmp_path):
    """Eight training videos, two processes, two epochs."""
    command = [sys.executable, "-c", SCRIPT, str(class_root), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = {mode: [json.loads((tmp_path / f"{mode}{rank}.json").read_text()) for rank in range(2)]
            for mode in ("views", "sampler")}  # fmt: skip
    for epoch in range(2):
        drawn = []
        for rank in range(2):
            batches = [batch for batch in seen["views"][rank] if batch[0] == epoch]
            assert [len(indices) for _, indices, _ in batches] == [4, 4]  # 2 videos x 2 views
            for _, indices, same in batches:
                assert indices[0::2] == indices[1::2] and not any(same)  # side by side, augmented apart
                drawn += indices
        assert sorted(drawn) == sorted([*range(8), *range(8)])  # an epoch has every video twice
        for rank in range(2):
            drawn = [index for e, indices, _ in seen["sampler"][rank] if e == epoch for index in indices]
            order = torch.randperm(8, generator=torch.Generator().manual_seed(5 + epoch)).tolist()
            assert drawn == order[:4]  # two copies of each, one for each process
