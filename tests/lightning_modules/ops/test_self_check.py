import json
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.ops import self_check
from lightning_modules.ops.backend import _kernels

REFERENCE = _kernels("reference")


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The file of verdicts, and a process that has none."""
    monkeypatch.setattr(self_check, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(self_check, "_verdicts", {})
    return tmp_path / "cache" / "kernels.json"


def forget() -> None:
    self_check._verdicts.clear()


def defect(kernels) -> str | None:
    return self_check.defect("triton", kernels, REFERENCE, "cpu")


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.001 * grad


def raising(error: Exception):
    def kernel(*_, **__):
        raise error

    return SimpleNamespace(scan=kernel, bidirectional_conv1d=kernel, add_rms_norm=kernel)


def test_right_kernels_pass_and_are_not_run_again(kept) -> None:
    assert defect(_kernels("numba")) is None
    assert list(json.loads(kept.read_text()).values()) == [None]
    broken = dict.fromkeys(REFERENCE, raising(ValueError("run again")))
    assert defect(broken) is None
    forget()  # as in another process
    assert defect(broken) is None


@pytest.mark.parametrize(
    ("kernel", "wrong", "what"),
    [
        ("scan", SimpleNamespace(scan=lambda *a: 1.001 * REFERENCE["scan"].scan(*a)), "result 1 of the scan"),
        ("scan", SimpleNamespace(scan=lambda d, *a: REFERENCE["scan"].scan(d[:1], *a) + 0 * sum(t.sum() for t in d[1])),
         "result 1 of the scan"),
        ("scan", SimpleNamespace(scan=lambda d, z, *a: REFERENCE["scan"].scan(d, WrongBackward.apply(z), *a)),
         "the gradient of z of the scan"),
        ("conv", SimpleNamespace(bidirectional_conv1d=lambda x, weight, bias, **other: REFERENCE[
            "conv"].bidirectional_conv1d(x, weight, WrongBackward.apply(bias), **other)),
         "the gradient of bias of the conv"),
        ("norm", SimpleNamespace(add_rms_norm=lambda *a, eps, **b: REFERENCE["norm"].add_rms_norm(*a, eps=1e-2, **b)),
         "result 1 of the norm"),
        ("norm", SimpleNamespace(add_rms_norm=lambda *a, **b: [
            y * torch.nan for y in REFERENCE["norm"].add_rms_norm(*a, **b)]), "result 1 of the norm is off by nan"),
    ],
)  # fmt: skip
def test_wrong_kernels_are_named_and_the_verdict_stays(kernel, wrong, what) -> None:
    sentence = defect(REFERENCE | {kernel: wrong})
    assert sentence.startswith(f"The triton backend gives wrong results on this machine ({what}")
    assert sentence.endswith("use another backend.")
    forget()
    assert defect(REFERENCE) == sentence


def test_a_failure_to_run_is_said_but_not_kept(kept) -> None:
    sentence = defect(dict.fromkeys(REFERENCE, raising(RuntimeError("no kernel image\nmore"))))
    assert sentence == (
        "The triton backend fails on this machine (RuntimeError: no kernel image); use another backend."
    )
    forget()
    assert not kept.exists()
    assert defect(REFERENCE) is None


def test_lack_of_memory_says_nothing(kept) -> None:
    full = dict.fromkeys(REFERENCE, raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert defect(full) is None
    assert not kept.exists()
    assert "fails" in defect(dict.fromkeys(REFERENCE, raising(ValueError("asked again"))))


def test_another_version_is_checked_again(monkeypatch) -> None:
    assert defect(REFERENCE) is None
    forget()
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert "wrong results" in defect(REFERENCE | {"scan": SimpleNamespace(scan=lambda d, *_: 0 * sum(
        tensor.sum() for direction in d for tensor in direction) + _[0])})  # fmt: skip


@pytest.mark.parametrize("content", ["", "[1]", "{", "\ud800"])
def test_a_damaged_file_is_made_anew(kept, content) -> None:
    kept.parent.mkdir()
    kept.write_bytes(content.encode(errors="surrogatepass"))
    assert defect(REFERENCE) is None
    assert list(json.loads(kept.read_text()).values()) == [None]


def test_without_a_place_to_keep_it(kept) -> None:
    kept.parent.touch()  # a file where the folder would be
    assert defect(REFERENCE) is None


def test_under_inference_mode_and_while_tracing() -> None:
    with torch.inference_mode(), torch.device("meta"):
        assert defect(REFERENCE) is None
