"""Official files, in all the ways they nest their weights."""

import pytest
import torch
from safetensors.torch import save_file

import hub
from hub.convert.videomamba import read_official, to_zoo

WEIGHTS = {"cls_token": torch.randn(1, 1, 4), "head.weight": torch.randn(2, 4)}


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w, "epoch": 3}, lambda w: {"module": w},
                                  lambda w: {"model_state": w, "cfg": "x: 1"}])  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_flat_and_nested(tmp_path, wrap, zipped):
    torch.save(wrap(WEIGHTS), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_official(tmp_path / "a.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in WEIGHTS.items())


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert read_official(tmp_path / "a.safetensors").keys() == WEIGHTS.keys()


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, {"model": 3}, {"a": 1}, torch.ones(2), None])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(hub.HubError, match=r"a\.pth holds no weights"):
        read_official(tmp_path / "a.pth")


def test_only_the_distillation_head_is_dropped():
    official = WEIGHTS | {"distill_head.1.weight": torch.ones(1), "distill_headless": torch.ones(1)}
    assert to_zoo(official).keys() == {"net.cls_token", "net.head.weight", "net.distill_headless"}
