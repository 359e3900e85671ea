"""The decoding benchmark: its readers agree, its limit is what has to be decoded, its script writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("decode")


@pytest.fixture(scope="module")
def video(benchmark, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "mpeg4.avi"
    benchmark.encode(path, 40, "340x256", "mpeg4")
    return path


def test_readers_give_the_same_clip(benchmark, video):
    indices = np.array([3, 17, 17, 38])
    clip = benchmark.read_zoo(video, indices)
    assert clip.shape == (3, 4, 224, 224) and torch.equal(clip, benchmark.read_pyav_all(video, indices))


def test_the_limit_is_the_packets_since_the_key_frame(benchmark, video):
    with benchmark.Recorder(video) as reader:
        reader.read([30])  # a key frame every 12
        keys = [packet is not None and packet.is_keyframe for packet, _ in reader.work]
        assert keys == [True] + [False] * 6  # 24 to 30
        reader.work.clear()
        reader.read([30, 2])
        assert len(reader.work) == 3 + 7
    assert benchmark.limit_seconds(video, np.array([30])) > 0


def test_rows(tmp_path):
    command = [sys.executable, FOLDER / "decode.py", "--data", tmp_path, "--sizes", "340x256", "--codecs", "h264",
               "--lengths", 30, "--clips", "sparse 8", "--readers", "zoo", "zoo-cached", "pyav-all", "--rounds", 2,
               "--output", tmp_path / "result.json"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    (row,) = result["rows"]
    assert (row["file"], row["num_frames"], row["clip"], row["turns"]) == ("h264_340x256_30.mp4", 30, "sparse 8", 2)
    rates = row["clips_per_cpu_second"]
    assert set(rates) == {"zoo", "zoo-cached", "pyav-all"} and min(rates.values()) > 0 and row["limit_seconds"] > 0
    assert "ratio" not in row and "failed" not in row  # there is no baseline
    assert "h264_340x256_30.mp4 sparse 8" in done.stdout
