"""The pixel benchmark compares two ways to the same pixels and counts the bytes that they have to move."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("pixels")


def test_both_ways_give_the_same(benchmark):
    libraries, one_pass, num_bytes = benchmark.frame_ways(340, 256, None)
    assert torch.equal(libraries(), one_pass()) and libraries().shape == (256, 340, 3)
    assert num_bytes == 340 * 256 * 3 // 2 + 340 * 256 * 3
    libraries, one_pass, num_bytes = benchmark.frame_ways(640, 480, 100)
    assert torch.equal(libraries(), one_pass()) and libraries().shape == (100, 133, 3)
    assert num_bytes == 200 * 640 * 3 // 2 + 100 * 133 * 3  # 200 of 480 rows are looked at
    libraries, one_pass, num_bytes = benchmark.crop_ways()
    assert torch.equal(libraries(), one_pass()) and num_bytes == 2 * libraries().nbytes


def test_rows(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "FRAMES", {"small": (64, 48, 32)})
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--output", str(tmp_path / "pixels.json")])
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "pixels.json").read_text())["rows"]
    assert list(rows) == ["small", benchmark.CROPS]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["libraries_ms"] / row["one_pass_ms"]) and row["floor_ms"] > 0
    assert "small" in capsys.readouterr().out
