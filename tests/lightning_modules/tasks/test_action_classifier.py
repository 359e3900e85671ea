"""ActionClassifier: the official computation (golden tensors), how it trains, whose names it takes, what is saved."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

import hub
import zoo
from hub.convert.video_mamba_suite import to_zoo
from lightning_modules import ActionClassifier, DualEncoder
from lightning_modules.errors import ModelError
from lightning_modules.nets.towers import TowerClassifier, build_tower
from lightning_modules.ops import available_backends, use_backend
from zoo.inference.predict import rank

VERBS, NOUNS = ["take", "put", "wash"], [f"noun {i}" for i in range(12)]
AS_TEXT = [(0, 0), (0, 10), (0, 2), (1, 0), (2, 11)]
TOWER = {"tower": "timemamba", "embed_dim": 16, "depth": 1, "heads": 2}
QUIET = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
             accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip


def tiny(**kwargs):
    vocabulary = {"num_verbs": 3, "num_nouns": 12, "order": "as_text"} | kwargs.pop("vocabulary", {})
    sizes = {"vision": TOWER, "num_frames": 2, "image_size": 32, "vocabulary": vocabulary}
    return ActionClassifier(5, **sizes | kwargs)


def batch_of(size, views=None):
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, 2, 32, 32) if views is None else (size, views, 3, 2, 32, 32)
    pairs = torch.tensor([AS_TEXT[i % 5] for i in range(size)])
    return {"video": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), "verb": pairs[:, 0],
            "noun": pairs[:, 1], "action": torch.arange(size) % 5, "index": torch.arange(size),
            "unseen": torch.zeros(size, dtype=torch.bool), "tail": torch.zeros(size, 2, dtype=torch.bool),
            "path": [f"{i}.mp4" for i in range(size)], "narration_id": [f"P01_{i}" for i in range(size)]}  # fmt: skip


class Data(LightningDataModule):
    batch_size = 5
    verb_names, noun_names, actions = VERBS, NOUNS, AS_TEXT

    def train_dataloader(self):
        return DataLoader([batch_of(5)] * 2, batch_size=None)

    def val_dataloader(self):
        return DataLoader([batch_of(5, views=3)], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_logits_equal_the_official_ones(golden, backend):
    tensors, sidecar = golden("vim_suite_timemamba")
    sizes = sidecar["constructor"]
    tower = build_tower({"tower": "timemamba", "embed_dim": sizes["embed_dim"], "depth": sizes["depth"],
                         "heads": sizes["num_heads"], "patch_size": sizes["patch_size"]}, 3, 32)  # fmt: skip
    net = TowerClassifier(tower, sizes["num_classes"], 0.5).eval()
    named = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    weights = {k.removeprefix("net."): v for k, v in to_zoo(named, "golden").items()}
    del weights["vision_proj.weight"]  # the official classifier has none
    net.load_state_dict(weights)
    with torch.inference_mode(), use_backend(backend):
        torch.testing.assert_close(net(tensors["input.video"]), tensors["classifier.logits"], rtol=1e-4, atol=1e-5)


def test_verbs_and_nouns_have_the_sums_of_their_actions():
    model = tiny().eval()
    model.adopt_vocabulary(Data())
    batch = batch_of(3, views=2)
    with torch.inference_mode():
        scores = model.predict_scores(batch)
        views = [model(batch["video"][:, i]).softmax(dim=1) for i in range(2)]
    torch.testing.assert_close(scores["action"], torch.stack(views).mean(dim=0))
    for row in range(3):
        for kind, place, size in (("verb", 0, 3), ("noun", 1, 12)):
            for number in range(size):
                expected = sum(scores["action"][row, i].item() for i in range(5) if AS_TEXT[i][place] == number)
                assert scores[kind][row, number].item() == pytest.approx(expected, abs=1e-6)


def test_two_steps_train_everything_and_the_metrics_are_the_challenges():
    torch.manual_seed(0)
    model = tiny(optim={"lr": 1e-2, "warmup_epochs": 0.0}, label_smoothing=0.1)
    torch.nn.init.constant_(model.net.vision.blocks[0].alpha_timeattn, 0.5)  # behind 0 the mixer learns nothing
    before = {name: p.detach().clone() for name, p in model.net.named_parameters()}
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(model, Data())
    assert not [name for name, p in model.net.named_parameters() if torch.equal(p, before[name])]
    (result,) = trainer.test(model, Data(), verbose=False)
    assert {"test/action_top1", "test/verb_top5", "test/noun_top1", "test/score", "test/loss"} <= set(result)
    (batch,) = trainer.predict(model, Data())
    assert batch["scores"].shape == (5, 5) and batch["verb"].shape == (5, 3) and batch["narration_id"][0] == "P01_0"


def test_mixed_clips_are_learned_by_their_shares():
    model, batch = tiny(label_smoothing=0.0), batch_of(4)
    shares = torch.rand(4, 5).softmax(dim=1)
    model.log = lambda *args, **kwargs: None
    with torch.no_grad():
        loss = model.training_step(batch | {"action_target": shares}, 0)
        expected = -(shares * model(batch["video"]).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)


def test_names_come_from_the_data_and_are_saved(tmp_path):
    model = tiny()
    assert model.class_names is None and rank(model, torch.eye(5)[1], 1)[0].label == "class 1"
    model.adopt_vocabulary(Data())
    assert model.class_names == ["take noun 0", "take noun 10", "take noun 2", "put noun 0", "wash noun 11"]
    hub.save(model, tmp_path / "model")
    loaded = zoo.load(tmp_path / "model")
    assert loaded.class_names == model.class_names and loaded.config == model.config
    video = batch_of(1)["video"]
    with torch.inference_mode():
        assert torch.equal(loaded(video), model.eval()(video))


def test_actions_in_another_order_are_refused():
    class Sorted(Data):
        actions = sorted(AS_TEXT)

    with pytest.raises(ModelError, match=r"order of the texts verb:noun and the data does not; set data\.actions to"):
        tiny().adopt_vocabulary(Sorted())
    anyhow = tiny(vocabulary={"order": "any"})
    anyhow.adopt_vocabulary(Sorted())
    with pytest.raises(ModelError, match="order of the texts"):
        tiny(vocabulary={"actions": [list(pair) for pair in sorted(AS_TEXT)]})
    with pytest.raises(ModelError, match="Number 1 of actions is"):
        anyhow.adopt_vocabulary(Data())
    with pytest.raises(ModelError, match=r"vocabulary\.order is 'numeric'; choose one of any, as_text"):
        tiny(vocabulary={"order": "numeric"})


def test_takes_the_tower_of_a_dual_encoder(tmp_path):
    text = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 24}  # fmt: skip
    donor = DualEncoder(TOWER, text, 8, num_frames=4, image_size=32, max_words=24)
    hub.save(donor, tmp_path / "donor")
    model = tiny()
    head = model.net.head.weight.clone()
    assert not zoo.initialise(model, tmp_path / "donor")
    assert torch.equal(model.net.vision.blocks[0].attn.Wqkv.weight, donor.net.vision.blocks[0].attn.Wqkv.weight)
    assert torch.equal(model.net.head.weight, head)


def test_takes_another_one_of_its_kind_with_the_head(tmp_path):
    donor = tiny(vision=TOWER)
    hub.save(donor, tmp_path / "donor")
    model = tiny(num_frames=4)
    assert zoo.initialise(model, tmp_path / "donor")
    assert torch.equal(model.net.head.weight, donor.net.head.weight)


def test_features_in_place_of_clips_are_refused():
    batch = {k: v for k, v in batch_of(2).items() if k != "video"} | {"features": torch.ones(2, 4, 16)}
    with pytest.raises(ModelError, match=r"sees clips and the data has features; leave data\.features out"):
        tiny().training_step(batch, 0)


def test_a_frozen_tower_leaves_the_head():
    trained = [name for name, p in tiny(freeze_backbone=True).net.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]


def test_features_are_the_towers():
    model, video = tiny().eval(), batch_of(2)["video"]
    with torch.inference_mode():
        features, tokens = model.forward_features(video), model.forward_features(video, pool=None)
        assert torch.equal(model.net.head(features), model(video))
    torch.testing.assert_close(tokens[:, 0], features)
