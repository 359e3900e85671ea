import json
import math
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules import VideoFolder
from datamodules.errors import DataError
from datamodules.loading import Draw, TrainSampler, seeded, suitable_workers, worker_context, worker_death

REPOSITORY = Path(__file__).resolve().parents[2]


def indices(sampler):
    return [draw.index for draw in sampler]


def expected(length, repeats, world_size, rank, seed, epoch):
    """The published sampler, step by step: repeat everything, pad, deal out, cut to the epoch's length."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    drawn = [index for index in order for _ in range(repeats)]
    per_process = math.ceil(length * repeats / world_size)
    drawn += drawn[: per_process * world_size - len(drawn)]
    mine = [drawn[i] for i in range(len(drawn)) if i % world_size == rank]
    return mine[: math.floor(length // 256 * 256 / world_size)]


@pytest.mark.parametrize(("length", "repeats", "world_size"), [
    (256, 3, 1), (1000, 3, 1), (1000, 3, 8), (1023, 2, 4), (515, 3, 5), (300, 7, 3),
])  # fmt: skip
def test_published_rule(length, repeats, world_size):
    for rank in range(world_size):
        sampler = TrainSampler(range(length), repeats, num_replicas=world_size, rank=rank, seed=3)
        for epoch in (0, 1, 7):
            sampler.set_epoch(epoch)
            wanted = expected(length, repeats, world_size, rank, 3, epoch)
            assert indices(sampler) == wanted and len(sampler) == len(wanted)


def test_copies_meet_in_one_step():
    """With 8 processes and 3 repeats, the first step's 8 x 6 images are 16 different ones, three of each."""
    ranks = [indices(TrainSampler(range(512), 3, num_replicas=8, rank=rank)) for rank in range(8)]
    step = [index for rank in ranks for index in rank[:6]]
    assert sorted(step.count(index) for index in set(step)) == [3] * 16


def test_sets_of_less_than_256():
    drawn = indices(TrainSampler(range(7), 3))
    assert len(drawn) == 7 and drawn[0:3] == drawn[:1] * 3 and drawn[3:6] == drawn[3:4] * 3
    halves = [indices(TrainSampler(range(7), 3, num_replicas=2, rank=rank)) for rank in range(2)]
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


@pytest.mark.slow
def test_two_processes(class_root, tmp_path):
    """Eight training videos, two processes, two epochs."""
    command = [sys.executable, "-c", SCRIPT, str(class_root), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
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


def test_epoch_has_every_item_and_pads_like_a_distributed_sampler():
    drawn = [indices(TrainSampler(range(10), num_replicas=3, rank=rank, seed=2)) for rank in range(3)]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2)).tolist()
    dealt = [index for step in zip(*drawn, strict=True) for index in step]
    assert dealt == [*order, *order[:2]]


def test_seeds_belong_to_places_not_to_processes():
    alone = list(TrainSampler(range(24), seed=4))
    together = [list(TrainSampler(range(24), num_replicas=2, rank=rank, seed=4)) for rank in range(2)]
    assert [draw for step in zip(*together, strict=True) for draw in step] == alone
    assert len({draw.seed for draw in alone}) == 24


@pytest.mark.parametrize(("length", "multiple", "expected"), [(50, 12, 48), (48, 12, 48), (11, 12, 11), (50, 1, 50)])
def test_incomplete_steps_are_left_out(length, multiple, expected):
    """50 videos, batches of 4, three of them a step: the official loop makes 50 // 12 = 4 steps of an epoch."""
    assert len(list(TrainSampler(range(length), multiple=multiple))) == expected


def clips(class_root, num_workers, **kwargs):
    options = dict(batch_size=2, rand_augment_ops=2, check_files=False, num_frames=2, image_size=32, short_side=32,
                   sampling="sparse", frame_stride=1, interpolation="bilinear")  # fmt: skip
    data = VideoFolder(class_root, num_workers=num_workers, **{**options, **kwargs})
    data.setup("fit")
    return data


def test_a_draw_is_the_same_clip_everywhere(class_root):
    """In this process or in workers, whatever was drawn before; another seed is another clip."""
    batches = {}
    for workers in (0, 1, 2):
        loader = clips(class_root, workers).train_dataloader()
        loader.sampler.set_epoch(3)
        batches[workers] = list(loader)
    for workers in (1, 2):
        for batch, other in zip(batches[0], batches[workers], strict=True):
            assert torch.equal(batch["video"], other["video"]) and batch["path"] == other["path"]
    dataset = clips(class_root, 0).datasets["train"]
    first = batches[0][0]
    again = dataset[Draw(int(first["index"][0]), int(first["seed"][0]))]
    assert torch.equal(again["video"], first["video"][0])
    assert not torch.equal(dataset[Draw(again["index"], again["seed"] + 1)]["video"], again["video"])


