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


@pytest.mark.slow
def test_whole_networks_and_their_picture(tmp_path):
    path, picture = tmp_path / "result.json", tmp_path / "picture.png"
    models = ("videomamba-ti", "joint-ti", "joint-ti-sdpa")
    printed = run("throughput.py", "--device", "cpu", "--models", *models, "--frames", 2, 4, "--batches", 1,
                  "--image-size", 32, "--seconds", 0.01, "--output", path)  # fmt: skip
    result = json.loads(path.read_text())
    found = {(r["model"], r["frames"], r["phase"]): r for r in result["records"]}
    assert len(found) == len(result["records"]) == 3 * 2 * 2
    for record in found.values():
        assert record["videos_per_second"] == pytest.approx(1e3 / record["milliseconds"])
    speed = result["rates"]
    width, inner, rank, states, tokens, size = 192, 384, 12, 16, 1 + 2 * 4, 4
    flop = 2 * tokens * (width * 2 * inner + 2 * (inner * (rank + 2 * states) + rank * inner) + inner * width)
    scan = max(2 * tokens * inner * states / speed["exponentials"],
               size * tokens * (6 * inner + 4 * states) / speed["bytes"])  # fmt: skip
    rest = tokens * (size * 3 * inner + (2 * size + 8) * width) / speed["bytes"]
    floor = 24 * (flop / speed["flop"] + scan + rest)
    assert found["videomamba-ti", 2, "infer"]["floor_ms"] == pytest.approx(1e3 * floor)
    assert found["videomamba-ti", 2, "train"]["floor_ms"] > found["videomamba-ti", 2, "infer"]["floor_ms"]
    assert "videomamba-ti beside joint-ti-sdpa, 4 frames, batch 1, train" in printed

    run("draw.py", path, picture)
    assert picture.stat().st_size > 10_000


def test_cases_that_do_not_fit_into_the_time_are_said_to_be_left_out(tmp_path):
    path = tmp_path / "result.json"
    run("throughput.py", "--device", "cpu", "--models", "videomamba-ti", "--frames", 2, "--batches", 1,
        "--image-size", 32, "--minutes", 0, "--output", path)  # fmt: skip
    assert {r["skipped"] for r in json.loads(path.read_text())["records"]} == {"out of time"}
