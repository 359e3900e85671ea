"""MambaVL's fusion: against a scan written out token by token, and what sharing A means for gradients and files."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.nets import JointMambaVL
from lightning_modules.nets.clip_tower import ClipTokenizer
from lightning_modules.nets.flops import count_flops
from lightning_modules.nets.mambavl_joint import (
    FUSIONS,
    CrossAttentionBlock,
    FusionBlock,
    build_text_tower,
    pool_tokens,
)
from lightning_modules.nets.videomamba import VideoMamba

TEXT = {"vocab_size": 514, "max_position_embeddings": 32, "hidden_size": 24, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
DIM, N, L = 16, 7, 5


def make_block(fusion):
    """A block with matrices and skips of its own, so that no two are equal by initialisation."""
    torch.manual_seed(0)
    block = FusionBlock(DIM, fusion)
    for name, parameter in block.named_parameters():
        if name.endswith(("A_log", "A_b_log", "D", "D_b")):
            nn.init.uniform_(parameter, -0.5, 0.5)
        if "x_proj" in name:
            nn.init.normal_(parameter, std=0.5)
    return block


def tokens(batch=2):
    generator = torch.Generator().manual_seed(1)
    vision, language = (torch.randn(batch, n, DIM, generator=generator) for n in (N, L))
    return vision, language, torch.ones(batch, L, dtype=torch.bool)


# The block written out -----------------------------------------------------------------------------------------------


def conv(x, module, reverse):
    """Each token with the three before it (behind it, where reversed), of one sequence (n, E)."""
    x = x.flip(0) if reverse else x
    rows = []
    for t in range(len(x)):
        taps = [x[t - 3 + k] if t - 3 + k >= 0 else torch.zeros_like(x[0]) for k in range(4)]
        rows.append(sum(module.weight[:, 0, k] * taps[k] for k in range(4)) + module.bias)
    y = F.silu(torch.stack(rows))
    return y.flip(0) if reverse else y


def slow(block, vision, language, a_of):
    """One clip; `a_of(stream, direction)` -> A (E, S) that a stream's tokens are read with."""
    streams = {"language": (block.language, language), "vision": (block.vision, vision)}
    result = {}
    selected = {}
    for name, (stream, x) in streams.items():
        inner, gate = stream.in_proj(stream.norm(x)).chunk(2, dim=-1)
        selected[name] = {"gate": gate}
        for direction, suffix in (("forward", ""), ("backward", "_b")):
            u = conv(inner, getattr(stream, f"conv1d{suffix}"), bool(suffix))
            dt, b, c = getattr(stream, f"x_proj{suffix}")(u).split([stream.dt_rank, 16, 16], dim=-1)
            delta = F.softplus(getattr(stream, f"dt_proj{suffix}")(dt))
            selected[name][direction] = (u, delta, b, c, getattr(stream, f"D{suffix}"))
    for name, (stream, x) in streams.items():
        total = 0
        for direction in ("forward", "backward"):
            a = a_of(name, direction)
            parts = [selected[s][direction] for s in ("language", "vision")]
            u, delta, b, c = (torch.cat([part[i] for part in parts]) for i in range(4))
            state, ys = torch.zeros_like(a), {}
            order = range(len(u)) if direction == "forward" else reversed(range(len(u)))
            for t in order:
                state = torch.exp(delta[t][:, None] * a) * state + (delta[t] * u[t])[:, None] * b[t][None]
                ys[t] = state @ c[t]
            start = 0 if name == "language" else L
            u_own, skip = selected[name][direction][0], selected[name][direction][4]
            total = total + torch.stack([ys[start + t] for t in range(len(x))]) + skip * u_own
        result[name] = x + stream.out_proj(total * F.silu(selected[name]["gate"]))
    return result["vision"], result["language"]


@pytest.mark.parametrize("fusion", ["joint", "separate"])
def test_the_block_is_one_scan_through_both_streams(fusion):
    block = make_block(fusion)
    vision, language, mask = tokens()

    def a_of(stream, direction):
        owner = "" if fusion == "joint" else f"{stream}_"
        return -torch.exp(getattr(block, f"{owner}{'A_log' if direction == 'forward' else 'A_b_log'}"))

    found = block(vision, language, mask)
    for row in range(2):
        expected = slow(block, vision[row], language[row], a_of)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[row], theirs, rtol=1e-4, atol=1e-5)


# One matrix ----------------------------------------------------------------------------------------------------------


def test_both_streams_send_gradients_into_one_matrix():
    """With equal matrices, "separate" computes the same; its two gradients add up to the shared one's."""
    shared, separate = make_block("joint"), make_block("separate")
    state = shared.state_dict()
    for name in ("A_log", "A_b_log"):
        matrix = state.pop(name)
        state |= {f"{owner}_{name}": matrix for owner in ("vision", "language")}
    separate.load_state_dict(state)
    vision, language, mask = tokens()
    outputs = [block(vision, language, mask) for block in (shared, separate)]
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs)
    for found in outputs:
        (found[0].square().sum() + found[1].square().sum()).backward()
    for name in ("A_log", "A_b_log"):
        streams = [getattr(separate, f"{owner}_{name}").grad for owner in ("vision", "language")]
        assert all(gradient.abs().max() > 1e-4 for gradient in streams)
        torch.testing.assert_close(getattr(shared, name).grad, sum(streams), rtol=1e-4, atol=1e-8)


