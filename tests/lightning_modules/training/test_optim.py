"""Parameter groups against the reference's table, schedule against its formula."""

import itertools
import math

import pytest
import torch

from lightning_modules.errors import ModelError
from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.training.optim import DECAYED, Optim, official_image_schedule, one_cosine, warmup_cosine


@pytest.fixture(scope="module")
def net():
    return VideoMamba(num_classes=7, embed_dim=32, depth=3, num_frames=2, image_size=32)


def scales_and_decay(net, **kwargs):
    names = {id(p): n for n, p in net.named_parameters()}
    groups = Optim(weight_decay=0.1, **kwargs).groups(net)
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
    assert scaled == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"}
    assert {found[n][0] for n in scaled} == {0.5**4}


def test_weight_decay_spares_biases_norms_positions_and_state_matrices(net):
    correct, official = scales_and_decay(net), scales_and_decay(net, decayed="state_matrices")
    decayed = {n for n, (_, decay) in correct.items() if decay}
    assert decayed == {
        n for n in correct
        if n.endswith(("proj.weight", "proj_b.weight", "conv1d.weight", "conv1d_b.weight", "head.weight"))
    }  # fmt: skip
    assert {n for n in official if official[n] != correct[n]} == {
        f"layers.{i}.mixer.{a}" for i in range(3) for a in ("A_log", "A_b_log")
    }


# The official code's assignment at the paper's sizes (docs/protocol.md, section 5), from what a block holds --------

SIZES = {"Ti": (192, 24), "M": (576, 32)}


