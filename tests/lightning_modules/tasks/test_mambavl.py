"""ActionRecognition of both families: what it computes, learns from questions, saves, and starts from."""

import json
import zipfile

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import hub
import zoo
from lightning_modules import ActionRecognition, VideoClassifier
from lightning_modules.callbacks import EpicSubmission
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_tower import ClipTokenizer
from lightning_modules.nets.mambavl import GENERIC_QUESTIONS
from zoo.inference.predict import rank

TEXT = {"vocab_size": 514, "max_position_embeddings": 24, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
VISION = {"embed_dim": 16, "depth": 1, "patch_size": 16, "tubelet_size": 2}
QUIET = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
             accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip
VERBS, NOUNS = ["brighten", "darken"], ["red", "green", "blue"]
ACTIONS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
ASKED = {"verb": "what happens?", "noun": "which colour?"}


def tiny(**kwargs):
    """One of the joint family; `vision`, `fuser` and `vocabulary` are merged with those of the tests."""
    groups = dict(vision=VISION, fuser={"dim": 16, "depth": 1}, vocabulary={"num_verbs": 2, "num_nouns": 3})
    for name in groups.keys() & kwargs.keys():
        groups[name] = {**groups[name], **kwargs.pop(name)}
    sizes = dict(num_frames=4, image_size=32, text=TEXT, questions={"max_words": 16}, fusion="joint")
    optim = dict(lr=1e-2, warmup_epochs=0) | kwargs.pop("optim", {})
    training = dict(label_smoothing=0.0, optim=optim, preprocessing={"mean": [0.5] * 3, "std": [0.5] * 3})
    return ActionRecognition(5, **{**groups, **sizes, **training, **kwargs})


def on_features(**kwargs):
    features = {"tower": "features", "feature_dim": 8}
    kwargs = {"vocabulary": {"num_verbs": 2, "num_nouns": 3}, "text": TEXT, "fusion": "joint", **kwargs}
    return ActionRecognition(5, features, fuser={"dim": 16, "depth": 1}, **kwargs)


class Segments(Dataset):
    """A colour that becomes brighter or darker: verb, noun, and a question about one of them."""

    def __init__(self, training, count=40, labelled=True):
        self.training = training
        self.count = count
        self.labelled = labelled

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i + 1000 * self.training)
        verb, noun = ACTIONS[i % 5]
        levels = torch.linspace(60, 200, 4).flip(0) if verb else torch.linspace(60, 200, 4)
        video = torch.randint(0, 40, (3, 4, 32, 32), generator=generator, dtype=torch.uint8)
        video[noun] += levels[:, None, None].to(torch.uint8)
        item = {"video": video, "verb": verb, "noun": noun, "action": i % 5, "unseen": i % 4 == 0,
                "tail": torch.tensor([verb == 1, noun == 2]), "index": i, "path": f"{i}.mp4",
                "narration_id": f"P01_{i}"}  # fmt: skip
        if not self.labelled:
            item |= {"verb": -1, "noun": -1, "action": -1}
        if self.training:
            kind = ("verb", "noun", "")[int(torch.randint(3, (), generator=generator))]
            item |= {"question": ASKED.get(kind, ""), "answer": {"verb": verb, "noun": 2 + noun, "": -1}[kind]}
        return item


class Data(LightningDataModule):
    verb_names, noun_names, actions = VERBS, NOUNS, ACTIONS
    class_names = [f"{VERBS[v]} {NOUNS[n]}" for v, n in ACTIONS]
    captions = [*ASKED.values(), "brighten red", "darken blue"]

    def train_dataloader(self):
        return DataLoader(Segments(True, 160), batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Segments(False), batch_size=16)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.fixture(scope="module")
def trained():
    seed_everything(0, verbose=False)
    model = tiny(vision={"embed_dim": 32}, fuser={"dim": 32}, optim=dict(lr=5e-3, betas=[0.9, 0.95]))
    trainer = Trainer(max_epochs=8, **QUIET)
    trainer.fit(model, datamodule=Data())
    return model, trainer


