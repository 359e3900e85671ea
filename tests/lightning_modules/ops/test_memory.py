import ctypes

import pytest
import torch

from lightning_modules.ops.memory import address, readable, rows


def _float_at(where: int) -> float:
    return ctypes.c_float.from_address(where).value


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_walks_a_slice_in_place(reverse: bool) -> None:
    wide = torch.arange(2 * 5 * 12, dtype=torch.float32).view(2, 5, 12)
    part = wide[..., 4:10]
    assert readable(part) is part
    start, step = rows(part, 1, 2, reverse)
    walked = [_float_at(start + i * step) for i in range(5)]
    expected = wide[1, :, 6].tolist()
    assert walked == (expected[::-1] if reverse else expected)


def test_readable_copies_only_what_it_must() -> None:
    transposed = torch.randn(1, 3, 5).transpose(1, 2)
    assert readable(transposed).stride(-1) == 1
    torch.testing.assert_close(readable(transposed), transposed)
    assert readable(torch.ones(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert readable(None) is None


def test_nothing_has_address_zero() -> None:
    assert address(None) == 0
    assert rows(None, 3) == (0, 0)