def test_augmentation_leaves_the_random_numbers_of_the_process_alone(class_root):
    dataset = clips(class_root, 0).datasets["train"]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[Draw(0, 5)]
    assert torch.equal(torch.rand(3), expected)
    with seeded(7):
        inside = torch.rand(3)
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on(class_root, workers):
    """Three of four batches are left; the epoch after them is a whole one, and a new epoch ignores the old place."""
    loader = clips(class_root, workers).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch["video"] for batch in loader])
    loader.sampler.set_epoch(0)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()

    def resumed(epoch):
        data = clips(class_root, workers)
        data.load_state_dict({"train_loader": state})
        other = data.train_dataloader()
        other.sampler.set_epoch(epoch)
        return other

    other = resumed(0)
    for epoch, expected in enumerate([epochs[0][1:], epochs[1]]):
        other.sampler.set_epoch(epoch)
        got = [batch["video"] for batch in other]
        assert len(got) == len(expected) and all(map(torch.equal, got, expected))
    got = [batch["video"] for batch in resumed(1)]
    assert len(got) == 4 and all(map(torch.equal, got, epochs[1]))


def test_another_number_of_workers_cannot_go_on(class_root):
    loader = clips(class_root, 1).train_dataloader()
    next(iter(loader))
    data = clips(class_root, 0)
    data.load_state_dict({"train_loader": loader.state_dict()})
    with pytest.raises(DataError, match=r"1 workers, and this run has 0; set data\.num_workers to 1"):
        data.train_dataloader()


def test_time_spent_waiting(class_root, monkeypatch):
    """By a clock that goes on while a clip is read and while its user works."""
    now, loader = [100.0], clips(class_root, 0).train_dataloader()
    read = type(loader.dataset).__getitem__

    def slow(*arguments):
        now[0] += 0.5
        return read(*arguments)

    monkeypatch.setattr(type(loader.dataset), "__getitem__", slow)
    monkeypatch.setattr("datamodules.loading.time", SimpleNamespace(perf_counter=lambda: now[0]))
    batches = iter(loader)
    size = len(next(batches)["video"])
    assert loader.waited == 0.5 * size
    now[0] += 8.0
    next(batches)
    assert loader.waited == 2 * 0.5 * size


@pytest.mark.parametrize("loader", ["train", "val"])
def test_death_of_a_worker_is_told(class_root, loader):
    data = VideoFolder(class_root, num_frames=2, image_size=32, short_side=32, sampling="sparse", frame_stride=4,
                       interpolation="bilinear", batch_size=1, num_workers=1)  # fmt: skip
    data.setup("fit")
    batches = iter(data.train_dataloader() if loader == "train" else data.val_dataloader())
    next(batches)
    with pytest.raises((DataError, RuntimeError)) as caught:
        for child in multiprocessing.active_children():
            child.kill()
        for _ in range(100):
            next(batches)
    # torch's signal arrives anywhere in this process; outside of the loader the command line does the rest.
    told = caught.value if isinstance(caught.value, DataError) else worker_death(caught.value)
    assert re.fullmatch(r"A loader process died.*lower data\.num_workers.*--ckpt_path last\.", str(told))


def ask(event):
    while True:
        event.is_set()


def test_processes_killed_while_they_ask_leave_no_lock():
    context = worker_context("fork")
    for _ in range(10):
        event = context.Event()
        process = context.Process(target=ask, args=(event,), daemon=True)
        process.start()
        time.sleep(0.05)
        process.kill()
        process.join()
        setting = threading.Thread(target=event.set, daemon=True)
        setting.start()
        setting.join(600)
        assert not setting.is_alive() and event.is_set()


def test_only_broken_pipes_are_deaths():
    """Errors of a data set in a loader process keep their name and get torch's text."""
    assert worker_death(ConnectionResetError(104, "Connection reset by peer")) and worker_death(EOFError())
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "died (Killed), most often" in str(worker_death(killed))
    assert worker_death(ConnectionError("Caught ConnectionError in DataLoader worker process 0.\n...")) is None
    assert worker_death(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(("cores", "processes", "expected"), [
    (1, 1, 1), (2, 1, 1), (3, 1, 2), (5, 1, 4), (64, 1, 4), (8, 2, 3), (8, 4, 1), (2, 8, 1),
])  # fmt: skip
def test_workers_leave_a_core_for_training(monkeypatch, cores, processes, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert suitable_workers(processes) == expected
