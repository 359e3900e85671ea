"""The shipped model uses time: it needs the frames in order, and sees the opposite motion where they run backwards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "shuffled_frames.py"


def run(folder, *options):
    command = [sys.executable, SCRIPT, "--output", folder / "result.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_order_is_what_the_model_goes_by(tmp_path):
    result = run(tmp_path, "--videos", "40", "--shuffles", "2", "--plot", tmp_path / "bars.png")
    orders = result["orders"]
    assert (result["videos"], result["chance"]) == (40, 0.125)
    assert orders["in order"]["right"] > 0.9
    assert orders["backwards"]["opposite"] > 0.85 and orders["backwards"]["right"] < 0.06
    # What is left without order is the pair of motions; which of the two is a guess.
    assert orders["shuffled"]["right"] < 0.4
    assert 0.35 < orders["shuffled"]["direction"] < 0.65
    assert orders["one frame"]["right"] < 0.3
    for shares in orders.values():
        assert shares["right"] + shares["opposite"] + shares["other"] == pytest.approx(1)
        assert sum(c["right"] for c in shares["classes"].values()) / 8 == pytest.approx(shares["right"])
    assert (tmp_path / "bars.png").stat().st_size > 10_000


@pytest.mark.slow
def test_shuffled_frames_fall_to_chance_where_they_do_not_give_the_pair_away(tmp_path):
    orders = run(tmp_path, "--videos", "160", "--shuffles", "3", "--nuisance", "0.6")["orders"]
    assert orders["in order"]["right"] > 0.4  # the model was trained with 0.1
    assert orders["shuffled"]["right"] == pytest.approx(0.125, abs=0.05)
    assert orders["one frame"]["right"] == pytest.approx(0.125, abs=0.06)
