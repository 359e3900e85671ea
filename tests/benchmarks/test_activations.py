import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "activations.py"


def test_a_row_of_ratios_for_every_variant():
    options = ["--depth", "1", "--frames", "2", "--image-size", "64", "--rounds", "2"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: [float(n) for n in line.split()[1:]] for line in done.stdout.splitlines()[2:-1]}
    assert list(rows) == ["earlier", "speed", "balanced", "memory"]
    assert rows["earlier"][1] == rows["earlier"][3] == 1  # the ratios, to itself
    kept = [row[-1] for row in rows.values()]
    assert kept == sorted(kept, reverse=True) and kept[-1] > 0