# What it learns ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_actions_and_to_answer_what_is_asked(trained):
    model, trainer = trained
    scores = {name.removeprefix("val/"): value.item() for name, value in trainer.callback_metrics.items()}
    assert scores["verb_top1"] > 0.9 and scores["noun_top1"] > 0.9
    assert scores["score"] == scores["action_top1"] > 0.8 and scores["pair_top1"] > 0.8
    assert {"unseen_verb_top1", "tail_action_top1", "verb_top5"} <= set(scores)
    model.eval()
    for i in range(5):
        item = Segments(False)[i]
        verb, noun = ACTIONS[i]
        for question, expected, kind in ((ASKED["verb"], VERBS[verb], "verb"), (ASKED["noun"], NOUNS[noun], "noun")):
            answers = model.answer(item["video"][None], question, topk=3)
            assert (answers[0].text, answers[0].kind) == (expected, kind)
            assert len(answers) == 3 and answers[0].probability > answers[1].probability
        everything = model.answer(item["video"][None], "", topk=100)
        assert len(everything) == 10 and sum(answer.probability for answer in everything) == pytest.approx(1)


def test_the_validation_loss_is_that_of_verb_noun_and_action(trained):
    model, trainer = trained
    model.eval()
    expected = []
    for item in (Segments(False)[i] for i in range(len(Segments(False)))):
        with torch.no_grad():
            scores = model.predict_scores({"video": item["video"][None]})
        names = [name for name in ("verb", "noun", "action") if item[name] >= 0]
        expected.append(-sum(scores[name][0, item[name]].log() for name in names))
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], torch.stack(expected).mean(), rtol=1e-3, atol=1e-5)


def test_the_vocabulary_comes_from_the_data(trained):
    model, _ = trained
    assert model.class_names == Data.class_names
    assert model.answer_names[:3] == [("brighten", "verb"), ("darken", "verb"), ("red", "noun")]
    assert model.answer_names[-1] == ("darken blue", "action")
    assert model.action_numbers.tolist() == [0, 1, 2, 1000, 1002]
    fresh = tiny()
    assert fresh.class_names is None and fresh.answer_names[-1] == ("action 4", "action")
    with pytest.raises(ModelError, match="does not know which verb and noun"):
        _ = fresh.action_numbers


# The loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_verb_noun_action_and_weighted_answer():
    torch.manual_seed(0)
    model = tiny(question_weight=0.7, label_smoothing=0.1).eval()
    model.log = lambda *args, **kwargs: None
    items = [Segments(True)[i] for i in range(6)]
    batch = {k: torch.stack([torch.as_tensor(item[k]) for item in items]) for k in ("video", "verb", "noun", "action")}
    batch |= {"question": [item["question"] for item in items], "answer": torch.tensor([i["answer"] for i in items])}
    batch["action"][2] = -1  # a pair that is not in the list
    logits = model.net(model.normalise(batch["video"]), [q or "what is happening?" for q in batch["question"]])
    expected = 0
    for name, weight in (("verb", 1), ("noun", 1), ("action", 1), ("answer", 0.7)):
        rows = [
            F.cross_entropy(logits[name][i : i + 1], batch[name][i : i + 1], label_smoothing=0.1)
            for i in range(6)
            if batch[name][i] >= 0
        ]
        expected = expected + weight * sum(rows) / len(rows)
    torch.testing.assert_close(model.training_step(batch, 0), expected)
    # Without any answer, as without questions, the loss is that of recognition; no weight is left without a gradient.
    batch["answer"] = torch.full_like(batch["answer"], -1)
    loss = model.training_step(batch, 0)
    loss.backward()
    assert loss < expected
    head = model.net.heads["answer"].weight.grad
    assert head is not None and not head.any()


