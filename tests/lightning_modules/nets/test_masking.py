"""Masks: exact counts, the pattern of each type, seeds, and attention as weights of a draw without replacement."""

import itertools

import pytest
import torch

from lightning_modules.nets.masking import MASK_TYPES, draw_visible, num_visible, pick_first, weighted_order

# Reference protocol, section 8: visible patches of 8 x 14 x 14 at ratio 0.8.
PUBLISHED = {"random": 314, "tube": 320, "frame-row": 336, "clip-row": 336, "attention": 320}


def draw(mask_type, batch=3, frames=8, side=14, ratio=0.8, seed=0, **kwargs):
    if mask_type == "attention":
        kwargs.setdefault("attention", torch.rand(batch, frames, side**2, generator=torch.manual_seed(5)))
    return draw_visible(mask_type, ratio, batch, frames, side, generator=torch.manual_seed(seed), **kwargs)


def grid(visible, frames, side):
    """Positions -> bool (B, T, side, side), True where a patch is visible."""
    shown = torch.zeros(len(visible), 1 + frames * side**2, dtype=torch.bool).scatter_(1, visible, True)
    assert shown[:, 0].all()  # the class token
    return shown[:, 1:].reshape(-1, frames, side, side)


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_counts_are_the_published_ones(mask_type):
    assert num_visible(mask_type, 0.8, 8, 14) == PUBLISHED[mask_type]
    visible = draw(mask_type)
    assert visible.shape == (3, 1 + PUBLISHED[mask_type]) and visible.dtype == torch.int64
    assert (visible.diff(dim=1) > 0).all()  # rising, so none twice
    assert grid(visible, 8, 14).sum() == 3 * PUBLISHED[mask_type]


@pytest.mark.parametrize(("mask_type", "ratio"), list(itertools.product(MASK_TYPES, (0.0, 0.5, 0.65, 0.9))))
def test_counts_at_other_ratios_and_sizes(mask_type, ratio):
    frames, side = 3, 4
    by_hand = {
        "random": 48 - int(48 * ratio),
        "tube": 3 * (16 - int(16 * ratio)),
        "attention": 3 * (16 - int(16 * ratio)),
        "clip-row": (12 - 3 * int(4 * ratio)) * 4,
        "frame-row": 3 * (4 - int(4 * ratio)) * 4,
    }[mask_type]
    assert draw(mask_type, 2, frames, side, ratio).shape == (2, 1 + by_hand)


def test_patterns():
    shown = {mask_type: grid(draw(mask_type, batch=40), 8, 14) for mask_type in MASK_TYPES}
    per_frame = {name: s.flatten(2).sum(2) for name, s in shown.items()}
    assert (shown["tube"] == shown["tube"][:, :1]).all()
    assert not (shown["attention"] == shown["attention"][:, :1]).all()
    assert (per_frame["attention"] == 40).all() and (per_frame["tube"] == 40).all()
    assert per_frame["random"].unique().numel() > 3
    for name in ("clip-row", "frame-row"):
        assert (shown[name].all(3) == shown[name].any(3)).all()  # whole rows
    assert (per_frame["frame-row"] == 3 * 14).all()
    assert per_frame["clip-row"].unique().numel() > 3
    # Each clip has a mask of its own, and each place the same chance.
    for name in ("random", "tube", "clip-row", "frame-row"):
        assert not torch.equal(shown[name][0], shown[name][1])
        many = grid(draw(name, batch=2000, frames=2, side=4, ratio=0.5), 2, 4).float().mean(0)
        torch.testing.assert_close(many, torch.full_like(many, 0.5), rtol=0, atol=0.06)


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_the_seed_decides(mask_type):
    assert torch.equal(draw(mask_type, seed=1), draw(mask_type, seed=1))
    assert not torch.equal(draw(mask_type, seed=1), draw(mask_type, seed=2))
    attention = torch.rand(3, 8, 196) if mask_type == "attention" else None
    torch.manual_seed(3)
    first = draw_visible(mask_type, 0.8, 3, 8, 14, attention=attention)
    torch.manual_seed(3)
    assert torch.equal(first, draw_visible(mask_type, 0.8, 3, 8, 14, attention=attention))


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_a_clip_with_a_generator_of_its_own_has_the_same_mask_in_any_batch(mask_type):
    attention = torch.rand(3, 8, 196) if mask_type == "attention" else None

    def of(*clips):
        own = None if attention is None else attention[list(clips)]
        generators = [torch.Generator().manual_seed(10 + clip) for clip in clips]
        return draw_visible(mask_type, 0.8, len(clips), 8, 14, attention=own, generator=generators)

    together = of(0, 1, 2)
    assert together.shape == (3, 1 + PUBLISHED[mask_type])
    assert torch.equal(together[[2, 0]], of(2, 0)) and not torch.equal(together[0], together[1])


def test_weights_are_those_of_drawing_one_after_the_other():
    """The chance that the first two are {a, b} is w_a w_b / (1 - w_a) + w_b w_a / (1 - w_b), w summing to 1."""
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    trials = 40_000
    order = weighted_order(weights.expand(trials, 4), torch.rand(trials, 4, generator=torch.manual_seed(0)))
    assert (order.sort(1).values == torch.arange(4)).all()
    torch.testing.assert_close(order[:, 0].bincount().float() / trials, weights, rtol=0, atol=0.01)
    for a, b in itertools.combinations(range(4), 2):
        pair = order[:, :2].sort(1).values == torch.tensor([a, b])
        w_a, w_b = weights[a].item(), weights[b].item()
        expected = w_a * w_b / (1 - w_a) + w_b * w_a / (1 - w_b)
        assert pair.all(1).float().mean().item() == pytest.approx(expected, abs=0.01)


def test_patches_without_attention_come_last():
    attention = torch.zeros(1, 1, 16)
    attention[..., [3, 7, 8]] = torch.tensor([1e-30, 1.0, 5.0])
    visible = draw("attention", 1, 1, 4, 0.8, attention=attention)
    assert visible.shape == (1, 1 + 4) and {0, 1 + 3, 1 + 7, 1 + 8} < set(visible[0].tolist())


def test_the_mask_that_the_published_code_makes_of_a_drawn_order(golden):
    tensors, _ = golden("clip_teacher_masking")
    order = tensors["importance"].unflatten(0, (2, 4))  # clips, frames
    visible = 1 + pick_first(order, num_visible("attention", 0.8, 4, 4) // 4, 16)
    shown = ~tensors["mask"]
    assert torch.equal(shown[:, 1:].nonzero()[:, 1].reshape(2, -1) + 1, visible)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rows", 0.8, 1, 2, 4), "mask_type is 'rows'; choose one of random, tube, clip-row"),
        (("random", 1.0, 1, 2, 4), "mask_ratio is 1.0; it has to be at least 0 and less than 1"),
        (("attention", 0.8, 1, 2, 4), r"needs weights of shape \(1, 2, 16\), got None"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_visible(*arguments)
