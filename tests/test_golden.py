"""The golden tensors are whole, described and small enough to be part of every clone."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("golden")
NAMES = sorted(path.name.removesuffix(".safetensors.xz") for path in FOLDER.glob("*.safetensors.xz"))


def test_files_go_in_pairs_and_stay_below_14_mb():
    assert len(NAMES) >= 17 and sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 14_000_000


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_described(golden, name):
    tensors, sidecar = golden(name)
    described = sidecar["tensors"]
    assert set(tensors) == set(described)
    for key, tensor in tensors.items():
        assert list(tensor.shape) == described[key]["shape"], key
