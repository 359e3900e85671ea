"""ViViM against the official implementation (golden tensors), and against wrong readings of the same weights."""

import pytest
import torch
import torch.nn.functional as F

from hub.convert.video_mamba_suite import to_zoo
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import BiMamba
from lightning_modules.nets.videomamba import VideoMamba, adapt_state_dict
from lightning_modules.nets.vivim import ViViM
from lightning_modules.ops import available_backends, use_backend

BACKENDS = available_backends("cpu")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def differs(actual, expected):
    assert (actual - expected).abs().max() > 0.02 * expected.abs().max()


@pytest.fixture
def official(golden):
    tensors, sidecar = golden("vim_suite_vivim")
    return tensors, converted(tensors), sidecar["constructor"]


def converted(tensors, prefix="state_dict."):
    """Tensors under `prefix` by the names that they have in our network."""
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {k.removeprefix("net."): v for k, v in to_zoo(named, "golden").items()}


def build(sizes, cls=ViViM, **changed):
    arguments = {"num_classes": sizes["num_classes"], "embed_dim": sizes["embed_dim"], "depth": sizes["depth"],
                 "num_frames": sizes["num_frames"], "image_size": sizes["img_size"],
                 "patch_size": sizes["patch_size"]}  # fmt: skip
    return cls(**arguments | changed).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "arguments"), [("vim_div2", {"halve": True}), ("vim_expand1", {"expand": 1})])
def test_mixers_equal_the_official_ones(golden, name, arguments, backend):
    tensors, sidecar = golden("vim_suite_mixers")
    tensors = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    mixer = BiMamba(sidecar["constructor"][name]["d_model"], **arguments)
    mixer.load_state_dict({k.removeprefix("state_dict."): v for k, v in tensors.items() if "state_dict." in k})
    x = tensors["input"].requires_grad_()
    with use_backend(backend):
        y = mixer(x)
        (y * tensors["grad_output"]).sum().backward()
        mixer.halve = not mixer.halve
        differs(mixer(x), tensors["output"])
    close(y, tensors["output"])
    close(x.grad, tensors["grad_input"])
    for key, parameter in mixer.named_parameters():
        close(parameter.grad, tensors[f"grad.{key}"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_official_network(official, backend):
    tensors, weights, sizes = official
    net = build(sizes)
    net.load_state_dict(weights)
    seen = {}
    for i, block in enumerate(net.layers):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({i: out}))
    video, patches = tensors["input.video"].requires_grad_(), net.grid_size**2
    with use_backend(backend):
        logits = net(video)
        for i in (0, sizes["depth"] - 1):
            close(seen[i][0], tensors[f"block{i}.hidden"])
            close(seen[i][1], tensors[f"block{i}.residual"])
        close(net.embed(video), tensors["tokens"])
        close(net.forward_features(video), tensors["features"])
        tokens = net.forward_tokens(video)
        close(tokens[:, 0], tensors["features"])
        assert tokens.shape[1] == 1 + sizes["num_frames"] * patches
        loss = F.cross_entropy(logits, tensors["input.target"])
        loss.backward()
    close(logits, tensors["logits"])
    close(loss, tensors["loss"])
    close(video.grad, tensors.pop("grad.input.video"))
    gradients = converted(tensors, "grad.")
    assert sorted(gradients) == sorted(dict(net.named_parameters()))
    for key, expected in gradients.items():
        close(net.get_parameter(key).grad, expected)


def test_tokens_are_those_after_the_norm_class_token_first(official):
    tensors, weights, sizes = official
    net = build(sizes)
    net.load_state_dict(weights)
    with torch.inference_mode():
        tokens = net.forward_tokens(tensors["input.video"])
        stream = tensors[f"block{sizes['depth'] - 1}.hidden"] + tensors[f"block{sizes['depth'] - 1}.residual"]
        frames = net.norm_f(stream).unflatten(1, (sizes["num_frames"], -1))
    middle = net.middle
    close(frames[:, :, middle], tensors["class_tokens"])
    patches = torch.cat([frames[:, :, :middle], frames[:, :, middle + 1 :]], dim=2).flatten(1, 2)
    close(tokens[:, 1:], patches)


def test_image_model_equals_the_official_one(official):
    tensors, weights, sizes = official
    net = build(sizes, num_frames=None)
    del weights["temporal_pos_embedding"]
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].squeeze(2)
    net.load_state_dict(weights)
    with torch.inference_mode():
        close(net.forward_features(tensors["input.video"][:, :, 0]), tensors["image.features"])
        close(net(tensors["input.video"][:, :, 0]), tensors["image.logits"])


def test_wrong_readings_of_the_same_weights_are_told_apart(official):
    """They load without an error, so the numbers have to tell."""
    tensors, weights, sizes = official
    video, logits = tensors["input.video"], tensors["logits"]
    one_token = build(sizes, VideoMamba)
    whole_sum = build(sizes)
    for block in whole_sum.layers:
        block.mixer.halve = False
    rows = torch.arange(weights["pos_embed"].shape[1])
    readings = {"one class token": (one_token, {}), "not halved": (whole_sum, {}),
                "class row first": (build(sizes), {"pos_embed": weights["pos_embed"][:, rows.roll(1)]})}  # fmt: skip
    for net, changed in readings.values():
        net.load_state_dict(weights | changed)
        with torch.inference_mode():
            differs(net(video), logits)
    differs(tensors["single_class_token.logits"], logits)


def test_other_frames_take_the_official_resized_embedding(golden):
    tensors, sidecar = golden("vim_suite_dual_encoder")
    weights = {k: v for k, v in converted(tensors).items() if k.startswith(("vision.", "vision_proj."))}
    sizes, projection = sidecar["constructor"]["visual"] | {"num_classes": 0}, weights.pop("vision_proj.weight")
    net = build(sizes, num_frames=5)
    adapted = adapt_state_dict({k.removeprefix("vision."): v for k, v in weights.items()}, net)
    close(adapted["temporal_pos_embedding"].transpose(0, 1), tensors["frames_5.temporal_embedding"])
    net.load_state_dict(adapted)
    with torch.inference_mode():
        embedding = net.forward_features(tensors["frames_5.input.video"]) @ projection.T
    close(embedding, tensors["frames_5.image_embedding"])


def test_starts_from_an_image_model_with_zeros_in_time():
    image, clip = (ViViM(3, 16, 2, frames, 32, 16).eval() for frames in (None, 2))
    clip.load_state_dict(adapt_state_dict(image.state_dict(), clip))
    assert not clip.temporal_pos_embedding.any()


def test_scan_orders_are_refused():
    with pytest.raises(ModelError, match="scan_order is 'temporal_first'; ViViM has spatial_first only"):
        ViViM(3, 16, 2, 2, 32, scan_order="temporal_first")
