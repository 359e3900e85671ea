"""Parameter groups against the reference's table, schedule against its formula."""

import math

import pytest
import torch

from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.optim import official_image_schedule, parameter_groups, warmup_cosine


@pytest.fixture(scope="module")
def net():
    return VideoMamba(num_classes=7, embed_dim=32, depth=3, num_frames=2, image_size=32)


def scales_and_decay(net, **kwargs):
    names = {id(p): n for n, p in net.named_parameters()}
    groups = parameter_groups(net, 0.1, **kwargs)
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    return found


def test_layer_decay_reaches_every_depth(net):
    found = scales_and_decay(net, layer_decay=0.5)
    assert found["patch_embed.proj.weight"][0] == found["pos_embed"][0] == 0.5**4
    assert found["layers.0.mixer.in_proj.weight"][0] == 0.5**3
    assert found["layers.2.norm.weight"][0] == 0.5
    assert found["norm_f.weight"][0] == found["head.weight"][0] == 1.0


def test_official_layer_decay_reaches_only_the_embedding(net):
    found = scales_and_decay(net, layer_decay=0.5, layer_decay_scope="embedding")
    scaled = {n for n, (scale, _) in found.items() if scale != 1.0}
    assert scaled == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token",
                      "temporal_pos_embedding"}  # fmt: skip
    assert {found[n][0] for n in scaled} == {0.5**4}


def test_weight_decay_spares_biases_norms_positions_and_state_matrices(net):
    correct, official = scales_and_decay(net), scales_and_decay(net, decay_state_matrix=True)
    decayed = {n for n, (_, decay) in correct.items() if decay}
    assert decayed == {
        n for n in correct
        if n.endswith(("proj.weight", "proj_b.weight", "conv1d.weight", "conv1d_b.weight", "head.weight"))
    }  # fmt: skip
    assert {n for n in official if official[n] != correct[n]} == {
        f"layers.{i}.mixer.{a}" for i in range(3) for a in ("A_log", "A_b_log")
    }


def test_frozen_parameters_are_left_out(net):
    net.pos_embed.requires_grad_(False)
    try:
        groups = parameter_groups(net, 0.1)
        assert all(p is not net.pos_embed for g in groups for p in g["params"])
    finally:
        net.pos_embed.requires_grad_(True)


def test_schedule_warms_up_linearly_and_falls_as_half_a_cosine():
    factor = warmup_cosine(total_steps=110, warmup_steps=10, peak=2.0, start=0.2, end=0.1)
    assert 2.0 * factor(0) == pytest.approx(0.2)
    assert 2.0 * factor(5) == pytest.approx(1.1)
    assert 2.0 * factor(10) == pytest.approx(2.0)
    assert 2.0 * factor(60) == pytest.approx(0.1 + 1.9 * 0.5)
    assert 2.0 * factor(85) == pytest.approx(0.1 + 1.9 * 0.5 * (1 + math.cos(math.pi * 0.75)))
    assert 2.0 * factor(110) == 2.0 * factor(500) == pytest.approx(0.1)


def test_layer_scales_multiply_the_schedule(net):
    groups = parameter_groups(net, 0.1, layer_decay=0.5)
    for group in groups:
        group["lr"] = 2.0 * group.pop("lr_scale")
    optimizer = torch.optim.AdamW(groups, lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(10, 2, peak=2.0))
    optimizer.step()
    scheduler.step()
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_official_image_schedule_runs_two_epochs_at_the_start_and_spans_all_epochs():
    factor = official_image_schedule(total_epochs=300, warmup_epochs=5, peak=4e-3, start=1e-6, end=1e-5)
    rates = [4e-3 * factor(epoch) for epoch in range(300)]
    assert rates[0] == rates[1] == pytest.approx(1e-6)
    assert rates[3] == pytest.approx(1e-6 + (4e-3 - 1e-6) * 2 / 5)
    # timm's cosine at epoch 150 of 300 is half way although five epochs went to the warm-up; it runs one epoch late.
    assert rates[151] == pytest.approx(1e-5 + (4e-3 - 1e-5) / 2)
    assert rates[299] == pytest.approx(1e-5 + (4e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 298 / 300)))
