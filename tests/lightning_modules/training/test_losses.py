"""The losses of pairs against their definitions."""

import math

import pytest
import torch

from lightning_modules.training.losses import contrastive_loss, max_margin_loss


def by_hand(text, video, scale, group=None):
    """Pair by pair, from the definition."""
    n, total = len(text), 0.0
    for i in range(n):
        rest = [j for j in range(n) if j == i or group is None or group[j] != group[i]]
        right = math.exp(scale * float(text[i] @ video[i]))
        total -= math.log(right / sum(math.exp(scale * float(text[i] @ video[j])) for j in rest)) / (2 * n)
        total -= math.log(right / sum(math.exp(scale * float(text[j] @ video[i])) for j in rest)) / (2 * n)
    return total


@pytest.mark.parametrize("group", [None, [3, 1, 3, 0, 1, 3]])
def test_equals_the_definition(group):
    generator = torch.Generator().manual_seed(0)
    text, video = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator)) for _ in range(2))
    loss = contrastive_loss(text, video, 3.0, None if group is None else torch.tensor(group))
    assert loss.item() == pytest.approx(by_hand(text, video, 3.0, group), rel=1e-5)


def test_known_values():
    vectors = torch.eye(4)
    assert contrastive_loss(vectors, vectors, 0.0).item() == pytest.approx(math.log(4))  # nothing is told apart
    right = math.exp(5) / (math.exp(5) + 3)
    assert contrastive_loss(vectors, vectors, 5.0).item() == pytest.approx(-math.log(right))
    one_video = torch.zeros(4, dtype=torch.int64)
    assert contrastive_loss(vectors, vectors, 5.0, one_video).item() == 0.0  # no negatives


def test_gradients_are_finite_where_negatives_are_left_out():
    text, video = torch.eye(3, requires_grad=True), torch.eye(3).roll(1, 0).requires_grad_()
    scale = torch.tensor(2.0, requires_grad=True)
    contrastive_loss(text, video, scale, torch.tensor([0, 0, 1])).backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (text, video, scale))


def margin_by_hand(text, video, margin, group=None):
    """Wrong pair by wrong pair, from the definition."""
    total = count = 0
    for i in range(len(text)):
        for j in range(len(text)):
            if i != j and (group is None or group[i] != group[j]):
                right = float(text[i] @ video[i])
                total += max(0, margin - right + float(text[i] @ video[j]))
                total += max(0, margin - right + float(text[j] @ video[i]))
                count += 2
    return total / max(count, 1)


@pytest.mark.parametrize("group", [None, [3, 1, 3, 0, 1, 3], [0] * 6])
def test_max_margin_equals_the_definition(group):
    generator = torch.Generator().manual_seed(0)
    text, video = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator)) for _ in range(2))
    loss = max_margin_loss(text, video, 0.3, None if group is None else torch.tensor(group))
    assert loss.item() == pytest.approx(margin_by_hand(text, video, 0.3, group), rel=1e-5)


def test_losses_of_a_batch_equal_the_official_ones(golden):
    tensors, _ = golden("vim_suite_dual_encoder")
    text, video = tensors["text_features"], tensors["image_features"]
    assert max_margin_loss(text, video, 0.2).item() == pytest.approx(tensors["loss.max_margin"].item(), rel=1e-5)
    assert contrastive_loss(text, video, tensors["scale"]).item() == pytest.approx(
        tensors["loss.contrastive"].item(), rel=1e-5
    )


def test_max_margin_of_a_single_pair_is_nothing_with_a_gradient():
    vector = torch.ones(1, 2, requires_grad=True)
    loss = max_margin_loss(vector, vector.detach())
    loss.backward()
    assert loss.item() == 0 and not vector.grad.any()
