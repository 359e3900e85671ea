"""The study of MambaVL runs, learns something in a moment, and has a row for the cost of every block."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mambavl.py"


def run(folder, *options):
    command = [sys.executable, SCRIPT, "--output", folder / "result.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_training_and_cost(tmp_path):
    result = run(tmp_path, "--seeds", "1", "--epochs", "3", "--draws", "1", "--videos", "12", "5", "--lengths", "64",
                 "256", "--variants", "joint", "no questions", "published", "transformer generic")  # fmt: skip
    shared, silent, told, generic = result["runs"]
    assert (shared["variant"], silent["variant"]) == ("joint", "no questions")
    assert told["leaked"]["questions_from_labels"] == 1 and generic["leaked"] is None
    assert "questions_from_labels" not in told["scores"] and 0 <= generic["scores"]["action_top1"] <= 1
    assert shared["scores"]["verb_top5"] > 0.5 and 0 <= shared["scores"]["action_top1"] <= 1
    assert set(shared["answers"]) == {"verb", "noun", "action", "place"} and silent["answers"] is None
    assert [(row["tokens"], row["block"]) for row in result["cost"]] == [
        (tokens, name) for tokens in (64, 256) for name in ("published", "joint", "separate", "cross_attention")
    ]
    assert all(row["ms"] > 0 for row in result["cost"])