def official_table(width, depth, frames, classes):
    """(id, decayed) -> number of tensors and of values, reckoned from the shapes of the architecture (section 0)."""
    inner, rank, states, taps, patches = 2 * width, -(-width // 16), 16, 4, 14 * 14
    matrices = [2 * inner * width, inner * width]  # in_proj, out_proj
    for _ in range(2):  # conv1d, x_proj, dt_proj, A_log in both directions
        matrices += [inner * taps, (rank + 2 * states) * inner, inner * rank, inner * states]
    vectors = [inner] * 6 + [width]  # two biases and D in both directions, norm
    last = depth + 1
    return {
        (0, True): [width * 3 * 16 * 16],  # patch_embed.proj.weight
        (0, False): [width, width, (patches + 1) * width],  # its bias, cls_token, pos_embed
        (last, True): matrices * depth + [classes * width],
        (last, False): vectors * depth + [width, classes, frames * width],  # norm_f, head.bias, temporal embedding
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer_decay", [0.75, 0.8])
def test_groups_at_the_papers_sizes_are_the_official_ones(size, layer_decay):
    (width, depth), frames, classes = SIZES[size], 16, 400
    with torch.device("meta"):
        net = VideoMamba(classes, width, depth, frames, 224)
    optim = Optim(weight_decay=0.05, layer_decay=layer_decay, layer_decay_scope="embedding", decayed="state_matrices")
    groups = optim.groups(net)
    expected = official_table(width, depth, frames, classes)
    assert [g["name"] for g in groups] == [f"layer_{i}_{'decay' if d else 'no_decay'}" for i, d in sorted(expected)]
    for group, ((layer, decayed), sizes) in zip(groups, sorted(expected.items()), strict=True):
        assert sorted(p.numel() for p in group["params"]) == sorted(sizes)
        assert group["weight_decay"] == (0.05 if decayed else 0.0)
        assert group["lr_scale"] == pytest.approx(1.0 if layer else layer_decay ** (depth + 1))
    published = {("Ti", 0.75): 7.5e-4, ("M", 0.75): 7.5e-5, ("M", 0.8): 6.3e-4}.get((size, layer_decay))
    assert published is None or groups[0]["lr_scale"] == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_groups_at_the_papers_sizes_with_true_layer_decay(size):
    """One group of matrices and one of the rest per depth; A_log is spared as the mixer marks it."""
    (width, depth), names = SIZES[size], {}
    with torch.device("meta"):
        net = VideoMamba(400, width, depth, 16, 224)
    for group in Optim(weight_decay=0.05, layer_decay=0.75).groups(net):
        held = {id(p) for p in group["params"]}
        names[group["name"]] = {n for n, p in net.named_parameters() if id(p) in held}
        layer = int(group["name"].split("_")[1])
        assert group["lr_scale"] == pytest.approx(0.75 ** (depth + 1 - layer))
    matrices = ["in_proj", "out_proj", "conv1d", "conv1d_b", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b"]
    rest = ["conv1d.bias", "conv1d_b.bias", "dt_proj.bias", "dt_proj_b.bias", "A_log", "A_b_log", "D", "D_b"]
    expected = {
        "layer_0_decay": {"patch_embed.proj.weight"},
        "layer_0_no_decay": {"patch_embed.proj.bias", "cls_token", "pos_embed", "temporal_pos_embedding"},
        f"layer_{depth + 1}_decay": {"head.weight"},
        f"layer_{depth + 1}_no_decay": {"head.bias", "norm_f.weight"},
    }
    for i in range(depth):
        mixer = f"layers.{i}.mixer"
        expected[f"layer_{i + 1}_decay"] = {f"{mixer}.{name}.weight" for name in matrices}
        expected[f"layer_{i + 1}_no_decay"] = {f"{mixer}.{name}" for name in rest} | {f"layers.{i}.norm.weight"}
    assert names == expected


def test_the_image_models_have_two_groups():
    with torch.device("meta"):
        net = VideoMamba(1000, 192, 24, None, 224)
    groups = Optim(weight_decay=0.1, decayed="state_matrices").groups(net)
    assert [(g["name"], g["lr_scale"], g["weight_decay"]) for g in groups] == [
        ("layer_25_no_decay", 1.0, 0.0), ("layer_25_decay", 1.0, 0.1)
    ]  # fmt: skip
    assert [len(g["params"]) for g in groups] == [7 * 24 + 5, 10 * 24 + 2]


def test_a_network_without_numbered_layers_gets_a_decayed_and_an_undecayed_group():
    plain = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.BatchNorm3d(4), torch.nn.Linear(4, 2))
    found = {
        group["name"]: (len(group["params"]), group["weight_decay"]) for group in Optim(weight_decay=0.1).groups(plain)
    }
    assert found == {"no_decay": (4, 0.0), "decay": (2, 0.1)}
    with pytest.raises(ModelError, match=r"layer_decay is 0\.9 and Sequential does not number its layers"):
        Optim(layer_decay=0.9).groups(plain)


def test_frozen_parameters_are_left_out(net):
    net.pos_embed.requires_grad_(False)
    try:
        groups = Optim(weight_decay=0.1).groups(net)
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
    groups = Optim(weight_decay=0.1, layer_decay=0.5).groups(net)
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


def test_one_cosine_drops_after_the_warm_up_as_published():
    factor = one_cosine(1000, 100, peak=1.0)
    assert factor(50) == pytest.approx(0.5) and factor(99) == pytest.approx(0.99)
    assert factor(100) == pytest.approx(0.976, abs=5e-4)  # docs/protocol.md, section 18
    assert factor(500) == pytest.approx(0.5) and factor(1000) == pytest.approx(0)
    assert one_cosine(10, 0.0, peak=1.0)(0) == 1


def test_weights_have_the_learning_rate_of_the_longest_beginning_of_their_name(net):
    optim = Optim(lr=1e-2, lr_of={"layers": 1e-3, "layers.1.mixer": 1e-4, "head": 0.0}, lr_samples=None)
    names = {id(p): n for n, p in net.named_parameters()}
    optimizer = optim.optimizer(optim.groups(net), lr_scale=2.0)
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, lr in found.items():
        layer = 2e-4 if name.startswith("layers.1.mixer") else 2e-3
        assert lr == (layer if name.startswith("layers") else 0.0 if name.startswith("head") else 2e-2), name
    with pytest.raises(ModelError, match=r"lr_of has 'tower' and no weight of VideoMamba begins so; they begin with"):
        Optim(lr_of={"tower": 1e-3}).groups(net)


def test_each_reach_of_the_decay_adds_to_the_one_before(net):
    decayed = [{n for n, (_, decay) in scales_and_decay(net, decayed=reach).items() if decay} for reach in DECAYED]
    added = [now - before for before, now in zip([set(), *decayed], decayed, strict=False)]
    assert all(before < now for before, now in itertools.pairwise(decayed))
    assert {n.rpartition(".")[2] for n in added[1]} == {"A_log", "A_b_log"}
    assert added[2] == {"cls_token", "pos_embed", "temporal_pos_embedding"}
    assert {n.rpartition(".")[2] for n in added[3]} == {"weight", "D", "D_b"}  # norms and skip weights
    assert {n.rpartition(".")[2] for n in added[4]} == {"bias"} and len(decayed[4]) == len(list(net.parameters()))


def test_sgd_has_nesterovs_momentum(net):
    optim = Optim(name="sgd", momentum=0.8, weight_decay=0.1)
    optimizer = optim.optimizer(optim.groups(net))
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, True)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    plain = Optim(name="sgd", momentum=0.0)
    assert plain.optimizer(plain.groups(net)).defaults["nesterov"] is False


def test_a_frozen_network_has_nothing_to_train():
    with pytest.raises(ModelError, match="All weights are frozen"):
        Optim().optimizer(Optim().groups(torch.nn.Linear(2, 2).requires_grad_(False)))


@pytest.mark.parametrize(("optim", "epochs", "steps"), [
    (Optim(warmup_epochs=2), 10, 20), (Optim(warmup_share=0.3), 10, 30), (Optim(warmup_epochs=0.5), None, 50),
])  # fmt: skip
def test_the_warm_up_is_told_in_epochs_or_as_a_share(optim, epochs, steps):
    factor = optim.factor(100, epochs)
    assert factor(steps) == pytest.approx(1) and factor(steps - 1) < 1 and factor(steps + 1) < 1


def test_ends_are_scaled_with_the_samples_or_not():
    scaled = Optim(lr=1e-2, warmup_lr=1e-3, min_lr=1e-4).factor(100, 10, lr_scale=4.0)
    fixed = Optim(lr=1e-2, warmup_lr=1e-3, min_lr=1e-4, scale_all_lr=False).factor(100, 10, lr_scale=4.0)
    assert scaled(0) == pytest.approx(0.1) and scaled(100) == pytest.approx(0.01)
    assert fixed(0) == pytest.approx(0.1 / 4) and fixed(100) == pytest.approx(0.01 / 4)
    with pytest.raises(ModelError, match=r"counts epochs: set trainer\.max_epochs"):
        Optim(schedule="epoch").factor(100, -1)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"lrr": 1}, "optim has no entry 'lrr'; it takes name, lr, "), ({"name": "lion"}, "optim.name is 'lion'; choose"),
    ({"lr_of": {"head": -1}}, "optim.lr_of.head is -1;"), ({"lr_of": 3}, "optim.lr_of is 3; it maps"),
    ({"momentum": 1.0}, "optim.momentum is 1.0; it has to be"), ({"decayed": "some"}, "optim.decayed is 'some'"),
])  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(values, sentence):
    with pytest.raises(ModelError, match=sentence):
        Optim().changed(values)