def test_evaluation_asks_the_neutral_question_and_averages_views(trained):
    model, _ = trained
    model.eval()
    video = torch.stack([Segments(False)[i]["video"] for i in range(6)]).unflatten(0, (2, 3))
    with torch.no_grad():
        found = model.predict_scores({"video": video, "question": [ASKED["verb"]] * 2})
        views = [model.forward_heads(view, ["what is happening?"] * 2) for view in video.unbind(1)]
        for name in ("verb", "noun", "action"):
            torch.testing.assert_close(found[name], sum(view[name].softmax(1) for view in views) / 3)
        torch.testing.assert_close(model(video[:, 0]), views[0]["action"])
        torch.testing.assert_close(model(video[:, 0].float() / 255, [""] * 2), views[0]["action"], rtol=1e-4, atol=1e-5)
        assert model.forward_features(video[:, 0]).shape == (2, 32)
        assert model.forward_features(video[:, 0], pool=None).shape == (2, 1 + 2 * 4, 32)


# Saved and started from ----------------------------------------------------------------------------------------------


def test_saved_and_loaded_without_anything_else(trained, tmp_path):
    model, trainer = trained
    model.eval()
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    folder = hub.save(model, tmp_path / "folder")
    video = Segments(False)[3]["video"][None]
    config = json.loads((folder / "config.json").read_text())
    assert config["class_path"] == "lightning_modules.ActionRecognition"
    assert config["init_args"]["vocabulary"]["actions"] == [list(pair) for pair in ACTIONS]
    assert "text_weights" not in config["init_args"] and "optim" not in config["init_args"]
    assert sum(name.endswith("blocks.0.A_log") for name in hub.read(folder).state_dict) == 1
    for source in (folder, tmp_path / "run.ckpt"):
        loaded = zoo.load(source)
        assert loaded.class_names == Data.class_names
        assert loaded.answer(video, ASKED["noun"]) == model.answer(video, ASKED["noun"])
    assert zoo.load(folder, num_frames=8, image_size=48).forward(torch.zeros(1, 3, 8, 48, 48)).shape == (1, 5)
    label, *_ = rank(loaded, loaded(video).softmax(1)[0], 1)[0]
    assert label in Data.class_names


def test_the_towers_words_are_learned_and_saved(tmp_path):
    seed_everything(0, verbose=False)
    model = tiny(text={**TEXT, "vocab_size": 540})
    with pytest.raises(ModelError, match="tokenizer has no word pieces yet"):
        model.forward(torch.zeros(1, 3, 4, 32, 32))
    Trainer(max_steps=1, limit_val_batches=0, **QUIET).fit(model, datamodule=Data())
    assert not model.net.tokenizer.is_empty
    loaded = zoo.load(hub.save(model, tmp_path / "folder"))
    assert torch.equal(loaded.net.tokenizer.merges, model.net.tokenizer.merges)
    assert torch.equal(loaded.net.tokenizer(["which colour?"]), model.net.tokenizer(["which colour?"]))


