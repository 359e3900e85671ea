"""Mutated files through the reader, in processes of their own: `fuzz_decode.py` says what is done to them."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_decode.py")
LEAK_MIB_PER_THOUSAND = 30
"""A frame is 11 KiB and a file 20: a file that stays in memory each time would be above this."""


@pytest.mark.parametrize(("first", "count"), [(0, 200)] + [
    pytest.param(first, 1000, marks=pytest.mark.slow) for first in range(0, 10_000, 1000)
])  # fmt: skip
def test_no_file_crashes_hangs_or_floods_the_reader(tmp_path, first, count):
    command = [sys.executable, SCRIPT, tmp_path, str(first), str(count)]
    # What is freed goes back to the system at once, so that only what is held counts as grown.
    frugal = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=SCRIPT.parents[3],
                          env=os.environ | frugal)  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1]}: ended with {done.returncode}\n{done.stderr[-2000:]}"
    outcomes = [line.split()[1] for line in lines[:-1]]
    assert len(outcomes) == count and not [line for line in lines if " wrong " in line]
    assert outcomes.count("read") > count / 5 and outcomes.count("refused") > count / 5
    if count >= 1000:
        assert float(lines[-1].split()[1]) < LEAK_MIB_PER_THOUSAND


TRAIN = """
import sys
import warnings
from pathlib import Path
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
import fuzz_decode as fuzz
from datamodules import VideoFolder

root = Path(sys.argv[2])
torch.set_num_threads(1)
for label in ("a", "b"):
    (root / "train" / label).mkdir(parents=True)
    (root / "val" / label).mkdir(parents=True)
sound = [(name, fuzz.encode(root / name, *how)) for name, *how in fuzz.SOUND]
for number in range(80):
    name, data = fuzz.mutate(sound, np.random.default_rng(number)) if number % 2 else sound[number % len(sound)]
    path = root / "train" / "ab"[number // 40] / f"{number}-{name}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(path.name, fuzz.read(path, number))
    if number % 2 == 0:
        (root / "val" / "ab"[number // 40] / path.name).write_bytes(data)
data = VideoFolder(root, num_frames=4, image_size=32, short_side=32, sampling="sparse", frame_stride=1,
                   interpolation="bilinear", batch_size=8, num_workers=2, max_unreadable=0.9)
data.setup("fit")
loader = data.train_dataloader()
for epoch in range(4):
    loader.sampler.set_epoch(epoch)
    print("clips", sum(len(batch["label"]) for batch in loader))
"""


def test_a_bad_file_is_one_warning_in_training(tmp_path):
    command = [sys.executable, "-c", TRAIN, str(SCRIPT.parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[3], timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    refused = {name for name, outcome in lines if outcome == "refused"}
    assert len(refused) > 10 and done.stdout.count("clips 80") == 4
    replaced = re.findall(r"UserWarning: .*/(\d+-\S+?) .* \(replaced by another video\)", done.stderr)
    assert set(replaced) >= refused and max(Counter(replaced).values()) == 1
    # Lost frames are told by each of the two loader processes.
    damaged = re.findall(r"UserWarning: .*/(\d+-\S+?) is damaged: frames", done.stderr)
    assert damaged and max(Counter(damaged).values()) <= 2
