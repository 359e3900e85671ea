"""TimeMamba against the official implementation (golden tensors), and against the other reading of its weights."""

import pytest
import torch

from hub.convert.video_mamba_suite import to_zoo
from lightning_modules.checks import ACTIVATIONS
from lightning_modules.errors import ModelError
from lightning_modules.nets.bimamba import set_activations
from lightning_modules.nets.clip_tower import build_image_tower
from lightning_modules.nets.timemamba import TimeMamba
from lightning_modules.ops import available_backends, use_backend

BACKENDS = available_backends("cpu")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def official(golden):
    tensors, sidecar = golden("vim_suite_timemamba")
    return tensors, converted(tensors), sidecar["constructor"]


def converted(tensors, prefix="state_dict."):
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {k.removeprefix("net."): v for k, v in to_zoo(named, "golden").items()}


def below(weights):
    """The tower's weights."""
    return {k.removeprefix("vision."): v for k, v in weights.items() if k.startswith("vision.")}


def build(sizes, **changed):
    arguments = {"embed_dim": sizes["embed_dim"], "depth": sizes["depth"], "heads": sizes["num_heads"],
                 "image_size": sizes["img_size"], "patch_size": sizes["patch_size"]}  # fmt: skip
    return TimeMamba(**arguments | changed).eval()


def official_order(first, patches):
    """Class token, then patch by patch its frames."""
    return torch.cat([first, patches.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_official_network(official, backend):
    tensors, weights, sizes = official
    net, video = build(sizes), tensors["input.video"]
    net.load_state_dict(below(weights))
    projection = weights["vision_proj.weight"].clone().requires_grad_()
    seen = {}
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({f"block{i}": official_order(*out)}))
    first = net.blocks[0]
    first.time_mamba.register_forward_hook(lambda _m, i, out: seen.update({"time.input": i[0], "time.output": out}))
    first.attn.register_forward_hook(lambda _m, i, out: seen.update({"space.input": i[0], "space.output": out}))
    with use_backend(backend):
        close(official_order(*net.embed(video)), tensors["tokens"])
        features = net.forward_features(video)
        embedding = features @ projection.T
        (embedding * tensors["grad_output"]).sum().backward()
    for name in ("time.input", "time.output", "space.input", "space.output"):
        close(seen[name], tensors[f"block0.{name}"])
    for i in range(sizes["depth"]):
        close(seen[f"block{i}"], tensors[f"block{i}"])
    close(features, tensors["features"])
    close(embedding, tensors["embedding"])
    gradients = converted(tensors, "grad.")
    close(projection.grad, gradients.pop("vision_proj.weight"))
    gradients = below(gradients)
    assert sorted(gradients) == sorted(dict(net.named_parameters()))
    for key, expected in gradients.items():
        close(net.get_parameter(key).grad, expected)


def test_style_and_frames_are_as_official(official):
    """The style is in no weight, and neither is the number of frames."""
    tensors, weights, sizes = official
    nets = {style: build(sizes, style=style) for style in ("vanilla", "frozen")}
    found = {}
    for style, net in nets.items():
        net.load_state_dict(below(weights))
        with torch.inference_mode():
            found[style] = net.forward_features(tensors["input.video"]) @ weights["vision_proj.weight"].T
    close(found["vanilla"], tensors["embedding"])
    close(found["frozen"], tensors["frozen.embedding"])
    assert (found["frozen"] - found["vanilla"]).abs().max() > 0.005 * found["vanilla"].abs().max()
    with torch.inference_mode():
        longer = nets["vanilla"].forward_features(tensors["frames_5.input.video"])
    close(longer @ weights["vision_proj.weight"].T, tensors["frames_5.embedding"])


def test_tokens_are_frame_by_frame(official):
    tensors, weights, sizes = official
    net = build(sizes)
    net.load_state_dict(below(weights))
    with torch.inference_mode():
        tokens = net.forward_tokens(tensors["input.video"])
        last = net.norm(tensors[f"block{sizes['depth'] - 1}"])
    close(tokens[:, 0], tensors["features"])
    patches = last[:, 1:].unflatten(1, (-1, sizes["num_frames"]))  # (B, N, T, D)
    close(tokens[:, 1:].unflatten(1, (sizes["num_frames"], -1)), patches.transpose(1, 2))


def test_without_gates_it_is_clip_for_each_frame():
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": 32, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6}  # fmt: skip
    clip = build_image_tower({"vision_config": sizes}).eval()
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clip.vision_model.pre_layrnorm.eps = 1e-5
    net = TimeMamba(16, 2, 2, 32).eval()
    net.start_from_clip(clip, "clip")
    frames = torch.randn(1, 3, 1, 32, 32)
    with torch.inference_mode():
        hidden = clip.vision_model(frames[:, :, 0]).last_hidden_state
        close(net.forward_features(frames), clip.vision_model.post_layernorm(hidden[:, 0]))


def test_other_sizes_of_clip_are_refused():
    clip = build_image_tower({"vision_config": {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
                                                "num_attention_heads": 2, "image_size": 32,
                                                "patch_size": 16}})  # fmt: skip
    with pytest.raises(ModelError, match=r"vision and 'clip' have different sizes .*name a CLIP of width 16, 2 blocks"):
        TimeMamba(16, 2, 2, 32).start_from_clip(clip, "clip")
    deeper = TimeMamba(24, 1, 2, 32)
    with pytest.raises(ModelError, match="name a CLIP of width 24, 1 blocks"):
        deeper.start_from_clip(clip, "clip")


def test_recomputed_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    net, video = TimeMamba(16, 2, 2, 32), torch.randn(2, 3, 2, 32, 32)
    net.train()
    found = []
    for activations in ACTIVATIONS:
        set_activations(net, activations)
        net.zero_grad()
        net.forward_features(video).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"heads": 5}, "embed_dim 16 is not a multiple of heads 5"),
        ({"image_size": 40}, "image_size 40 is not a multiple of patch_size 16"),
        ({"style": "joint"}, "style is 'joint'; choose one of vanilla, frozen"),
        ({"depth": 0}, "depth is 0; it has to be"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, complaint):
    sizes = {"embed_dim": 16, "depth": 1, "heads": 2, "image_size": 32}
    with pytest.raises(ModelError, match=complaint):
        TimeMamba(**sizes | arguments)


def test_another_resolution_interpolates_and_is_named_where_it_does_not_fit():
    small, large = TimeMamba(16, 1, 2, 32), TimeMamba(16, 1, 2, 64)
    large.load_state_dict(large.adapt_state_dict(small.state_dict()))
    with pytest.raises(ModelError, match=r"inputs of shape \(batch, 3, frames, 32, 32\), this one is"):
        small.forward_features(torch.zeros(1, 3, 2, 64, 64))


def test_layers_are_numbered_for_layer_wise_decay():
    net = TimeMamba(16, 2, 2, 32)
    depths = {name: net.layer_id(name) for name, _ in net.named_parameters()}
    assert depths["cls_token"] == depths["patch_embed.proj.weight"] == depths["ln_pre.bias"] == 0
    assert depths["blocks.1.time_mamba.A_log"] == 2 and depths["norm.bias"] == 3