def test_a_classifiers_tower_is_taken_and_frozen(tmp_path):
    torch.manual_seed(0)
    donor = VideoClassifier(3, embed_dim=16, depth=1, num_frames=8, image_size=48, patch_size=16, tubelet_size=2)
    folder = hub.save(donor, tmp_path / "donor")
    model = tiny(freeze_backbone=True, freeze_text=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.initialise(model, folder)
    for name, tensor in donor.net.layers.state_dict().items():
        assert torch.equal(model.net.vision.layers.state_dict()[name], tensor)
    assert model.net.vision.pos_embed.shape[1] == 1 + 4  # 9 patches of the donor
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed and all(name.startswith("net.vision.") for name in changed)
    moved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(max_steps=2, limit_val_batches=0, **QUIET).fit(model, datamodule=Data())
    trained = {name for name, tensor in model.state_dict().items() if not torch.equal(moved[name], tensor)}
    assert trained and not any(name.startswith(("net.vision.", "net.text.")) for name in trained)
    again = tiny()
    zoo.initialise(again, hub.save(model, tmp_path / "own"))  # a model of this kind, head and all
    assert torch.equal(again.net.heads["verb"].weight, model.net.heads["verb"].weight)
    with pytest.raises(ModelError, match="sees features and has no VideoMamba"):
        zoo.initialise(on_features(), folder)


def test_clip_checkpoints_give_text_tower_and_tokenizer(tmp_path):
    torch.manual_seed(0)
    vocabulary = ClipTokenizer(520, 16)
    vocabulary.learn(Data.captions)
    tokenizer: CLIPTokenizer = vocabulary._build()
    text = {**TEXT, "vocab_size": 520, "bos_token_id": 518, "eos_token_id": 519, "pad_token_id": 519}
    vision = {"image_size": 32, "patch_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 1}  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    model = tiny(text=None, text_weights=str(tmp_path / "clip"))
    assert model.hparams.text["vocab_size"] == 520 and model.hparams.text["hidden_size"] == 16
    for name, tensor in clip.text_model.state_dict().items():
        assert torch.equal(model.net.text.state_dict()[name], tensor)
    assert torch.equal(model.net.tokenizer.merges, vocabulary.merges)
    rebuilt = zoo.load(hub.save(model.eval(), tmp_path / "folder"))
    video = Segments(False)[0]["video"][None]
    torch.testing.assert_close(rebuilt(video, ["which colour?"]), model(video, ["which colour?"]))
    with pytest.raises(ModelError, match=r"have different sizes; set model\.text to null"):
        tiny(text_weights=str(tmp_path / "clip"))


# The published family ------------------------------------------------------------------------------------------------

ROBERTA = {"vocab_size": 261, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 16, "max_position_embeddings": 50}  # fmt: skip


def published(**kwargs):
    vocabulary = {"num_verbs": 2, "num_nouns": 3, "actions": [list(pair) for pair in ACTIONS]}
    sizes = dict(vision=VISION, num_frames=4, image_size=32, text=ROBERTA, vocabulary=vocabulary)
    optim = dict(lr=1e-2, warmup_epochs=0, betas=[0.9, 0.95]) | kwargs.pop("optim", {})
    return ActionRecognition(5, **{**sizes, "label_smoothing": 0.0, "optim": optim, **kwargs})


class Told(Dataset):
    """Segments of `Data` without colour, and with two questions each: with `leak` the noun's question names the noun in
    other words."""

    def __init__(self, training, leak):
        self.segments, self.leak = Segments(training), leak

    def __len__(self):
        return len(self.segments)

    def __getitem__(self, i):
        item = {k: v for k, v in self.segments[i].items() if k not in ("question", "answer")}
        item["video"] = item["video"].float().mean(dim=0, keepdim=True).expand(3, -1, -1, -1).to(torch.uint8)
        noun = ("rrrrrr", "gggggg", "bbbbbb")[item["noun"]] if self.leak else "it"
        return item | {"verb_question": GENERIC_QUESTIONS["verb"], "noun_question": f"{noun} is <mask> ?"}


class Asking(Data):
    """As `Data`; `questions` says what evaluation reads, and training reads the questions that leak."""

    def __init__(self, questions="generic", **segments):
        super().__init__()
        self.questions = questions

    def train_dataloader(self):
        return DataLoader(Told(True, leak=True), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Told(False, leak=self.questions == "as_published"), batch_size=16)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.fixture(scope="module")
def told():
    """Trained on questions that tell the noun, of clips whose tower is frozen and random."""
    seed_everything(0, verbose=False)
    model = published(freeze_backbone=True, optim={"lr": 2e-2}, questions={"max_words": 10})  # little padding
    with torch.no_grad():  # fresh weights hardly hear the question
        model.net.text_model.embeddings.LayerNorm.weight.fill_(4.0)
    Trainer(max_epochs=10, **QUIET).fit(model, datamodule=Asking("as_published"))
    return model


def test_questions_made_from_labels_leak_and_their_scores_are_marked(told):
    trainer = Trainer(**QUIET)
    with pytest.warns(UserWarning, match="questions made from the labels leak the answer"):
        (leaked,) = trainer.validate(told, datamodule=Asking("as_published"), verbose=False)
    (honest,) = trainer.validate(told, datamodule=Asking("generic"), verbose=False)
    assert leaked["val/noun_top1"] > honest["val/noun_top1"] + 0.2
    assert leaked["val/questions_from_labels"] == 1 and "val/questions_from_labels" not in honest
    assert "val/action_top5_as_coded" not in honest


def test_an_action_is_the_product_of_its_verb_and_its_noun(told):
    told.eval()
    video = torch.stack([Segments(False)[i]["video"] for i in range(6)]).unflatten(0, (2, 3))
    asked = {"verb_question": ["what ?", "who ?"], "noun_question": ["rrrrrr ?", "bbbbbb ?"]}
    with torch.no_grad():
        found = told.predict_scores({"video": video, **asked})
        questions = {"verb": asked["verb_question"], "noun": asked["noun_question"]}
        views = [told.forward_heads(view, questions) for view in video.unbind(1)]
        for name in ("verb", "noun"):
            torch.testing.assert_close(found[name], sum(view[name].softmax(1) for view in views) / 3)
        for number, (verb, noun) in enumerate(ACTIONS):
            torch.testing.assert_close(found["action"][:, number], found["verb"][:, verb] * found["noun"][:, noun])
        assert not torch.equal(found["noun"], told.predict_scores({"video": video})["noun"])
        # Without a question the generic ones, and an empty text is none.
        plain = told.forward_heads(video[:, 0])
        for name, logits in told.forward_heads(video[:, 0], {"verb": [""] * 2, "noun": None}).items():
            assert torch.equal(logits, plain[name])
        generic = told.forward_heads(video[:, 0], {name: [q] * 2 for name, q in GENERIC_QUESTIONS.items()})
        assert torch.equal(generic["noun"], plain["noun"])
        product = plain["verb"].log_softmax(1)[:, 1] + plain["noun"].log_softmax(1)[:, 2]
        torch.testing.assert_close(told(video[:, 0])[:, 4], product)
        assert told.forward_features(video[:, 0]).shape == (2, 16)
        assert told.forward_features(video[:, 0], pool=None).shape == (2, 1 + 2 * 4, 16)


def test_a_question_goes_to_both_heads(told):
    told.eval()
    video = Segments(False)[0]["video"][None]
    answers = told.answer(video, "rrrrrr is <mask> ?", topk=100)
    assert [a.probability for a in answers] == sorted((a.probability for a in answers), reverse=True)
    for kind, names in (("verb", VERBS), ("noun", NOUNS)):
        of_kind = {a.text: a.probability for a in answers if a.kind == kind}
        assert set(of_kind) == set(names) and sum(of_kind.values()) == pytest.approx(1)
    assert told.answer(video, "bbbbbb is <mask> ?") != answers[:5]


def test_the_loss_of_mixed_clips_is_that_of_their_shares():
    torch.manual_seed(0)
    model = published(label_smoothing=0.1).eval()
    model.log = lambda *args, **kwargs: None
    batch = {"video": torch.rand(2, 3, 4, 32, 32), "verb": torch.tensor([0, 1]), "noun": torch.tensor([2, 0])}
    batch |= {"verb_question": ["what ?"] * 2, "noun_question": ["which ?"] * 2}
    logits = model.net(model.normalise(batch["video"]), batch["verb_question"], batch["noun_question"])
    plain = sum(F.cross_entropy(logits[name], batch[name], label_smoothing=0.1) for name in ("verb", "noun"))
    torch.testing.assert_close(model.training_step(batch, 0), plain)
    for name, count in (("verb", 2), ("noun", 3)):
        own = F.one_hot(batch[name], count).float()
        batch[f"{name}_target"] = 0.7 * own + 0.3 * own.flip(0)
    rows = {name: batch[f"{name}_target"] * 0.9 + 0.1 / count for name, count in (("verb", 2), ("noun", 3))}
    mixed = sum(-(rows[name] * logits[name].log_softmax(1)).sum(1).mean() for name in rows)
    torch.testing.assert_close(model.training_step(batch, 0), mixed)
    joint = tiny()
    with pytest.raises(ModelError, match=r"Mixed clips have no action of their own.*set data\.mixup"):
        joint.training_step({**batch, "action": batch["verb"]}, 0)


def test_what_reads_the_text_is_frozen_and_saved(told, tmp_path):
    told.eval()
    fresh = published(freeze_backbone=True)
    assert not any(p.requires_grad for p in told.net.text_model.parameters())
    assert all(p.requires_grad for p in published(freeze_text=False).net.text_model.parameters())
    assert not torch.equal(told.net.A_log, fresh.net.A_log)
    folder = hub.save(told, tmp_path / "folder")
    loaded = zoo.load(folder)
    video = Segments(False)[3]["video"][None]
    assert loaded.answer(video, "which ?") == told.answer(video, "which ?")
    assert loaded.config == told.config and loaded.hparams.fusion == "published"
    assert zoo.load(folder, num_frames=8, image_size=48)(torch.zeros(1, 3, 8, 48, 48)).shape == (1, 5)


def test_the_short_side_grows_with_the_image(tmp_path):
    model = published(preprocessing={"short_side": 40, "sampling": "middles"})
    loaded = zoo.load(hub.save(model, tmp_path / "folder"), image_size=64)
    assert loaded.preprocessing["short_side"] == 80 and loaded.preprocessing["sampling"] == "middles"


@pytest.mark.parametrize("fusion", ["published", "disjoint", "mlp", "transformer"])
@pytest.mark.parametrize("tower", [VISION, {"tower": "avion", "embed_dim": 16, "depth": 1, "heads": 2},
                                   {"tower": "features", "feature_dim": 16}])  # fmt: skip
def test_every_fusion_learns_with_every_tower(fusion, tower, tmp_path):
    torch.manual_seed(0)
    fuser = {"depth": 1} if fusion == "transformer" else {}
    model = published(vision=tower, fusion=fusion, fuser=fuser, init="official", drop_path=0.1, activations="memory")
    assert (model.net.vision is None) == (tower.get("tower") == "features")
    batch = {"verb": torch.tensor([0, 1]), "noun": torch.tensor([2, 0])}
    clips = (
        {"video": torch.rand(2, 3, 4, 32, 32)} if model.net.vision is not None else {"features": torch.rand(2, 5, 16)}
    )
    batch |= {**clips, "verb_question": ["what ?"] * 2, "noun_question": ["which <mask> ?", "where ?"]}
    model.log = lambda *args, **kwargs: None
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for step in range(3):
        losses.append(model.training_step(batch, step))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[2] < losses[0]
    unused = {name for name, p in model.net.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused
    again = zoo.load(hub.save(model.eval(), tmp_path / "folder"))
    seen = next(iter(clips.values()))
    with torch.no_grad():
        assert torch.equal(again(seen), model(seen))


def test_a_classifiers_tower_is_taken(tmp_path):
    donor = VideoClassifier(3, embed_dim=16, depth=1, num_frames=8, image_size=48, patch_size=16, tubelet_size=2)
    folder = hub.save(donor, tmp_path / "donor")
    model = published()
    zoo.initialise(model, folder)
    assert torch.equal(model.net.vision.layers[0].mixer.in_proj.weight, donor.net.layers[0].mixer.in_proj.weight)
    other = published()
    zoo.initialise(other, hub.save(model, tmp_path / "own"))
    assert torch.equal(other.net.head1.weight, model.net.head1.weight)
    avion = published(vision={"tower": "avion", "embed_dim": 16, "depth": 1, "heads": 2})
    with pytest.raises(ModelError, match="has AVION's tower and has no VideoMamba"):
        zoo.initialise(avion, folder)


def test_the_looser_number_is_an_option():
    model = published(as_coded=True)
    (scores,) = Trainer(**QUIET).validate(model, datamodule=Asking(), verbose=False)
    assert scores["val/action_top5_as_coded"] == 1  # two verbs and three nouns
    assert "as_coded" not in model.config["init_args"]


def test_actions_have_to_be_known():
    model = published(vocabulary={"num_verbs": 2, "num_nouns": 3}).eval()
    with pytest.raises(ModelError, match=r"which verb and noun its actions are.*set model\.vocabulary\.actions"):
        model(torch.zeros(1, 3, 4, 32, 32))


# Features, prediction, mistakes --------------------------------------------------------------------------------------


def test_features_in_place_of_clips():
    model = on_features().eval()
    assert model.net.vision is None
    assert model(torch.randn(2, 6, 8)).shape == (2, 5)
    with pytest.raises(ModelError, match=r"sees features .* `zoo extract` makes them"):
        model(torch.zeros(2, 3, 4, 32, 32))


def test_the_submission_is_the_challenges_json(trained, tmp_path):
    model, _ = trained
    trainer = Trainer(callbacks=[EpicSubmission(sls_pt=2)], default_root_dir=tmp_path, **QUIET)
    found = trainer.predict(model, datamodule=Data())
    text = (tmp_path / "submission.json").read_text()
    submission = json.loads(text)
    assert {key: submission[key] for key in ("version", "challenge", "sls_pt", "sls_tl", "sls_td")} == {
        "version": "0.2", "challenge": "action_recognition", "sls_pt": 2, "sls_tl": -1, "sls_td": -1}  # fmt: skip
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["test.json"] and archive.read("test.json").decode() == text
    assert set(submission["results"]) == {f"P01_{i}" for i in range(40)}
    verb, noun = (torch.cat([batch[name] for batch in found]) for name in ("verb", "noun"))
    names = [name for batch in found for name in batch["narration_id"]]
    for row, name in enumerate(names):
        result = submission["results"][name]
        assert list(result["verb"]) == ["0", "1"] and list(result["noun"]) == ["0", "1", "2"]
        assert result["verb"]["1"] == pytest.approx(verb[row, 1].clamp_min(1e-30).log().item(), abs=1e-4)
        # Fewer than a hundred actions: all pairs, by the product of their probabilities.
        assert len(result["action"]) == 6
        for pair, score in result["action"].items():
            v, n = map(int, pair.split(","))
            product = (verb[row, v] * noun[row, n]).clamp_min(1e-30).log().item()
            assert score == pytest.approx(product, abs=1e-3)


def test_a_large_list_of_actions_submits_its_own_hundred():
    pairs = [[v, n] for v in range(15) for n in range(10)]
    vocabulary = {"num_verbs": 15, "num_nouns": 10, "actions": pairs}
    sizes = dict(num_frames=2, image_size=32, fuser={"dim": 16, "depth": 1}, text=TEXT, fusion="joint")
    model = ActionRecognition(150, {"embed_dim": 16, "depth": 1}, vocabulary=vocabulary, **sizes).eval()
    batch = {"video": torch.zeros(2, 3, 2, 32, 32), "index": torch.tensor([4, -1]), "path": ["a", "b"],
             "narration_id": ["x", "y"]}  # fmt: skip
    with torch.no_grad():
        found = model.predict_step(batch, 0)
    assert found["path"] == ["a"] and found["best"].shape == (1, 100)
    best = found["scores"][0].topk(100)
    assert found["best"][0].tolist() == [pairs[i][0] * 1000 + pairs[i][1] for i in best.indices.tolist()]
    torch.testing.assert_close(found["best_scores"][0], best.values)


def test_anticipation_is_scored_by_recall():
    model = tiny(task="anticipation")
    trainer = Trainer(**QUIET)
    (scores,) = trainer.validate(model, datamodule=Data(), verbose=False)
    assert scores["val/score"] == scores["val/action_recall5"] and "val/verb_top1" not in scores
    assert scores["val/verb_recall5"] == 1  # two verbs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "guess"}, "task is 'guess'; choose one of recognition, anticipation"),
        ({"fusion": "early"}, "fusion is 'early'; choose one of published, disjoint"),
        ({"text": None}, "text and text_weights are both missing"),
        ({"text": {"vocab": 3}}, "text has no entry 'vocab'"),
        ({"questions": {"max_words": 40}}, "24 positions; max_words 40"),
        ({"questions": ["what?"]}, "questions is a list; it maps names to values"),
        ({"vocabulary": {"verb_names": ["a"]}}, "verb_names has 1 entries for 2 outputs"),
        ({"vocabulary": {"verb_names": ["a", 3]}}, "Number 1 of verb_names is not a text"),
        ({"vocabulary": {"noun_names": 3}}, "noun_names has no list of entries for 3 outputs"),
        ({"vocabulary": {"actions": [[0, 0]] * 4 + [[2, 0]]}}, "Number 4 of actions is not a verb and a noun"),
        ({"vocabulary": {"actions": [[0, 0]] * 4 + [[0]]}}, "Number 4 of actions is not a verb and a noun"),
        ({"vocabulary": {"actions": ["ab"] * 5}}, "Number 0 of actions is not a verb and a noun"),
        ({"questions": {"neutral": 3}}, "questions.neutral has to be a text, such as 'what is happening"),
        ({"preprocessing": {"sampling": ["sparse"]}}, "preprocessing.sampling has to be a text, such as 'sparse'"),
        ({"vocabulary": {"num_verbs": 0}}, "num_verbs is 0; it has to be"),
        ({"vision": {"patch_size": 20}}, "image_size 32 is not a multiple of patch_size 20"),
        ({"vision": {"tower": "eyes"}}, "vision.tower is 'eyes'; choose one of videomamba, avion, features"),
        ({"vision": {"heads": 2}}, "vision has no entry 'heads'; it takes embed_dim"),
        ({"vision": {"tower": "avion", "tubelet_size": 2}}, "vision has no entry 'tubelet_size'; it takes embed_dim"),
        ({"fusion": "published"}, "fuser has no entry 'dim'; it takes nothing here"),
        ({"preprocessing": {"mean": 3}}, "mean is 3; it has to be 3 finite numbers"),
        ({"vision_weights": "clip"}, "vision_weights is 'clip' and vision.tower 'videomamba'"),
    ],
)
def test_mistaken_arguments(arguments, sentence):
    with pytest.raises(ModelError, match=sentence):
        tiny(**arguments)
    with pytest.raises(ModelError, match="num_classes is None"):
        ActionRecognition(text=TEXT)


def test_other_data_than_the_models_is_refused(trained):
    model, _ = trained
    other = Data()
    other.noun_names = ["red", "blue", "green"]
    with pytest.raises(ModelError, match="Number 1 of noun_names is 'green' in the model and 'blue' in the data"):
        Trainer(**QUIET).validate(model, datamodule=other, verbose=False)
    other.noun_names = ["red"]
    with pytest.raises(ModelError, match="The data has 1 noun_names and the model 3"):
        Trainer(**QUIET).validate(model, datamodule=other, verbose=False)
    with pytest.raises(ModelError, match=r"The data has 4 actions and the model 5; set model\.num_classes to 4"):
        model.adopt_classes(["a", "b", "c", "d"])
