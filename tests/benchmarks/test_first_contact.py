import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*command: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=900)


@pytest.mark.slow
def test_every_step_leaves_its_numbers_and_the_table_shows_them(tmp_path):
    done = run(FOLDER / "gpu_first_contact.sh", tmp_path / "out", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = json.loads((tmp_path / "out" / "kernels.json").read_text())["records"]
    networks = json.loads((tmp_path / "out" / "throughput.json").read_text())["records"]
    assert {record["kernel"] for record in kernels} == {"scan", "conv", "norm"}
    assert {record["phase"] for record in networks} == {"infer", "train"}
    for name in ("right", "kernels", "throughput"):
        assert f"{name}: done" in done.stdout
        assert (tmp_path / "out" / f"{name}.log").stat().st_size > 0
    assert f"{networks[0]['milliseconds']:.3g}" in done.stdout


def test_without_a_folder_it_says_how(tmp_path):
    done = run(FOLDER / "gpu_first_contact.sh")
    assert done.returncode == 2 and "gpu_first_contact.sh FOLDER" in done.stdout
    assert run(FOLDER / "gpu_first_contact.sh", tmp_path, "tpu").returncode == 2


def test_the_table_compares_with_ours_and_says_what_was_left_out(tmp_path):
    def record(backend, **other):
        return {"kernel": "scan", "size": "m", "frames": 8, "batch": 32, "backend": backend} | other

    records = [
        record("triton", forward_ms=1.5, both_ms=8.0),
        record("official", forward_ms=4.2, both_ms=14.4),
        record("reference", skipped="RuntimeError: [no] kernel"),
    ]
    machine = {"device": "NVIDIA H100", "torch": "2.14.1"}
    (tmp_path / "kernels.json").write_text(json.dumps({"machine": machine, "records": records}))
    (tmp_path / "status.tsv").write_text("kernels\t124\nsweep\t1\n")
    done = run(sys.executable, FOLDER / "first_contact.py", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "official" in line)
    assert [cell.strip() for cell in row.split("│")][-4:-1] == ["2.80", "1.80", ""]
    assert "[no]" in done.stdout
    assert "kernels: cut off at its limit" in done.stdout and "sweep: status 1" in done.stdout


def test_no_numbers_are_a_failure(tmp_path):
    done = run(sys.executable, FOLDER / "first_contact.py", tmp_path)
    assert done.returncode == 1 and "No step left numbers" in done.stderr
