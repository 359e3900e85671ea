"""The benchmark of videos and language: which pairs are left out, what is summed up, and the real script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.synthetic.motion import COLOURS, SHAPES

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("video_text")


def test_new_scenes_are_combinations_that_training_has_not(benchmark):
    known, new = ({(s.shape, s.colour) for s in benchmark.chosen("clips", split, 200, left_out)}
                  for split, left_out in (("train", False), ("test", True)))  # fmt: skip
    assert not known & new and len(known) > 40 and len(new) > 12
    assert {shape for shape, _ in known} == set(SHAPES) and {colour for _, colour in known} == set(COLOURS)


def test_margins_are_taken_seed_by_seed(benchmark):
    runs = []
    for vectors, reranked, after in ((0.4, 0.5, 1.0), (0.6, 0.5, 2.0)):
        tests = [{"set": name, "topk": topk, "t2v_r1": score, "v2t_r1": score / 2}
                 for name in ("known", "new") for topk, score in ((0, vectors), (10, reranked))]  # fmt: skip
        losses = {when: {"clips": {"vtc": value}, "pictures": {"vtc": 3.0}} for when, value in
                  (("before", 4.0), ("after", after))}  # fmt: skip
        runs.append({"tests": tests, "held_out": {"masked": losses, "tuning": losses}})
    found = benchmark.summary(runs)
    row = next(r for r in found["ranks"] if (r["set"], r["topk"]) == ("new", 10))
    assert (row["t2v_r1"], row["t2v_margin"], row["v2t_margin"]) == pytest.approx((0.5, 0.0, 0.0))
    assert row["t2v_margin_std"] == pytest.approx(0.02**0.5)
    row = next(r for r in found["losses"] if (r["stage"], r["kind"]) == ("tuning", "clips"))
    assert (row["loss"], row["before"], row["after"]) == ("vtc", 4.0, 1.5)


@pytest.mark.slow
def test_the_script_and_its_picture(tmp_path):
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    for options in (
        ["train", "--seeds", 0, 1, "--clips", 160, "--videos", 16, "--steps", 20, "--tuning", 20, "--clip-steps", 2,
         "--topk", 3, "--output", results],
        ["draw", "--results", results, "--output", picture],
    ):  # fmt: skip
        command = [sys.executable, FOLDER / "video_text.py", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1] and picture.stat().st_size > 10_000
    for run in result["runs"]:
        masked, tuned = (run["held_out"][stage]["after"]["clips"] for stage in ("masked", "tuning"))
        assert set(masked) == {"vtc", "vtm", "mlm", "uta"} and set(tuned) == {"vtc", "vtm", "mlm"}
        assert [(t["set"], t["topk"]) for t in run["tests"]] == [("known", 0), ("known", 3), ("new", 0), ("new", 3)]
        assert all(0 <= t["t2v_r1"] <= t["t2v_r5"] <= 1 for t in run["tests"])
