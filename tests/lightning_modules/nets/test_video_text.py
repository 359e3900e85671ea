"""The video tower and the net around it: what images, clips and masked clips become."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.nets.bert import BertWords, build_bert
from lightning_modules.nets.masked_videomamba import MaskedVideoMamba, sinusoids
from lightning_modules.nets.masking import draw_visible
from lightning_modules.nets.video_text import VideoTextNet, VideoTower
from lightning_modules.nets.videomamba import VideoMamba

SIZE = dict(embed_dim=16, depth=3, num_frames=4, image_size=32, patch_size=8)
TEXT = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 16}  # fmt: skip


def away_from_start(net):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def test_clips_are_videomambas_and_pooled_frame_by_frame():
    tower, plain = away_from_start(VideoTower(**SIZE)), VideoMamba(num_classes=0, **SIZE)
    plain.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.startswith("pool_norm.")})
    video = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        seen, tokens = tower(video), plain.eval().forward_tokens(video)
    torch.testing.assert_close(seen.tokens, tokens[:, 1:])
    assert seen.pooled.shape == (2, 4, 16) and seen.aligned is None
    for frame in range(4):
        mean = tokens[:, 0] + tokens[:, 1 + 16 * frame : 17 + 16 * frame].mean(1)
        expected = F.layer_norm(mean, (16,), tower.pool_norm.weight, tower.pool_norm.bias)
        torch.testing.assert_close(seen.pooled[:, frame], expected)


def test_images_have_no_place_in_time():
    tower = away_from_start(VideoTower(**SIZE))
    still = VideoMamba(num_classes=0, **{**SIZE, "num_frames": 1}).eval()
    weights = {k: v for k, v in tower.state_dict().items() if not k.startswith("pool_norm.")}
    still.load_state_dict({**weights, "temporal_pos_embedding": torch.zeros(1, 1, 16)})
    image = torch.randn(2, 3, 1, 32, 32)
    seen = tower(image)
    torch.testing.assert_close(seen.tokens, still.forward_tokens(image)[:, 1:])
    assert seen.pooled.shape == (2, 1, 16)
    seen.pooled.square().sum().backward()
    gradient = tower.temporal_pos_embedding.grad
    assert gradient is not None and not gradient.any()  # processes that wait for all gradients find this one too
    with pytest.raises(ValueError, match=r"this one is \(2, 3, 3, 32, 32\)"):
        tower(torch.randn(2, 3, 3, 32, 32))


@pytest.mark.parametrize("variant", ["all_blocks", "official"])
def test_masked_clips_run_on_visible_tokens_and_are_aligned_as_in_masked_pretraining(variant):
    tower = away_from_start(VideoTower(**SIZE, target_dim=12, variant=variant))
    student = MaskedVideoMamba(**SIZE, target_dim=12, variant=variant).eval()
    student.load_state_dict({k: v for k, v in tower.state_dict().items() if not k.startswith("pool_norm.")})
    video = torch.randn(2, 3, 4, 32, 32)
    visible = draw_visible("random", 0.75, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = tower(video, visible)
        torch.testing.assert_close(seen.aligned, student(video, visible)[0])
        torch.testing.assert_close(tower(video).aligned, student(video)[0])
        every = torch.arange(65).expand(2, -1)
        torch.testing.assert_close(tower(video, every).tokens, tower(video).tokens)
    assert seen.tokens.shape == (2, 16, 16) and seen.pooled.shape == (2, 1, 16)
    hidden = video.clone()
    patches = set((visible[0, 1:] - 1).tolist())
    gone = next(patch for patch in range(64) if patch not in patches)
    hidden[0, :, gone // 16, gone % 16 // 4 * 8, gone % 4 * 8] += 5
    with torch.no_grad():
        assert torch.equal(tower(hidden, visible).tokens, seen.tokens)
    assert all(parameter.requires_grad for parameter in tower.parameters())  # the other losses train the last block


def test_places_of_an_image_are_the_beginning_of_a_clips():
    torch.testing.assert_close(sinusoids(17, 16), sinusoids(65, 16)[:, :17])
    tower = away_from_start(VideoTower(**SIZE, target_dim=12))
    assert tower(torch.randn(1, 3, 1, 32, 32)).aligned.shape == (1, 17, 12)


def net():
    torch.manual_seed(0)
    words = BertWords(60, 12)
    words.learn(["a red circle moves left", "a green square grows"])
    return VideoTextNet(VideoTower(**SIZE), build_bert(TEXT, 1, 16), words, dim=20).eval()


def test_vectors_matches_and_words():
    model = away_from_start(net())
    video, texts = torch.randn(3, 3, 4, 32, 32), ["a red circle", "a green square grows left", "circle"]
    with torch.no_grad():
        seen, text = model.encode_video(video), model.encode_text(texts)
        assert seen.vectors.shape == (3, 4, 20) and text.vectors.shape == (3, 20)
        torch.testing.assert_close(seen.vectors.norm(dim=-1), torch.ones(3, 4))
        torch.testing.assert_close(text.vectors.norm(dim=-1), torch.ones(3))
        cosines = torch.einsum("me,bte->mbt", text.vectors, seen.vectors)
        torch.testing.assert_close(text.vectors @ seen.mean.T, cosines.mean(-1))
        alone = model.encode_text(texts[:1])
        torch.testing.assert_close(alone.vectors, text.vectors[:1])  # padding changes nothing
        logits = model.match(text.hidden, text.mask, seen.tokens)
        assert logits.shape == (3, 2)
        torch.testing.assert_close(model.match(alone.hidden, alone.mask, seen.tokens[:1]), logits[:1])
        assert model.guess_words(text.ids, text.mask, seen.tokens).shape == (*text.ids.shape, 60)
    assert model.temp.item() == pytest.approx(0.07, abs=1)
    assert net().temp.item() == pytest.approx(0.07)


def test_every_parameter_is_trained_by_clips_and_by_images():
    for frames in (4, 1):
        model = net().train()
        seen, text = model.encode_video(torch.randn(2, 3, frames, 32, 32)), model.encode_text(["a red", "green left"])
        loss = (text.vectors @ seen.mean.T / model.temp).sum() + model.match(text.hidden, text.mask, seen.tokens).sum()
        (loss + model.guess_words(text.ids, text.mask, seen.tokens).sum()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert math.isfinite(loss.item())


def test_recomputing_bert_changes_nothing_but_how_often_it_runs():
    gradients, calls = [], []
    for recomputed in (False, True):
        model, count = net().train(), []
        model.checkpoint_text = recomputed
        for layer in model.text.bert.encoder.layer:
            layer.intermediate.register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(4)  # dropout
        seen, text = model.encode_video(torch.ones(2, 3, 4, 32, 32)), model.encode_text(["a red", "green left"])
        model.match(text.hidden, text.mask, seen.tokens)[:, 1].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        calls.append(len(count))
    assert calls == [3, 6] and len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 1}, "num_frames is 1; a clip has 2 frames"),
        ({"variant": "none"}, "variant is 'none'"),
        ({"variant": "official", "depth": 1}, "with 2 blocks at least"),
        ({"image_size": 30}, "image_size 30"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoTower(**{**SIZE, **arguments})
