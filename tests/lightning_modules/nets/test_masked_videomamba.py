"""The masked student against the official one (golden tensors), and that masked tokens leave no trace."""

import math

import pytest
import torch
import torch.nn.functional as F

from hub.convert.videomamba import to_zoo
from lightning_modules.nets.masked_videomamba import MaskedVideoMamba, aligned_blocks, sinusoids, take
from lightning_modules.nets.masking import draw_visible
from lightning_modules.nets.videomamba import VideoMamba


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def build(tensors, constructor):
    net = MaskedVideoMamba(
        constructor["embed_dim"], constructor["depth"], constructor["num_frames"], constructor["img_size"],
        tubelet_size=constructor["kernel_size"], target_dim=constructor["clip_output_dim"],
        align_layers=constructor["clip_return_layer"], variant="official",
    )  # fmt: skip
    official = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    net.load_state_dict({k.removeprefix("net."): v for k, v in to_zoo(official).items()})
    return net.eval()


@pytest.mark.parametrize("name", ["videomamba_pretrain", "videomamba_pretrain_2layers"])
def test_student_equals_the_official_one(golden, name):
    tensors, sidecar = golden(name)
    net = build(tensors, sidecar["constructor"])
    shown = (~tensors["mask"]).nonzero()[:, 1].reshape(len(tensors["mask"]), -1)
    close(take(net.embed(tensors["input"]), shown), tensors["tokens"])
    close(net.places, tensors["clip_pos_embed"])
    close(torch.stack(net.aligned_features(tensors["input"], shown)), tensors["features"])
    output = F.normalize(net(tensors["input"], shown), dim=-1)
    close(output, tensors["output"])
    (output * tensors["grad_output"]).sum().backward()
    # The published names; only the norm has another one here.
    ours = {("norm.weight" if key == "norm_f.weight" else key): p for key, p in net.named_parameters()}
    gradients = {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")}
    assert gradients
    for key, expected in gradients.items():
        close(ours[key].grad, expected)
    untrained = sidecar["parameters_without_gradient"] + sidecar["parameters_with_all_zero_gradient"]
    assert {key for key, p in ours.items() if p.grad is None} == set(untrained)
    assert {key for key, p in ours.items() if not p.requires_grad} == set(untrained)


def tiny(**kwargs):
    torch.manual_seed(0)
    return MaskedVideoMamba(**{**dict(embed_dim=32, depth=3, num_frames=4, image_size=32, target_dim=8), **kwargs})


def test_pixels_of_masked_patches_change_nothing():
    net = tiny().eval()
    x = torch.randn(2, 3, 4, 32, 32)
    visible = draw_visible("random", 0.5, 2, 4, 2, generator=torch.manual_seed(0))
    shown = torch.zeros(2, 1 + 16, dtype=torch.bool).scatter_(1, visible, True)[:, 1:].reshape(2, 1, 4, 2, 2)
    pixels = shown.repeat_interleave(16, 3).repeat_interleave(16, 4)
    output = net(x, visible)
    assert output.shape == (1, 2, 1 + 8, 8)
    assert torch.equal(net(torch.where(pixels, x, 99.0), visible), output)
    assert not torch.allclose(net(torch.where(pixels, 99.0, x), visible), output)


def test_the_blocks_run_on_the_short_sequence():
    net, lengths = tiny(), []
    net.layers[0].register_forward_pre_hook(lambda _m, args: lengths.append(args[0].shape[1]))
    net(torch.randn(1, 3, 4, 32, 32), torch.tensor([[0, 3, 4, 9]]))
    net(torch.randn(1, 3, 4, 32, 32))
    assert lengths == [4, 1 + 16]


def test_all_tokens_give_the_features_of_the_plain_network():
    net = tiny(depth=4, align_layers=2, align_interval=2, drop_path=0.3).eval()
    plain = VideoMamba(0, 32, 4, 4, 32).eval()
    weights = {k: v for k, v in net.state_dict().items() if not k.startswith("clip_decoder.")}
    plain.load_state_dict(weights)
    x = torch.randn(2, 3, 4, 32, 32)
    earlier, last = net.aligned_features(x)
    torch.testing.assert_close(last, plain.forward_tokens(x))
    everything = torch.arange(1 + 16).expand(2, -1)
    torch.testing.assert_close(net(x, everything), net(x))
    # The second of four blocks is what a network of two blocks ends with.
    shallow = VideoMamba(0, 32, 2, 4, 32).eval()
    shallow.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("layers.2.", "layers.3."))})
    torch.testing.assert_close(earlier, shallow.forward_tokens(x))


@pytest.mark.parametrize(("variant", "untrained"), [("all_blocks", 0), ("official", 18)])
def test_which_parameters_learn(variant, untrained):
    net = tiny(variant=variant, drop_path=0.2).train()
    visible = draw_visible("tube", 0.5, 4, 4, 2)
    net(torch.randn(4, 3, 4, 32, 32), visible).square().sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert len(without) == untrained
    assert without == {name for name, p in net.named_parameters() if not p.requires_grad}
    assert all(name.startswith(("layers.2.", "norm_f.")) for name in without)


def test_aligned_blocks():
    assert aligned_blocks(32, 1, 1) == [31]
    assert aligned_blocks(32, 6, 2) == [21, 23, 25, 27, 29, 31]
    assert aligned_blocks(12, 6, 1) == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="7 blocks, 2 apart, cannot be aligned in a network of 12 blocks"):
        aligned_blocks(12, 7, 2)
    with pytest.raises(ValueError, match="0 blocks"):
        tiny(align_layers=0)
    with pytest.raises(ValueError, match="variant is 'fused'; choose one of all_blocks, official"):
        tiny(variant="fused")
    with pytest.raises(ValueError, match="aligns the block before the last, and depth is 1"):
        tiny(depth=1, variant="official")


def test_sinusoids_by_hand():
    table = sinusoids(5, 6)
    assert table.shape == (1, 5, 6)
    for position, channel in ((0, 0), (0, 1), (3, 2), (3, 3), (4, 5)):
        angle = position / 10000 ** (2 * (channel // 2) / 6)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-6)
