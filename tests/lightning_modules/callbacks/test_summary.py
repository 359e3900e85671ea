"""The table before a training: its numbers against the parameters of the module."""

import io
import re

import pytest
import torch
from rich.console import Console

from lightning_modules.callbacks.summary import readable, summary_table
from lightning_modules.tasks.classification import VideoClassifier


def rows(module) -> dict[str, list[str]]:
    text = io.StringIO()
    Console(width=140, file=text).print(summary_table(module))
    found = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in text.getvalue().splitlines() if line[:1] in ("│", "┃")]
    return {cells[0]: cells[1:] for cells in found}


@pytest.fixture(scope="module")
def module() -> VideoClassifier:
    return VideoClassifier(5, embed_dim=32, depth=3, num_frames=2, image_size=32, freeze_backbone=True)


def test_parts_add_up_to_the_network(module):
    table = rows(module)
    assert list(table)[1:] == [
        "cls_token, pos_embed, temporal_pos_embedding", "patch_embed", "layers: 3 x Block", "norm_f", "head", "total",
    ]  # fmt: skip
    numbers = {title: [int(cell.replace(",", "")) for cell in cells[:2]] for title, cells in list(table.items())[1:]}
    total = sum(p.numel() for p in module.parameters())
    assert numbers["total"] == [total, 32 * 5 + 5]
    assert sum(number[0] for title, number in numbers.items() if title != "total") == total
    assert numbers["head"] == [165, 165] and numbers["layers: 3 x Block"][1] == 0
    assert table["head"][2] == "320"
    assert table["patch_embed"][2] == readable(2 * 2 * 4 * 32 * 3 * 16 * 16)


def test_the_module_is_left_as_it_was(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    training = module.training
    summary_table(module)
    assert module.training == training
    after = module.state_dict()
    assert all(after[name].device.type == "cpu" and after[name].equal(before[name]) for name in before)


def test_a_module_that_takes_something_else_has_no_operations(module, monkeypatch):
    def forward(self, video, text):
        raise AssertionError

    monkeypatch.setattr(VideoClassifier, "forward", forward)
    with pytest.warns(UserWarning, match="operations of VideoClassifier cannot be counted"):
        table = rows(module)
    assert table["total"][0] == f"{sum(p.numel() for p in module.parameters()):,}"
    assert table["total"][2] == "?"


@pytest.mark.parametrize(
    ("operations", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (4_321_000_000, "4.32 G"), (48_000_000_000, "48 G"), (2.5e12, "2.5 T")],
)
def test_readable(operations, text):
    assert readable(operations) == text


def test_image_models_are_counted_too():
    with torch.device("meta"):
        module = VideoClassifier(5, embed_dim=32, depth=1, num_frames=None, image_size=32)
    assert rows(module)["patch_embed"][2] == readable(2 * 4 * 32 * 3 * 16 * 16)