def test_the_matrix_is_one_parameter_and_saved_once():
    """Beside A, nothing is shared: each modality has every other weight for itself."""
    block = make_block("joint")
    matrices = [name for name, _ in block.named_parameters() if name.endswith("log")]
    assert matrices == ["A_log", "A_b_log"] == [name for name in block.state_dict() if name.endswith("log")]
    streams = [dict(getattr(block, name).named_parameters()) for name in ("vision", "language")]
    assert set(streams[0]) == set(streams[1]) and len(streams[0]) == 15
    assert not {id(p) for p in streams[0].values()} & {id(p) for p in streams[1].values()}
    count = {fusion: sum(p.numel() for p in make_block(fusion).parameters()) for fusion in FUSIONS[:2]}
    assert count["separate"] - count["joint"] == 2 * 2 * DIM * 16


@pytest.mark.parametrize("fusion", FUSIONS)
def test_who_influences_whom(fusion):
    net = make_net(fusion, depth=1)
    block = net.blocks[0]
    vision, language, mask = (part.requires_grad_() if part.is_floating_point() else part for part in tokens(1))
    to_vision, to_language = block(vision, language, mask)
    from_language = torch.autograd.grad(to_vision.square().sum(), language, retain_graph=True, allow_unused=True)[0]
    from_vision = torch.autograd.grad(to_language.square().sum(), vision, allow_unused=True)[0]
    meets = fusion != "late"
    for gradient, count in ((from_language, L), (from_vision, N)):
        assert (gradient is not None) == meets
        assert not meets or int((gradient[0].abs().sum(1) > 0).sum()) == count


# The network ---------------------------------------------------------------------------------------------------------


def test_the_work_of_attention_alone_grows_faster_than_the_tokens():
    """Operations for each further vision token, counted from the shapes."""
    blocks = {"joint": make_block("joint"), "separate": make_block("separate"), "attention": CrossAttentionBlock(DIM)}
    language, mask = torch.empty(1, 16, DIM), torch.ones(1, 16, dtype=torch.bool)
    for name, block in blocks.items():
        work = [count_flops(block, torch.empty(1, tokens, DIM), language, mask)[""] for tokens in (64, 128, 1024)]
        first, later = (work[1] - work[0]) / 64, (work[2] - work[1]) / 896
        assert later == first if name != "attention" else later > 2 * first, (name, work)


def make_net(fusion="joint", depth=2, tokens="all", vision=True, dim=DIM):
    torch.manual_seed(0)
    tower = VideoMamba(0, 16, 1, num_frames=4, image_size=32, patch_size=16, tubelet_size=2) if vision else None
    net = JointMambaVL(tower, 16 if vision else 12, build_text_tower(TEXT), ClipTokenizer(514, 16), dim, depth, fusion,
                  tokens, 3, 4, 5)  # fmt: skip
    return net.eval()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_question_is_read_alone(fusion):
    """Whatever else is in the batch: padding behind a text changes nothing, in either direction of the scan."""
    net = make_net(fusion)
    video = torch.randn(3, 3, 4, 32, 32)
    questions = ["what?", "which object is it", "what?"]
    with torch.no_grad():
        together = net(video, questions)
        assert {name: logits.shape[1] for name, logits in together.items()} == {
            "verb": 3, "noun": 4, "action": 5, "answer": 12}  # fmt: skip
        for row, question in enumerate(questions):
            alone = net(video[row : row + 1], [question])
            for name in together:
                torch.testing.assert_close(alone[name][0], together[name][row], rtol=1e-4, atol=1e-5)
        other = net(video[:1], ["which object is it"])["answer"]
        assert (other - together["answer"][:1]).abs().max() > 1e-6
        assert (net(video[:1].flip(2), ["what?"])["answer"] - together["answer"][:1]).abs().max() > 1e-7


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_is_trained(fusion):
    net = make_net(fusion).train()
    logits = net(torch.randn(2, 3, 4, 32, 32), ["what?", "which one?"])
    sum(F.cross_entropy(values, torch.tensor([0, 1])) for values in logits.values()).backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # The last block's backward scan and convolutions and so on all count; only unused positions may stay idle.
    assert idle == []


def test_tokens_of_the_vision_tower():
    x = torch.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    assert pool_tokens(x, 4, "all") is x
    assert torch.equal(pool_tokens(x, 4, "cls"), x[:, :1])
    frames = pool_tokens(x, 4, "frames")
    assert frames.shape == (2, 3, 3)
    torch.testing.assert_close(frames[:, 1], x[:, 1:5].mean(1))
    torch.testing.assert_close(frames[:, 2], x[:, 5:].mean(1))
    assert make_net(tokens="all").encode_vision(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 9, DIM)
    assert make_net(tokens="frames").encode_vision(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 3, DIM)


def test_features_in_place_of_a_video_know_their_order():
    net = make_net(vision=False)
    features = torch.randn(1, 6, 12)
    with torch.no_grad():
        assert net.encode_vision(features).shape == (1, 6, DIM)
        difference = net.encode_vision(features).mean(1) - net.encode_vision(features.flip(1)).mean(1)
        assert difference.abs().max() < 1e-6  # the same tokens at the same places on average
        assert (net(features, ["what?"])["verb"] - net(features.flip(1), ["what?"])["verb"]).abs().max() > 1e-6


def test_layers_for_the_learning_rate():
    net = make_net()
    assert net.depth == 1
    depths = {name: net.layer_id(name) for name, _ in net.named_parameters()}
    assert depths["vision.patch_embed.proj.weight"] == 0 and depths["vision.layers.0.mixer.A_log"] == 1
    assert {depth for name, depth in depths.items() if not name.startswith("vision.")} == {2}


@pytest.mark.parametrize(("option", "value"), [("fusion", "early"), ("tokens", "some")])
def test_unknown_options(option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}'; choose one of"):
        make_net(**{option: value})


def test_bfloat16():
    net = make_net()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)), ["a", "what is it?"])
    with torch.no_grad():
        full = net(torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)), ["a", "what is it?"])
    torch.testing.assert_close(low["answer"].float(), full["answer"], rtol=0.1, atol=0.02)
