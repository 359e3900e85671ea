"""The retrieval benchmark: what it reckons by hand, and its parts through the real script."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.synthetic.motion import clip_spec

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("retrieval")


def run(*options: object) -> str:
    command = [sys.executable, FOLDER / "retrieval.py", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_best_possible_score_is_a_guess_between_the_clips_that_a_caption_fits(benchmark):
    scene = clip_spec(0, "test", 0, "move_left")
    quick = "the red disc slides left quickly in front of blue dots"
    plain = "a red disc moves to the left over a blue dotted background"
    slow = quick.replace("quickly", "slowly")
    first = replace(scene, captions=(plain, quick), travels=(0.79,) * 4)
    other_shape = next(shape for shape in ("drop", "disc") if shape != scene.shape)
    specs = [first, replace(scene, captions=(plain, slow), travels=(0.51,) * 4), replace(first, motion="move_right"),
             replace(first, motion="grow"), replace(first, shape=other_shape)]  # fmt: skip
    best = benchmark.best_possible(specs)
    # The two that move to the left are told apart by their pace alone, where the caption says it.
    assert best["motion"] == pytest.approx((2 * (1 / 2 + 1) + 3 * 2) / 10)
    assert best["pair"] == pytest.approx((3 * 2 / 3 + 2 * 2) / 10)
    assert best["no motion"] == pytest.approx((4 * 2 / 4 + 2) / 10)


def test_twins_differ_in_motion_only(benchmark):
    specs = [clip_spec(7, "test", scene, motion) for scene in range(5) for motion in benchmark.CLASSES]
    assert len({benchmark.scenery(spec) for spec in specs}) == 5
    best = benchmark.best_possible(specs)
    assert (best["motion"], best["pair"], best["no motion"]) == (1, pytest.approx(1 / 2), pytest.approx(1 / 8))


def test_margins_are_taken_seed_by_seed(benchmark):
    scores = {"muse": (0.5, 0.7, 0.6), "mean": (0.4, 0.5, 0.6)}
    records = [{"set": "random", "head": head, "seed": seed, "t2v_r1": value}
               for head, values in scores.items() for seed, value in enumerate(values)]  # fmt: skip
    muse, mean = benchmark.summary(records)
    assert muse == {"set": "random", "head": "muse", "seeds": 3, "t2v_r1": pytest.approx(0.6),
                    "t2v_r1_std": pytest.approx(0.1), "margin": pytest.approx(0.1),
                    "margin_std": pytest.approx(0.1)}  # fmt: skip
    assert mean["t2v_r1"] == pytest.approx(0.5) and "margin" not in mean


@pytest.mark.slow
def test_heads_learners_and_their_picture(tmp_path):
    heads, steps, picture = tmp_path / "heads.json", tmp_path / "learners.json", tmp_path / "picture.png"
    run("heads", "--sets", "random", "twins", "--clips", 64, "--videos", 16, "--seeds", 0, 1, "--steps", 3, 2,
        "--data", tmp_path / "clips", "--output", heads)  # fmt: skip
    result = json.loads(heads.read_text())
    cases = {(r["set"], r["head"], r["seed"]) for r in result["records"]}
    assert len(cases) == len(result["records"]) == 2 * 3 * 2
    assert result["sets"]["twins"]["train"] == 64 and result["sets"]["twins"]["test"] == 16
    assert all(0 <= r["t2v_r1"] <= r["t2v_r5"] <= r["t2v_r10"] <= 1 for r in result["records"])

    run("learners", "--device", "cpu", "--learners", "bimamba", "none", "--pyramids", 1, "--seconds", 0.01, "--output",
        steps)  # fmt: skip
    records = json.loads(steps.read_text())["records"]
    assert [(r["learner"], r["length"]) for r in records] == [("bimamba", 120), ("none", 120)]
    assert records[0]["floor_seconds"] > records[1]["floor_seconds"]
    run("draw", "--heads", heads, "--learners", steps, "--output", picture)
    assert picture.stat().st_size > 10_000
