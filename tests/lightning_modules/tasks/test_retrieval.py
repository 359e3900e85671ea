"""TextVideoRetrieval: what it computes, how it trains, alone and in two processes, and what is saved."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel, CLIPTokenizer

import hub
from lightning_modules import TextVideoRetrieval
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD
from lightning_modules.training.optim import one_cosine
from lightning_modules.training.sharding import FullyShardedStrategy

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
COLOURS = {"red": 0, "green": 1, "blue": 2}
HEADS = ("muse", "mean", "sequential")
QUIET = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
             accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip


class Clips(Dataset):
    """Still colours that change once or not: nine videos, each with one or two captions."""

    NAMES = [(a, b) for a in COLOURS for b in COLOURS]

    def __init__(self, training, repeat=1):
        self.training = training
        self.repeat = repeat

    def __len__(self):
        return 9 * self.repeat

    def __getitem__(self, i):
        first, second = self.NAMES[i % 9]
        noise = torch.randint(0, 60, (3, 4, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        noise[COLOURS[first], :2] += 150
        noise[COLOURS[second], 2:] += 150
        texts = [f"{first} then {second}", f"from {first} to {second}"]
        return {"video": noise, "text": texts[i // 9 % 2] if self.training else texts[: 1 + i % 2], "index": i,
                "video_index": i % 9, "path": f"{i}.mp4"}  # fmt: skip


def collate(items):
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {k: torch.stack(v) if k == "video" else torch.tensor(v) if "index" in k else v for k, v in batch.items()}


class Data(LightningDataModule):
    def __init__(self, batch_size, repeat=1):
        super().__init__()
        self.batch_size = batch_size
        self.repeat = repeat

    @property
    def captions(self):
        return [text for i in range(9) for text in Clips(False)[i]["text"]]

    def loader(self, training):
        """In order, so that a batch of 3 in each of two processes holds what one of 6 does in one process."""
        clips = Clips(training, self.repeat if training else 1)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        share = [*range(rank, len(clips), world)]
        if not training and len(share) < math.ceil(len(clips) / world):
            share.append(0)  # as a distributed sampler fills up
        return DataLoader(clips, batch_size=self.batch_size, sampler=share, collate_fn=collate)

    def train_dataloader(self):
        return self.loader(True)

    def val_dataloader(self):
        return self.loader(False)

    test_dataloader = predict_dataloader = val_dataloader


def tiny(head="muse", clip=CLIP, **kwargs):
    optim = dict(lr=3e-3, lr_of={"clip": 1e-3}) | kwargs.pop("optim", {})
    return TextVideoRetrieval(clip, head, **{**dict(num_frames=4, depth=2, dropout=0.0), **kwargs}, optim=optim)


def batch_of(size, training=True):
    return collate([Clips(training)[i] for i in range(size)])


@pytest.mark.parametrize("head", HEADS)
def test_vectors_have_unit_length_and_depend_on_the_video_alone(head):
    torch.manual_seed(0)
    model = tiny(head, init="official").eval()
    video = batch_of(3)["video"]
    with torch.no_grad():
        vectors = model(video)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(model(video[1:2]), vectors[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(video.float() / 255), vectors, rtol=1e-4, atol=1e-5)
        assert (model(video.flip(2)) - vectors).abs().max() > 1e-6 or head == "mean"  # time matters
        texts = ["red then green", "a"] * 200  # more than fit in one go
        torch.testing.assert_close(model.encode_text(texts)[[0, 399]], model.encode_text(texts[:2]))
        assert model.encode_text("red").shape == (1, 32) and model.encode_text([]).shape == (0, 32)
        similarity = model.similarity(["red", "blue"], video)
        torch.testing.assert_close(similarity, model.encode_text(["red", "blue"]) @ vectors.T)
        assert torch.equal(model.forward_features(video), vectors)
        frames = model.forward_features(video, pool=None)
        torch.testing.assert_close(F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1), vectors)


def test_mean_pooling_is_clip_on_normalised_frames():
    torch.manual_seed(0)
    model = tiny("mean").eval()
    video = batch_of(2)["video"]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        frames = [model.net.clip.get_image_features((video[:, :, t] / 255 - mean) / std).pooler_output for t in (0, 3)]
        mask = torch.tensor([[True, False, False, True]] * 2)
        expected = F.normalize(sum(F.normalize(frame) for frame in frames))
        torch.testing.assert_close(model(video, mask), expected, rtol=1e-4, atol=1e-5)


def test_preprocessing():
    model = tiny(short_side=40, sampling="dense", frame_stride=2)
    assert model.preprocessing == {"num_frames": 4, "image_size": 32, "short_side": 40, "sampling": "dense",
                                   "frame_stride": 2, "interpolation": "bicubic"}  # fmt: skip
    assert tiny().preprocessing["short_side"] == 32


class Record(Callback):
    """Losses, and the gradients of the first step after averaging over processes."""

    def __init__(self):
        self.losses, self.gradients = [], {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def train(head, batch_size, **kwargs):
    """Three steps and the scores after them."""
    seed_everything(0, verbose=False)
    model, record = tiny(head, init="official", optim=dict(warmup_share=0.0)), Record()
    trainer = Trainer(max_epochs=1, callbacks=[record], use_distributed_sampler=False, **QUIET, **kwargs)
    trainer.fit(model, datamodule=Data(batch_size, repeat=2))
    scores = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return model, record, scores


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Loss and gradients over gathered negatives, and the scores, are those of one process with the whole batch."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import importlib.util, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        for head in ("muse", "sequential"):
            model, record, scores = helpers.train(head, 3, devices=2, strategy="ddp")
            result = {{"losses": record.losses, "gradients": record.gradients, "scores": scores,
                       "weights": model.state_dict()}}
            torch.save(result, {str(tmp_path)!r} + f"/{{head}}-{{model.global_rank}}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    for head in ("muse", "sequential"):
        model, record, scores = train(head, 6)
        assert len(set(record.losses)) == 3
        for rank in (0, 1):
            other = torch.load(tmp_path / f"{head}-{rank}.pt")
            assert other["losses"] == pytest.approx(record.losses, rel=1e-4)
            assert other["scores"] == pytest.approx(scores, abs=1e-6) and len(scores) == 10
            assert other["gradients"].keys() == record.gradients.keys()
            largest = max(g.abs().max() for g in record.gradients.values())
            for name, gradient in record.gradients.items():
                torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * largest.item())
            for name, weight in model.state_dict().items():
                torch.testing.assert_close(other["weights"][name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("same_video_negatives", [False, True])
def test_the_loss_of_a_step(same_video_negatives):
    model = tiny(same_video_negatives=same_video_negatives)
    model.trainer = Trainer(**QUIET)
    model.log = lambda *args, **kwargs: None
    clips = Clips(True, repeat=2)
    batch = collate([clips[i] for i in (0, 4, 9, 5)])  # 0 and 9 are captions of one video
    with torch.no_grad():
        loss = model.training_step(batch, 0)
        logits = 1 / 0.07 * model.encode_text(batch["text"]) @ model(batch["video"]).T  # CLIP's first temperature
        if not same_video_negatives:
            logits[0, 2] = logits[2, 0] = -math.inf
        target = torch.arange(4)
        expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [pytest.param("muse", marks=pytest.mark.slow), "sequential"])
def test_learns_to_tell_videos_apart(head):
    seed_everything(0, verbose=False)
    model = tiny(head, max_words=24)
    trainer = Trainer(max_epochs=10, check_val_every_n_epoch=10, gradient_clip_val=1.0, **QUIET)
    trainer.fit(model, datamodule=Data(9, repeat=4))
    scores = trainer.callback_metrics
    assert scores["val/t2v_r1"] > 0.5 and scores["val/v2t_r1"] > 0.5  # chance is 1 in 9
    assert 1 <= scores["val/t2v_mnr"] < 2


def test_scores_of_a_split_by_brute_force():
    torch.manual_seed(0)
    model = tiny("mean").eval()
    trainer = Trainer(**QUIET)
    (scores,) = trainer.test(model, datamodule=Data(4), verbose=False)
    with torch.no_grad():
        items = [Clips(False)[i] for i in range(9)]
        video = torch.cat([model(item["video"][None]) for item in items])
        ranks = []
        for i, item in enumerate(items):
            for row in (model.encode_text(item["text"]) @ video.T).tolist():
                ranks.append(sum(value >= row[i] - 1e-6 for value in row))
    assert scores["test/t2v_r1"] == pytest.approx(sum(rank <= 1 for rank in ranks) / 13)
    assert scores["test/t2v_mnr"] == pytest.approx(sum(ranks) / 13)
    assert set(scores) == {f"test/{d}_{k}" for d in ("t2v", "v2t") for k in ("r1", "r5", "r10", "mdr", "mnr")}
    found = trainer.predict(model, datamodule=Data(4), return_predictions=True)
    assert [path for batch in found for path in batch["path"]] == [f"{i}.mp4" for i in range(9)]
    torch.testing.assert_close(torch.cat([batch["embedding"] for batch in found]), video, rtol=1e-4, atol=1e-5)


def test_towers_and_head_learn_at_their_own_rates():
    model = tiny(
        "muse", optim=dict(lr=2e-3, lr_of={"clip": 5e-6}, weight_decay=0.3, betas=(0.8, 0.95)), freeze_layers=1
    )
    trainer = Trainer(max_epochs=10, limit_train_batches=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Data(9))
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert set(groups) == {"clip_decay", "clip_no_decay", "decay", "no_decay"}
    names = {id(p): name for name, p in model.named_parameters()}
    found = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert set().union(*found.values()) == {n for n, p in model.named_parameters() if p.requires_grad}
    for key, group in groups.items():
        assert group["initial_lr"] == (5e-6 if key.startswith("clip") else 2e-3)
        assert group["weight_decay"] == (0.0 if "no_decay" in key else 0.3)
        assert group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6
    assert "net.clip.logit_scale" in found["clip_no_decay"]
    assert "net.clip.visual_projection.weight" in found["clip_decay"]
    assert "net.head.blocks.0.mixer.A_log" in found["no_decay"]
    assert "net.head.pyramid.levels.0.1.weight" in found["decay"]
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert any(".layers.0." in n for n in frozen) and not any(n.startswith("net.head") for n in frozen)
    factor = trainer.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
    assert [factor(step) for step in range(11)] == [one_cosine(10, 1, peak=1.0)(step) for step in range(11)]


def test_decay_as_published():
    """Everything but what is called a bias (docs/protocol.md, section 18)."""
    model = tiny("muse", optim=dict(decayed="norms"), frozen_pyramid=True, init="official")
    trainer = Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Data(9))
    decayed = {
        id(p): group["weight_decay"] > 0 for group in trainer.optimizers[0].param_groups for p in group["params"]
    }
    trained = {name: decayed[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name: "bias" not in name for name in trained}
    for name in ("mixer.A_log", "mixer.D", "mixer.A_b_log", "mixer.conv1d.weight", "norm.weight"):
        assert trained[f"net.head.blocks.0.{name}"]
    assert trained["net.clip.logit_scale"] and not any("pyramid" in name for name in trained)


def test_frozen_parts_stay_and_the_temperature_has_a_limit():
    seed_everything(0, verbose=False)
    model = tiny(
        "muse",
        freeze_layers=2,
        frozen_pyramid=True,
        optim=dict(warmup_share=0.0, lr_of={"clip": 0.5}, lr=1e-3),
        init="official",
    )
    with torch.no_grad():
        model.net.logit_scale.fill_(math.log(100) - 1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = Trainer(max_steps=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Data(9))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert not any(".pyramid." in n or ".encoder.layers." in n or ".embeddings." in n for n in changed)
    assert "net.head.blocks.0.fc.weight" in changed and "net.clip.visual_projection.weight" in changed
    assert model.net.logit_scale.item() <= math.log(100) + 1e-6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny CLIP as transformers writes it, with a tokenizer that knows the captions' words."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(1)
    donor = tiny("mean", {**CLIP, "text_config": {**CLIP["text_config"], "vocab_size": 560}})
    donor.net.tokenizer.learn(Data(9).captions)
    donor.net.clip.save_pretrained(folder)
    donor.encode_text("x")
    donor.net.tokenizer._tokenizer.save_pretrained(folder)
    return folder


def test_padding_is_zero_behind_the_normalisation_and_is_not_counted():
    model, video = tiny("muse").eval(), batch_of(3)["video"]
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False]])
    noisy = torch.where(mask[:, None, :, None, None], video, torch.randint_like(video, 256))
    with torch.no_grad():
        # Away from its start, at which each block of the head is the identity and sees nothing of other frames.
        for block in model.net.head.blocks:
            torch.nn.init.normal_(block.fc.weight, std=0.5)
        mixed = model(video, mask)
        assert torch.equal(mixed, model(noisy, mask))
        shown = (video / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1, 1)
        shown[1, :, 2:], shown[2, :, 3:] = 0, 0
        features = F.normalize(model.net.encode_frames(shown), dim=-1)
        expected = torch.stack([f[m].mean(0) for f, m in zip(features, mask, strict=True)])
        torch.testing.assert_close(mixed, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
        assert (mixed[1] - model(video)[1]).abs().max() > 1e-3


ENTRY = "tiny-retrieval"


@pytest.mark.slow
def test_trained_from_a_checkpoint_saved_and_loaded_without_it(tmp_path, checkpoint):
    video, texts, expected = batch_of(2)["video"], ["red then green", "From BLUE"], {}
    for head in HEADS:
        seed_everything(0, verbose=False)
        model = tiny(head, None, clip_weights=str(checkpoint))
        assert model.hparams["clip"]["vision_config"]["patch_size"] == 16
        donor = CLIPModel.from_pretrained(checkpoint)
        assert torch.equal(model.net.clip.text_projection.weight, donor.text_projection.weight)
        ids = CLIPTokenizer.from_pretrained(checkpoint)(texts, padding=True).input_ids
        assert model.net.tokenizer(texts).tolist() == ids

        trainer = Trainer(max_steps=2, limit_val_batches=0, default_root_dir=tmp_path, **QUIET)
        trainer.fit(model, datamodule=Data(9))
        trainer.save_checkpoint(tmp_path / f"{head}.ckpt")
        hub.save(model.eval(), tmp_path / head)
        config = json.loads((tmp_path / head / "config.json").read_text())
        assert config["class_path"] == "lightning_modules.TextVideoRetrieval"
        assert str(checkpoint) not in json.dumps(config) and "optim" not in config["init_args"]
        with torch.no_grad():
            expected[head] = expected[f"{head}.ckpt"] = (model(video), model.encode_text(texts))

    # In a process of its own, without a network and with the checkpoint gone.
    torch.save(video, tmp_path / "video.pt")
    code = f"""
        import socket, torch
        def refuse(*args): raise OSError("no network")
        socket.socket.connect = refuse
        import zoo
        zoo.register("tiny-retrieval", "lightning_modules.TextVideoRetrieval")
        video, found = torch.load("video.pt"), {{}}
        for source in {list(expected)!r}:
            model = zoo.load(f"./{{source}}")
            with torch.no_grad():
                found[source] = (model(video), model.encode_text({texts!r}))
        torch.save(found, "found.pt")
    """
    checkpoint.rename(checkpoint.with_name("away"))
    try:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    finally:
        checkpoint.with_name("away").rename(checkpoint)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    for source, vectors in expected.items():
        for there, here in zip(found[source], vectors, strict=True):
            torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


def test_word_pieces_come_from_the_datas_captions(tmp_path):
    clip = {**CLIP, "text_config": {**CLIP["text_config"], "vocab_size": 560}}
    model = tiny("mean", clip)
    assert model.net.tokenizer.is_empty
    with pytest.raises(ModelError, match="no word pieces yet"):
        model.encode_text("red")
    trainer = Trainer(max_steps=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Data(9))
    assert model.net.tokenizer(["red then green"]).shape == (1, 5)
    with pytest.raises(ModelError, match="no captions to learn them from"):
        Trainer(max_steps=1, **QUIET).fit(tiny("mean", clip), DataLoader(Clips(True), collate_fn=collate))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": None}, "clip and clip_weights are both missing"),
        ({"head": "tight"}, "head is 'tight'; choose one of muse, mean, sequential"),
        ({"learner": "lstm"}, "learner is 'lstm'"),
        ({"max_words": 40}, "has 32 positions; max_words 40"),
        ({"head": "sequential", "num_frames": 40}, "num_frames 40"),
        ({"head": "sequential", "depth": 3}, "depth is 3 and the text tower to copy from has 2"),
        ({"freeze_layers": 5}, "freeze_layers is 5; choose 0 to 2"),
        ({"clip": {"text": {}}}, "clip has no entry 'text'"),
        ({"clip_weights": "/nowhere/at/all"}, "cannot be read"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        tiny(**arguments)


def test_sizes_that_are_not_the_checkpoints_are_refused(checkpoint):
    with pytest.raises(ModelError, match=r"have different sizes; set model\.clip to null"):
        tiny("mean", CLIP, clip_weights=str(checkpoint))


def test_sharding_is_refused_before_the_processes_meet():
    # Without a Trainer, which would leave its ports and ranks in the environment of the tests that follow.
    strategy = FullyShardedStrategy()
    strategy.connect(tiny("mean"))
    with pytest.raises(ModelError, match=r"set trainer\.strategy to ddp"):
        strategy.setup_environment()
