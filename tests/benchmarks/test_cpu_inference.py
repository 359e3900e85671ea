import json
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cpu_inference.py"
IMAGE_SIZE, PATCHES = 32, 4


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run small enough for a test, on one thread so that other tests beside it do not slow it down much."""
    path = tmp_path_factory.mktemp("benchmark") / "result.json"
    done = run(
        "--models", "videomamba-ti", "joint-vit-ti", "--frames", "4", "16", "--reference-frames", "4",
        "--image-size", str(IMAGE_SIZE), "--repeats", "3", "--threads", "1", "--output", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()) | {"printed": done.stdout}


def by_case(result) -> dict:
    return {(r["model"], r["frames"], r["backend"], r["precision"]): r for r in result["records"]}


@pytest.mark.slow
def test_every_case_has_one_record_and_only_the_slow_one_is_skipped(result):
    cases = by_case(result)
    assert len(result["records"]) == len(cases)
    skipped = {case for case, record in cases.items() if record["skipped"]}
    assert skipped == {("videomamba-ti", 16, "reference", "fp32")}
    assert set(cases) - skipped == {
        ("videomamba-ti", 4, "reference", "fp32"),
        *((*case, precision) for precision in ("fp32", "bf16") for case in [
            ("videomamba-ti", 4, "numba"), ("videomamba-ti", 16, "numba"),
            ("joint-vit-ti", 4, None), ("joint-vit-ti", 16, None),
        ]),
    }  # fmt: skip
    assert all(cases[case]["seconds_min"] is None for case in skipped)


@pytest.mark.slow
def test_tokens_are_those_of_the_architectures(result):
    for (model, frames, *_), record in by_case(result).items():
        class_token = model == "videomamba-ti"  # VideoMAE averages its tokens instead
        assert record["tokens"] == frames * PATCHES + class_token


@pytest.mark.slow
def test_attention_is_fused(result):
    assert {r["attention"] for r in result["records"] if r["model"] == "joint-vit-ti"} == {"sdpa"}


@torch.inference_mode()
def case_of(load_benchmark, model, frames):
    benchmark = load_benchmark("cpu_inference")
    sizes = ["--frames", str(frames), "--image-size", str(IMAGE_SIZE)]
    return benchmark.build_cases(benchmark.parse(["--models", model, *sizes]))[0]


@torch.inference_mode()
def test_matrix_work_of_videomamba_is_that_of_its_shapes(load_benchmark):
    width, depth, inner, rank, states, classes = 192, 24, 384, 12, 16, 400
    case = case_of(load_benchmark, "videomamba-ti", 4)
    token = width * 2 * inner + 2 * (inner * (rank + 2 * states) + rank * inner) + inner * width
    patches = (case.tokens - 1) * 3 * 16 * 16 * width
    flop = 2 * (case.tokens * depth * token + patches + width * classes)
    assert case.tokens == 4 * PATCHES + 1 and case.matrix_gflop == pytest.approx(flop / 1e9, rel=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [4, 16])
def test_matrix_work_of_joint_attention_is_that_of_its_shapes(load_benchmark, frames):
    width, layers, hidden, classes, tokens = 192, 12, 768, 400, frames * PATCHES
    case = case_of(load_benchmark, "joint-vit-ti", frames)
    linear = layers * (4 * width**2 + 2 * width * hidden) + 3 * 16 * 16 * width
    attention = layers * 2 * tokens**2 * width  # queries times keys and weights times values
    flop = 2 * (tokens * linear + attention + width * classes)
    assert case.tokens == tokens and case.matrix_gflop == pytest.approx(flop / 1e9, rel=1e-6)


@pytest.mark.slow
def test_summaries_follow_from_what_was_measured(result):
    for record in result["records"]:
        if record["skipped"]:
            continue
        assert 1 <= len(record["seconds"]) <= 3
        assert record["seconds_min"] == min(record["seconds"]) > 0
        assert record["seconds_median"] == statistics.median(record["seconds"])
        limit = record["matrix_gflop"] / max(record["mm_gflops"], record["onednn_gflops"] or 0)
        if record["backend"]:
            assert record["state_updates"] == 2 * record["tokens"] * 384 * 16 * 24  # inner width, states, depth
            limit += record["state_updates"] / record["updates_per_second"]
        assert record["limit_seconds"] == pytest.approx(limit)
        assert record["peak_mib"] is None or record["peak_mib"] >= 0
        assert record["memory_method"] in ("VmHWM", "sampled", "unknown")


@pytest.mark.slow
def test_what_was_not_run_is_not_judged(result):
    unmeasured = [line for line in result["checks"] if "frames" in line["name"]]
    assert len(unmeasured) == 5
    assert all(line["value"] is None and line["passed"] is None for line in unmeasured)
    assert "PASS" not in result["printed"] and "FAIL" not in result["printed"]


@pytest.mark.slow
def test_the_machine_is_described(result):
    machine = result["machine"]
    assert machine["threads"] == 1
    assert {"cpu", "cores", "torch", "numba", "transformers", "commit", "date", "load_average"} <= set(machine)
    assert result["settings"]["image_size"] == IMAGE_SIZE


def test_peak_memory_is_what_a_call_holds_at_most():
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from common import peak_memory\n"
        "import torch; hold = [torch.ones(2**24)]\n"
        "def call():\n"
        "    torch.ones(25 * 2**18); x = torch.ones(20 * 2**18); y = x + 1\n"
        "print(json.dumps([peak_memory(call), peak_memory(lambda: None)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, SCRIPT.parent], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (peak, method), (nothing, _) = json.loads(done.stdout)
    if method != "VmHWM":
        pytest.skip("this system does not let a process set its high-water mark back")
    # Two arrays of 20 MiB at a time; the one of 25 is freed before. The rest is what the system adds.
    assert 38 < peak < 60 and nothing < 20


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--models", "videomamba-xl"], "videomamba-xl"),
        (["--image-size", "100"], "multiple of the patches' 16 pixels"),
        (["--frames", "0"], "at least 1"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(options, complaint, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as when the script is run; `common` lies beside it
    parse = runpy.run_path(str(SCRIPT))["parse"]
    with pytest.raises(SystemExit) as caught:
        parse(options)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
