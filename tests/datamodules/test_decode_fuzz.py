"""Mutated files through the reader, in processes of their own: `fuzz_decode.py` says what is done to them."""

import subprocess
import sys
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
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=SCRIPT.parents[2])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1]}: ended with {done.returncode}\n{done.stderr[-2000:]}"
    outcomes = [line.split()[1] for line in lines[:-1]]
    assert len(outcomes) == count and not [line for line in lines if " wrong " in line]
    assert outcomes.count("read") > count / 5 and outcomes.count("refused") > count / 5
    if count >= 1000:
        assert float(lines[-1].split()[1]) < LEAK_MIB_PER_THOUSAND
