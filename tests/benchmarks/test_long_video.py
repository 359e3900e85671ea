import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *options: object) -> str:
    command = [sys.executable, FOLDER / script, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # a process for each case
def test_cases_their_limits_and_their_picture(tmp_path):
    path, picture = tmp_path / "result.json", tmp_path / "picture.png"
    few = ("--device", "cpu", "--image-size", 64, "--output", path)
    run("long_video.py", *few, "--models", "videomamba-ti", "--frames", 4, 8)
    run("long_video.py", *few, "--models", "videomamba-ti", "joint-ti", "--frames", 8, "--go-on")
    result = json.loads(path.read_text())
    found = {(r["model"], r["frames"], r["phase"]): r for r in result["records"]}
    assert len(found) == len(result["records"]) == 3 * 2 + 3
    for record in found.values():
        assert record["videos_per_second"] == pytest.approx(1e3 / record["milliseconds"])
        assert min(record[f"{kind}_mib"] for kind in ("process", "peak", "least")) > 0
    tokens, width, inner, rank, states = 1 + 8 * 16, 192, 384, 12, 16
    kept = width + 2 * inner + 2 * (rank + 2 * states) + 2 * inner * states / 128
    assert found["videomamba-ti", 8, "train"]["least_mib"] == pytest.approx(24 * tokens * 4 * kept / 2**20)
    tokens = 8 * 16
    assert found["joint-ti", 8, "train"]["least_mib"] == pytest.approx(
        12 * tokens * 4 * (16 * width + 3 * tokens) / 2**20
    )
    plain, again = found["videomamba-ti", 8, "train"], found["videomamba-ti-checkpointed", 8, "train"]
    assert plain["least_mib"] > again["least_mib"]
    run("draw.py", path, picture, "--phase", "infer", "train")
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_a_case_that_ends_at_the_memory_says_so(tmp_path):
    path = tmp_path / "result.json"
    # Written out, 64 frames of 224 px are 12,544 tokens: 12 matrices of 1.8 GiB. Libraries and one frame take below 1.
    run("long_video.py", "--device", "cpu", "--models", "joint-ti", "--phases", "train", "--frames", 1, 64, 128,
        "--memory-gib", 3, "--output", path)  # fmt: skip
    records = json.loads(path.read_text())["records"]
    assert "milliseconds" in records[0]
    reason = "memory: it needs more than 3 GiB"
    assert [r["skipped"] for r in records[1:]] == [reason, f"{reason} (at 64 frames)"]
