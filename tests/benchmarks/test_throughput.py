import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_modules.nets.bimamba import BiMamba
from lightning_modules.ops import causal_conv1d, selective_scan

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


@pytest.mark.slow
def test_cases_that_do_not_fit_into_the_time_are_said_to_be_left_out(tmp_path):
    path = tmp_path / "result.json"
    run("throughput.py", "--device", "cpu", "--models", "videomamba-ti", "--frames", 2, "--batches", 1,
        "--image-size", 32, "--minutes", 0, "--output", path)  # fmt: skip
    assert {r["skipped"] for r in json.loads(path.read_text())["records"]} == {"out of time"}


def test_the_official_order_of_operations_gives_the_same(load_benchmark, monkeypatch):
    """With stand-ins for the packages' kernels, which run on GPUs only."""

    def convolution(x, weight, bias, activation):
        return causal_conv1d(x.transpose(1, 2), weight, bias, activation).transpose(1, 2)

    def scan(u, delta, A, B, C, D, z, bias, softplus):
        u, delta, B, C, z = (tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))
        return selective_scan(u, delta, A, B, C, D, z, bias, softplus).transpose(1, 2)

    names = ("causal_conv1d", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    packages = {name: ModuleType(name) for name in names}
    packages["causal_conv1d"].causal_conv1d_fn = convolution
    packages["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = scan
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    mixer = BiMamba(32)
    h = torch.randn(2, 7, 32)
    with torch.no_grad():
        wanted = mixer(h)
        mixer.__class__ = load_benchmark("throughput").OfficialMixer
        torch.testing.assert_close(mixer(h), wanted, rtol=1e-4, atol=1e-6)


def test_what_failed_is_recorded_with_its_reason(load_benchmark, monkeypatch):
    def fail(*_):
        raise ValueError("no kernel\nimage")

    throughput = load_benchmark("throughput")
    options = throughput.parse(["--device", "cpu", "--models", "videomamba-ti", "--frames", "1", "--batches", "1"])
    monkeypatch.setattr(throughput, "case", fail)
    records = list(throughput.measure(options, torch.device("cpu"), torch.float32, None))
    assert [record["skipped"] for record in records] == ["ValueError: no kernel"] * 2
