"""The ablations' script: every variant is trained with every seed, and what is reported follows from the runs."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.nets.scan_orders import SCAN_ORDERS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ablations.py"
SMALL = ["--seeds", "2", "--epochs", "1", "--train", "8", "--test", "16", "--passes", "1", "--batch-size", "4"]


def run(folder, *options):
    done = subprocess.run([sys.executable, SCRIPT, *options, "--output", folder], capture_output=True, text=True,
                          timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def check(variants):
    for name, variant in variants.items():
        scores = [run["top1"] for run in variant["runs"]]
        assert [run["seed"] for run in variant["runs"]] == [0, 1], name
        assert (variant["mean"], variant["std"]) == (
            pytest.approx(statistics.fmean(scores)), pytest.approx(statistics.stdev(scores))
        )  # fmt: skip
        for one in variant["runs"]:
            assert one["top1"] == one["epochs"][-1]["val/top1"] <= one["best_top1"]
            assert one["top1"] * 16 == pytest.approx(round(one["top1"] * 16), abs=1e-2)
        assert variant["runs"][0]["epochs"][0]["train/loss"] != variant["runs"][1]["epochs"][0]["train/loss"]


@pytest.mark.slow
def test_scan_orders(tmp_path):
    results = run(tmp_path, "scan_orders", *SMALL)
    assert list(results) == ["ablations_scan_orders"]
    study = results["ablations_scan_orders"]
    assert tuple(study["variants"]) == SCAN_ORDERS
    assert study["variants"]["temporal_first"]["paper_top1"] == 62.4
    assert study["settings"]["train"] == 8 and study["machine"]["torch"]
    check(study["variants"])
    # All start from the same weights, so it is the order that makes the difference; losses are kept with four digits.
    losses = [
        tuple(epoch["train/loss"] for run in variant["runs"] for epoch in run["epochs"])
        for variant in study["variants"].values()
    ]
    assert len(set(losses)) > 4
    first = [loss for loss, *_ in losses]
    assert max(first) - min(first) < 0.3


@pytest.mark.slow
def test_distillation(tmp_path):
    study = run(tmp_path, "distillation", *SMALL)["ablations_distillation"]
    assert list(study["variants"]) == ["alone", "teacher", "teacher, first half", "teacher, L2"]
    assert study["clips"] == 4 and [run["seed"] for run in study["teacher"]["runs"]] == [100, 101]
    check(study["variants"])


@pytest.mark.slow
def test_a_misspelt_study_is_named():
    done = subprocess.run([sys.executable, SCRIPT, "scans"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "there is no study 'scans'; choose from scan_orders, distillation" in done.stderr
