"""DualEncoder: the official computation (golden tensors), how it trains, and what is saved."""

import math

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel

import hub
import zoo
from hub.convert.video_mamba_suite import to_zoo
from lightning_modules import DualEncoder, VideoClassifier
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import ClipTokenizer, encode_text
from lightning_modules.nets.dual_encoder import DualEncoderNet, build_text_tower
from lightning_modules.nets.towers import build_tower
from lightning_modules.ops import available_backends, use_backend
from lightning_modules.training.losses import contrastive_loss, max_margin_loss

TEXT = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24}  # fmt: skip
TOWERS = {
    "vivim": {"tower": "vivim", "embed_dim": 16, "depth": 1},
    "timemamba": {"tower": "timemamba", "embed_dim": 16, "depth": 1, "heads": 2, "style": "frozen"},
    "videomamba": {"embed_dim": 16, "depth": 1},
}
QUIET = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
             accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip


def tiny(tower="vivim", **kwargs):
    sizes = {"vision": TOWERS[tower], "text": TEXT, "dim": 8, "num_frames": 2, "image_size": 32, "max_words": 24}
    return DualEncoder(**sizes | kwargs)


def batch_of(size, training=True):
    texts = [f"number {i}" for i in range(size)]
    video = torch.randint(0, 256, (size, 3, 2, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batch = {"video": video, "video_index": torch.arange(size), "path": [f"{i}.mp4" for i in range(size)]}
    return batch | {"text": texts if training else [[text] for text in texts]}


class Data(LightningDataModule):
    batch_size = 4

    def train_dataloader(self):
        return DataLoader([batch_of(4)] * 2, batch_size=None)

    def val_dataloader(self):
        return DataLoader([batch_of(4, training=False)], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


# Parity -------------------------------------------------------------------------------------------------------------


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def official_net(golden, **text):
    tensors, sidecar = golden("vim_suite_dual_encoder")
    visual, textual = sidecar["constructor"]["visual"], sidecar["constructor"]["textual"]
    tower = build_tower({"tower": "vivim", "embed_dim": visual["embed_dim"], "depth": visual["depth"],
                         "patch_size": visual["patch_size"]}, visual["num_frames"], visual["img_size"])  # fmt: skip
    sizes = {"vocab_size": textual["vocab_size"], "hidden_size": textual["width"],
             "intermediate_size": 4 * textual["width"], "num_hidden_layers": textual["layers"],
             "num_attention_heads": textual["heads"], "max_position_embeddings": textual["context_length"]}  # fmt: skip
    # The vocabulary has no room for bytes; ids are given.
    net = DualEncoderNet(tower, build_text_tower(sizes | text, textual["output_dim"]), nn.Identity(),
                         textual["output_dim"]).eval()  # fmt: skip
    named = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    net.load_state_dict({k.removeprefix("net."): v for k, v in to_zoo(named, "golden").items()})
    return tensors, net


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_equals_the_official_network(golden, backend):
    tensors, net = official_net(golden)
    net.logit_scale.requires_grad_()
    with use_backend(backend):
        image = net.vision_proj(net.vision.forward_features(tensors["input.video"]))
        features = net(tensors["input.video"])
        words = encode_text(net.text, tensors["input.text"])
        text = nn.functional.normalize(words, dim=-1)
        loss = contrastive_loss(text, features, net.logit_scale.exp())
        loss.backward()
    close(image, tensors["image_embedding"])
    close(features, tensors["image_features"])
    close(words, tensors["text_embedding"])
    close(text, tensors["text_features"])
    close(net.logit_scale.exp(), tensors["scale"])
    close(loss, tensors["loss.contrastive"])
    close(max_margin_loss(text, features), tensors["loss.max_margin"])
    named = {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")}
    gradients = {k.removeprefix("net."): v for k, v in to_zoo(named, "golden").items()}
    # Of both towers all but the last block is in the file.
    assert {"vision_proj.weight", "text.text_projection.weight", "vision.temporal_pos_embedding"} < set(gradients)
    for name, expected in gradients.items():
        close(net.get_parameter(name).grad, expected)


def test_clips_own_activation_is_told_apart(golden):
    """It loads without an error, so the numbers have to tell."""
    tensors, net = official_net(golden, hidden_act="quick_gelu")
    with torch.inference_mode():
        words = encode_text(net.text, tensors["input.text"])
    assert (words - tensors["text_embedding"]).abs().max() > 0.002 * words.abs().max()


# Using it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", TOWERS)
def test_vectors_have_unit_length_and_survive_saving(tower, tmp_path):
    torch.manual_seed(0)
    model = tiny(tower).eval()
    video = batch_of(3)["video"]
    hub.save(model, tmp_path / "model")
    loaded = zoo.load(tmp_path / "model")
    with torch.inference_mode():
        vectors, text = model(video), model.encode_text(["one", "two"])
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(model.similarity(["one", "two"], video), text @ vectors.T)
        assert torch.equal(model.forward_features(video), vectors)
        assert model.forward_features(video, pool=None).shape == (3, 1 + 2 * 4, 16)
        assert torch.equal(loaded(video), vectors) and torch.equal(loaded.encode_text(["one", "two"]), text)
        assert model.encode_text("one").shape == (1, 8) and model.encode_text([]).shape == (0, 8)
    assert loaded.config == model.config
    assert math.isclose(model.net.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-6)


def test_other_frames_interpolate_where_the_network_knows_the_time(tmp_path):
    for tower in TOWERS:
        hub.save(tiny(tower), tmp_path / tower)
        longer = zoo.load(tmp_path / tower, num_frames=4)
        with torch.inference_mode():
            assert longer(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 8)
        larger = zoo.load(tmp_path / tower, image_size=64)
        assert larger.image_size == 64


@pytest.mark.parametrize("loss", ["contrastive", "max_margin"])
def test_two_steps_train_everything_but_the_temperature(loss):
    torch.manual_seed(0)
    model = tiny(loss=loss, margin=0.5, optim={"lr": 1e-2, "warmup_epochs": 0.0})
    before = {name: p.detach().clone() for name, p in model.net.named_parameters()}
    Trainer(max_epochs=1, **QUIET).fit(model, Data())
    same = [name for name, p in model.net.named_parameters() if torch.equal(p, before[name])]
    assert same == ["logit_scale"]


def test_the_loss_is_the_one_asked_for_with_or_without_pairs_of_one_video():
    model, batch = tiny(), batch_of(4)
    text, video = model.encode_text(batch["text"]), model(batch["video"])
    group = torch.tensor([0, 0, 1, 2])
    for name, function in (("contrastive", contrastive_loss), ("max_margin", max_margin_loss)):
        other = tiny(loss=name, margin=0.3)
        arguments = (0.3,) if name == "max_margin" else (model.net.logit_scale.exp(),)
        for pairs in (None, group):
            torch.testing.assert_close(other.loss_of(text, video, pairs), function(text, video, *arguments, pairs))


def test_validation_ranks_and_predictions_have_vectors():
    model = tiny()
    trainer = Trainer(**QUIET)
    (result,) = trainer.validate(model, Data(), verbose=False)
    assert {"val/t2v_r1", "val/v2t_mnr"} <= set(result)
    (batch,) = trainer.predict(model, Data())
    torch.testing.assert_close(batch["embedding"].norm(dim=1), torch.ones(4))


def test_padded_frames_are_refused():
    batch = batch_of(2) | {"frame_mask": torch.tensor([[True, True], [True, False]])}
    with pytest.raises(ModelError, match=r"takes whole clips and the data pads short videos; leave data\.fps out"):
        tiny().encode_videos(batch)


# Starting from others -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP as transformers writes it: its text tower is that of TEXT, its image tower that of TOWERS."""
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    special = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    CLIPModel(CLIPConfig(text_config={**TEXT, **special}, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    ClipTokenizer(514, 24)._build().save_pretrained(folder)
    return folder


def test_starts_from_both_towers_of_clip(clip):
    model = tiny("timemamba", text_weights=str(clip), vision_weights=str(clip))
    donor = CLIPModel.from_pretrained(clip)
    assert torch.equal(model.net.text.text_model.final_layer_norm.weight, donor.text_model.final_layer_norm.weight)
    words, theirs = (m.embeddings.token_embedding.weight for m in (model.net.text.text_model, donor.text_model))
    assert torch.equal(words, theirs)
    query = donor.vision_model.encoder.layers[0].self_attn.q_proj.weight
    assert torch.equal(model.net.vision.blocks[0].attn.Wqkv.weight[:16], query)
    with pytest.raises(ModelError, match=r"text and .* have different sizes"):
        tiny(text=TEXT | {"num_hidden_layers": 2}, text_weights=str(clip))
    with pytest.raises(ModelError, match="it is TimeMamba that starts from CLIP's"):
        tiny("vivim", vision_weights=str(clip))


def test_takes_the_tower_of_a_classifier(tmp_path):
    donor = VideoClassifier(3, embed_dim=16, depth=1, num_frames=4, image_size=32)
    hub.save(donor, tmp_path / "donor")
    model = tiny("videomamba")
    text = model.net.text.text_projection.weight.clone()
    zoo.initialise(model, tmp_path / "donor")
    assert torch.equal(model.net.vision.norm_f.weight, donor.net.norm_f.weight)
    assert torch.equal(model.net.vision.layers[0].mixer.A_log, donor.net.layers[0].mixer.A_log)
    assert torch.equal(model.net.text.text_projection.weight, text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"vision": {"tower": "resnet"}}, r"vision\.tower is 'resnet'; choose one of videomamba, vivim, timemamba"),
        ({"vision": {"tower": "vivim", "heads": 2}}, "vision has no entry 'heads'; it takes embed_dim, depth, patch"),
        ({"vision": "vivim"}, "vision is a str; it maps names to values"),
        ({"vision": TOWERS["timemamba"], "drop_path": 0.1}, "TimeMamba has no stochastic depth"),
        ({"text": {"widht": 3}}, "text has no entry 'widht'"),
        ({"max_words": 30}, "The text tower has 24 positions; max_words 30 may not exceed them"),
        ({"loss": "triplet"}, "loss is 'triplet'; choose one of contrastive, max_margin"),
        ({"margin": -1}, "margin is -1; it has to be a finite number of at least 0 and at most 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, complaint):
    with pytest.raises(ModelError, match=complaint):
        tiny(**arguments)
