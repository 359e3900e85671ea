"""VideoTextPretraining: its four losses, how they fall, what is saved, and what a test measures."""

import csv
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

import hub
import zoo
from lightning_modules import VideoTextPretraining
from lightning_modules.callbacks import Report
from lightning_modules.errors import ModelError
from lightning_modules.nets import ClipTeacher
from lightning_modules.nets.masked_videomamba import take
from lightning_modules.nets.masking import draw_visible
from lightning_modules.tasks.video_text import draw_negatives, hide_words, multi_positive_loss
from lightning_modules.training.losses import alignment_loss
from lightning_modules.training.sharding import FullyShardedStrategy

TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0}  # fmt: skip
COLOURS = ["red", "green", "blue"]
QUIET = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
             accelerator="cpu", num_sanity_val_steps=0)  # fmt: skip


def teacher(patch=8):
    torch.manual_seed(5)
    tower = {"image_size": 32, "patch_size": patch, "hidden_size": 16, "intermediate_size": 32,
             "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
    return ClipTeacher(sizes={"projection_dim": 12, "vision_config": tower})


def tiny(learned=True, **kwargs):
    defaults = dict(embed_dim=24, depth=2, num_frames=4, image_size=32, patch_size=8, text=TEXT, fusion_layers=1,
                    dim=16, max_words=12, target_dim=12)  # fmt: skip
    optim = dict(lr=3e-3, min_lr=0.0, warmup_epochs=0.0) | kwargs.pop("optim", {})
    torch.manual_seed(0)
    model = VideoTextPretraining(**{**defaults, **kwargs}, optim=optim)
    if learned:
        model.net.words.learn(captions(clip) for clip in range(9))
    return model


def captions(i):
    return f"{COLOURS[i // 3 % 3]} then {COLOURS[i % 3]}"


def clip(i, frames=4):
    """One of nine pairs of colours over time; a picture shows the first."""
    noise = torch.randint(0, 60, (3, frames, 32, 32), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
    noise[i // 3 % 3, : max(frames // 2, 1)] += 150
    noise[i % 3, max(frames // 2, 1) :] += 150
    return noise


def batch(numbers, frames=4):
    text = [captions(i) if frames > 1 else f"all {COLOURS[i // 3 % 3]}" for i in numbers]
    groups = [i % 9 if frames > 1 else i // 3 % 3 for i in numbers]
    return {"video": torch.stack([clip(i, frames) for i in numbers]), "text": text, "index": torch.tensor(numbers),
            "video_index": torch.tensor(groups), "path": [f"{i}.mp4" for i in numbers],
            "seed": torch.tensor([7919 * (i + 3) % 65537 for i in numbers])}  # fmt: skip


class Data(LightningDataModule):
    """Batches of clips and of pictures in turn; evaluation has one or two captions a video."""

    def __init__(self, steps=4, size=9):
        super().__init__()
        self.steps, self.size, self.batch_size = steps, size, size

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = []
        for step in range(self.steps):
            numbers = [(self.size * step + k) for k in range(self.size)][rank::world]
            batches.append(batch(numbers, 4 if step % 2 == 0 else 1))
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        found = []
        for numbers in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 0], [2, 5])[rank::world]:  # some come twice
            one = batch(numbers)
            one["text"] = [[captions(i), f"from {captions(i)}"][: 1 + i % 2] for i in numbers]
            found.append(one)
        return DataLoader(found, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


def attached(model):
    model.trainer = Trainer(**QUIET)
    return model


# The losses, one by one ---------------------------------------------------------------------------------------------


def test_contrast_takes_all_pairs_of_a_video_for_right():
    torch.manual_seed(0)
    text, video = F.normalize(torch.randn(4, 6)), torch.randn(4, 6)
    group = torch.tensor([3, 7, 3, 1])
    logits = text @ video.T / 0.1
    expected = 0.0
    for rows in (logits, logits.T):
        log = rows.log_softmax(1)
        right = [[0, 2], [1], [0, 2], [3]]
        expected += sum(-log[i, chosen].mean() for i, chosen in enumerate(right)) / 4 / 2
    torch.testing.assert_close(multi_positive_loss(text, video, 0.1, group), expected)


def test_negatives_are_drawn_by_their_probability_and_never_of_the_same_video():
    torch.manual_seed(0)
    logits = torch.tensor([[5.0, 2.0, 1.0, 0.0]] * 4)
    group = torch.tensor([0, 1, 2, 0])
    same = group[:, None] == group
    counts = torch.zeros(4, 4)
    for _ in range(3000):
        queries, found = draw_negatives(logits, same, torch.empty(4, 4).exponential_())
        assert queries.tolist() == [0, 1, 2, 3]
        counts[queries, found] += 1
    weights = (logits.softmax(1) + 1e-4).masked_fill(same, 0)
    torch.testing.assert_close(counts / 3000, weights / weights.sum(1, keepdim=True), atol=0.03, rtol=0)
    assert not counts[same].any()
    queries, found = draw_negatives(logits, torch.ones(4, 4, dtype=torch.bool), torch.ones(4, 4))
    assert len(queries) == len(found) == 0


def test_words_are_hidden_as_in_bert():
    torch.manual_seed(0)
    ids = torch.randint(5, 60, (400, 10))
    mask = torch.arange(10).expand(400, -1) < 7
    new, target = hide_words(ids, mask, 60, mask_id=4, ratio=0.5, noise=torch.rand(400, 10, 3))
    assert new.min() >= 0 and new.max() == 59
    chosen = target != -100
    assert not chosen[:, 0].any() and not chosen[~mask].any()
    torch.testing.assert_close(target[chosen], ids[chosen])
    assert torch.equal(new[~chosen], ids[~chosen])
    assert chosen[:, 1:7].float().mean() == pytest.approx(0.5, abs=0.03)
    assert (new[chosen] == 4).float().mean() == pytest.approx(0.8 + 0.1 / 60, abs=0.03)
    assert (new[chosen] == ids[chosen]).float().mean() == pytest.approx(0.1 + 0.1 / 60, abs=0.03)


def generators(seeds):
    """The random numbers of each pair, as documented: its seed, and 1, well mixed."""
    mixed = [np.random.SeedSequence([seed, 1]).generate_state(1) for seed in seeds.tolist()]
    return [torch.Generator().manual_seed(int(number)) for (number,) in mixed]


def one_by_one_matching(model, video, text, given, chance):
    """VTM: two-way cross-entropy of right pairs, wrong videos for texts, wrong texts for videos."""
    count, group = len(given["text"]), given["video_index"].tolist()
    score = [[float(text.vectors[i] @ video.mean[j] / model.net.temp) for j in range(count)] for i in range(count)]
    by_seed = sorted(range(count), key=lambda i: int(given["seed"][i]))
    terms = []

    def add(i, j, right):
        one = model.net.match(text.hidden[i : i + 1], text.mask[i : i + 1], video.tokens[j : j + 1])[0]
        terms.append(torch.logsumexp(one, 0) - one[right])

    for i in range(count):
        add(i, i, 1)
        arrivals = torch.empty(2, count).exponential_(generator=chance[i]).tolist()
        for way in range(2):
            rows = [score[i][j] if way == 0 else score[j][i] for j in range(count)]
            total = sum(math.exp(row) for row in rows)
            rate = {j: (math.exp(rows[j]) / total + 1e-4) / arrivals[way][by_seed.index(j)]
                    for j in range(count) if group[j] != group[i]}  # fmt: skip
            wrong = max(rate, key=rate.get)
            add(*((i, wrong) if way == 0 else (wrong, i)), 0)
    return torch.stack(terms).mean()


def one_by_one_words(model, video, given, chance):
    """MLM: cross-entropy at the places of chosen words."""
    terms, words = [], model.net.words
    for i, caption in enumerate(given["text"]):
        ids, mask = words([caption])
        noise = torch.rand(12, 3, generator=chance[i]).tolist()
        chosen = [k for k in range(1, ids.shape[1]) if noise[k][0] < 0.5]
        corrupted = ids.clone()
        for k in chosen:
            if noise[k][1] < 0.8:
                corrupted[0, k] = words.mask_id
            elif noise[k][1] >= 0.9:
                corrupted[0, k] = int(60 * noise[k][2])
        scores = model.net.guess_words(corrupted, mask, video.tokens[i : i + 1])[0]
        terms += [torch.logsumexp(scores[k], 0) - scores[k, ids[0, k]] for k in chosen]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("variant", ["all_blocks", "official"])
@pytest.mark.parametrize("frames", [4, 1])
def test_the_losses_of_a_masked_step(variant, frames):
    model = attached(tiny(teacher=teacher(), variant=variant, mask_ratio=0.75)).eval()
    given = batch([0, 1, 3, 9, 5], frames)
    seen = {}
    encode = model.net.encode_video
    model.net.encode_video = lambda x, visible: seen.update(x=x, visible=visible, out=encode(x, visible)) or seen["out"]
    with torch.no_grad():
        model.net.temp.fill_(2.0)
        losses = model.losses(given)
        assert model.net.temp == 0.5  # cut off
        # 16 patches a frame: a quarter of a clip stays, half of a picture.
        assert seen["visible"].shape == (5, 1 + (16 if frames == 4 else 8))
        text = model.net.encode_text(given["text"])
        expected = multi_positive_loss(text.vectors, seen["out"].mean, 0.5, given["video_index"])
        torch.testing.assert_close(losses["vtc"], expected)
        official = variant == "official"
        pixels = given["video"] / 255
        mean, std = (model.mean, model.std) if official else (model.clip_mean, model.clip_std)
        hidden = model.teacher((pixels - mean) / std, 4, final_norm=not official).hidden[-1]
        target = model.teacher.project(take(hidden, seen["visible"]))
        torch.testing.assert_close(losses["uta"], alignment_loss(seen["out"].aligned, target).mean())
        # Pair by pair: wrong answers by the first arrival, the words of each text beside its video.
        chance = generators(given["seed"])
        draw_visible("attention", 0.75 if frames == 4 else 0.5, 5, frames, 4, attention=torch.ones(5, frames, 16),
                     generator=chance)  # fmt: skip
        expected = {"vtm": one_by_one_matching(model, seen["out"], text, given, chance),
                    "mlm": one_by_one_words(model, seen["out"], given, chance)}  # fmt: skip
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value)
    assert set(losses) == {"vtc", "vtm", "mlm", "uta"} and all(value.ndim == 0 for value in losses.values())
    # Untrained, matching guesses by the shares of the classes at best, and words by chance.
    assert 0.3 < losses["vtm"] < 1.5 and losses["mlm"] == pytest.approx(torch.tensor(60.0).log().item(), rel=0.3)


def test_matching_sees_the_right_pairs():
    model = attached(tiny())
    given = batch([0, 1, 2, 9])  # the first and the last are the same video
    calls = []
    model.net.match = lambda hidden, mask, tokens: (calls.append((hidden, tokens)), hidden[:, 0, :2] * 0)[1]
    video, text = model.net.encode_video(model.normalise(given["video"])), model.net.encode_text(given["text"])
    seed = torch.arange(4)
    loss = model._matching_loss(video, text, given["video_index"], seed, generators(seed))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    hidden, tokens = calls[0]
    assert len(hidden) == 12
    whose = lambda row, rows: [i for i in range(4) if torch.equal(row, rows[i])]  # noqa: E731
    for i, (word, token) in enumerate(zip(hidden, tokens, strict=True)):
        texts, videos = whose(word, text.hidden), whose(token, video.tokens)
        together = any(given["video_index"][t] == given["video_index"][v] for t in texts for v in videos)
        assert together == (i < 4)


def test_unmasked_tuning_has_three_losses_and_a_vector_a_frame():
    model = attached(tiny())
    given = batch([0, 4, 5])
    assert set(model.losses(given)) == {"vtc", "vtm", "mlm"}
    assert not any("clip_decoder" in name for name in model.state_dict())
    assert model.forward_features(given["video"], pool=None).shape == (3, 4, 16)
    one = batch([3])  # nothing else in the batch: no wrong answers, and it still trains
    assert all(value.isfinite() for value in model.losses(one).values())


# Training -----------------------------------------------------------------------------------------------------------


class Record(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        self.rows.append(found)


@pytest.mark.slow
def test_all_four_losses_fall_and_the_unmasked_model_finds_videos():
    seed_everything(1, verbose=False)
    record = Record()
    model = tiny(learned=False, teacher=teacher(), word_ratio=0.3, optim=dict(lr=4e-3))
    data = Data(4)
    data.captions = [captions(i) for i in range(9)] + [f"all {colour}" for colour in COLOURS]
    trainer = Trainer(max_epochs=30, limit_val_batches=0, callbacks=[record], **QUIET)
    trainer.fit(model, datamodule=data)
    names = ("train/vtc", "train/vtm", "train/mlm", "train/uta")
    start, end = record.rows[:8], record.rows[-8:]
    for name in names:
        before, after = (sum(row[name] for row in rows) / 8 for rows in (start, end))
        assert after < 0.85 * before, (name, before, after)

    tuned = tiny(learned=False, optim=dict(lr=1e-3))
    tuned.load_state_dict(tuned.adapt_state_dict(model.state_dict()))
    trainer = Trainer(max_epochs=10, limit_val_batches=0, **QUIET)
    trainer.fit(tuned, datamodule=Data(4))
    (scores,) = trainer.test(tuned, datamodule=Data(), verbose=False)
    assert scores["test/t2v_r1"] > 0.5 and scores["test/v2t_r1"] > 0.5  # chance is 1 in 9
    assert {name.removeprefix("test/reranked_") for name in scores if "reranked" in name} == {
        f"{d}_{k}" for d in ("t2v", "v2t") for k in ("r1", "r5", "r10", "mdr", "mnr")
    }


class Drawn(Data):
    """Clips and pictures that never come twice, two batches to one."""

    def train_dataloader(self):
        order = torch.randperm(9 * self.steps, generator=torch.Generator().manual_seed(0)).split(9)
        return DataLoader(
            [batch(numbers.tolist(), 4 if step % 3 else 1) for step, numbers in enumerate(order)], batch_size=None
        )


@pytest.mark.slow
def test_the_matching_head_learns_to_put_candidates_in_order():
    seed_everything(1, verbose=False)
    model = tiny(optim=dict(lr=2e-3, warmup_epochs=0.5))
    trainer = Trainer(max_epochs=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Drawn(500))
    (scores,) = trainer.test(model, datamodule=Data(), verbose=False)
    for name in ("t2v_r1", "v2t_r1"):
        assert scores[f"test/reranked_{name}"] > 0.6 and scores[f"test/{name}"] > 0.6  # chance is 1 in 9


def test_a_test_by_brute_force(tmp_path):
    model = tiny(rerank=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer = Trainer(**QUIET)
    (scores,) = trainer.test(model, datamodule=Data(), verbose=False)
    with torch.no_grad():
        video = torch.stack([clip(i) for i in range(9)])
        texts = [text for i in range(9) for text in [captions(i), f"from {captions(i)}"][: 1 + i % 2]]
        owner = [i for i in range(9) for _ in range(1 + i % 2)]
        near, tokens = model.similarity(texts, video), model.net.encode_video(model.normalise(video)).tokens
        sure = []
        for text in texts:
            one = model.net.encode_text([text])
            sure.append([model.net.match(one.hidden, one.mask, token[None])[0, 1].item() for token in tokens])
            odds = model.net.match(one.hidden, one.mask, tokens[:1]).softmax(1)[0, 1]
            torch.testing.assert_close(model.match([text], video[:1])[0, 0], odds)
        first = [int((row >= row[own] - 1e-6).sum()) for row, own in zip(near, owner, strict=True)]
        second = []
        for row, looked, own in zip(near, sure, owner, strict=True):
            kept = row.topk(3).indices.tolist()
            second.append(sum(looked[j] >= looked[own] for j in kept) if own in kept else 9)
    assert scores["test/t2v_mnr"] == pytest.approx(sum(first) / 13, abs=1e-4)
    assert scores["test/reranked_t2v_mnr"] == pytest.approx(sum(second) / 13, abs=1e-4)
    # The report has the ranks of the vectors.
    written = CSVLogger(tmp_path)
    trainer = Trainer(**QUIET | {"logger": written}, callbacks=Report())
    trainer.test(model, datamodule=Data(), verbose=False)
    with (Path(written.log_dir) / "mistakes.csv").open(encoding="utf-8") as file:
        wrong = {(row["caption"], int(row["rank"])) for row in csv.DictReader(file)}
    assert wrong == {(text, rank) for text, rank in zip(texts, first, strict=True) if rank > 1}
    found = trainer.predict(model, datamodule=Data(), return_predictions=True)
    torch.testing.assert_close(found[0]["embedding"], model(video[:4]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(video).norm(dim=1), torch.ones(9))
    assert model.encode_text("red").shape == (1, 16) and model.encode_text([]).shape == (0, 16)


class Long(Data):
    """Every second caption is longer than the others, so that processes have texts of different lengths."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        for one in loader.dataset:
            one["text"] = [
                text + " red blue" * (i % 2) for i, text in zip(one["index"].tolist(), one["text"], strict=True)
            ]
        return loader


def measure(**kwargs):
    """What two processes have to agree on with one: a masked step of clips and one of pictures, and a test."""
    record, gradients = Record(), []
    model = tiny(teacher=teacher(), global_batch=True, optim=dict(lr=1e-3))

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append({name: p.grad.clone() for name, p in pl_module.net.named_parameters()})

    trainer = Trainer(max_steps=2, use_distributed_sampler=False, limit_val_batches=0, callbacks=[record, Gradients()],
                      **QUIET, **kwargs)  # fmt: skip
    trainer.fit(model, datamodule=Long(2, size=6))
    (scores,) = trainer.test(tiny(rerank=3), datamodule=Data(), verbose=False)
    return {"losses": record.rows, "gradients": gradients, "weights": model.state_dict(), "scores": scores}


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import importlib.util, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
        helpers = sys.modules["helpers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        result = helpers.measure(devices=2, strategy="ddp")
        torch.save(result, {str(tmp_path)!r} + f"/{{torch.distributed.get_rank()}}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    one = measure()
    assert len(one["losses"]) == len(one["gradients"]) == 2 and set(one["losses"][0]) >= {"train/vtm", "train/uta"}
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(one["losses"], two["losses"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5)
        for ours, theirs in zip(one["gradients"], two["gradients"], strict=True):
            largest = max(gradient.abs().max() for gradient in ours.values()).item()
            for name, gradient in ours.items():
                torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=1e-4, msg=name)
        assert two["scores"] == pytest.approx(one["scores"], abs=1e-6)


@pytest.mark.slow
def test_what_is_decayed():
    for official in (False, True):
        model = tiny(teacher=teacher(), optim=dict(decayed="embeddings" if official else "matrices", weight_decay=0.3))
        trainer = Trainer(max_steps=1, limit_val_batches=0, **QUIET)
        trainer.fit(model, datamodule=Data(1, size=3))
        groups = trainer.optimizers[0].param_groups
        names = {id(p): name for name, p in model.net.named_parameters()}
        decayed = {names[id(p)] for g in groups for p in g["params"] if g["weight_decay"] == 0.3}
        assert sum(len(g["params"]) for g in groups) == len(names)
        both = {
            "vision_proj.weight",
            "text.bert.embeddings.word_embeddings.weight",
            "vision.layers.0.mixer.in_proj.weight",
        }
        assert both <= decayed and "vision_proj.bias" not in decayed and "vision.pool_norm.weight" not in decayed
        only = {"temp", "vision.pos_embed", "vision.cls_token", "vision.temporal_pos_embedding",
                "vision.layers.0.mixer.A_log"}  # fmt: skip
        assert decayed & only == (only if official else set())


@pytest.mark.slow
def test_saved_without_teacher_and_decoder_and_searched(tmp_path):
    model = tiny(teacher=teacher())
    trainer = Trainer(max_steps=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=Data(1, size=3))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert any("clip_decoder" in name for name in content["state_dict"])
    assert not any("teacher" in name for name in content["state_dict"])
    hub.save(model.eval(), tmp_path / "model")
    video = batch([0, 5])["video"]
    for source in ("run.ckpt", "model"):
        loaded = zoo.load(tmp_path / source)
        assert not any("clip_decoder" in name for name in loaded.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(loaded(video), model(video))
            torch.testing.assert_close(loaded.encode_text(["red then blue"]), model.encode_text(["red then blue"]))
    longer = zoo.load(tmp_path / "model", num_frames=8, max_words=6)
    assert longer.preprocessing["num_frames"] == 8 and longer.encode_text("red then blue " * 9).shape == (1, 16)
    assert longer.net.vision.temporal_pos_embedding.shape == (1, 8, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": None}, "text and text_weights are both missing"),
        ({"max_words": 17}, "BERT has 16 positions; max_words 17"),
        ({"fusion_layers": 3}, "fusion_layers is 3"),
        ({"mask_type": "checkers"}, "mask_type is 'checkers'"),
        ({"image_mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"word_ratio": 0.0}, "word_ratio is 0.0"),
        ({"num_frames": 1}, "num_frames is 1"),
        ({"text_weights": "/nowhere/at/all"}, "cannot be read"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        tiny(learned=False, **arguments)


def test_mistakes_that_show_later():
    with pytest.raises(ModelError, match="12 channels and target_dim is 16"):
        attached(tiny(teacher=teacher(), target_dim=16)).losses(batch([0, 1]))
    with pytest.raises(ModelError, match=r"leave data\.fps out"):
        tiny().validation_step({**batch([0]), "text": [["x"]], "frame_mask": torch.zeros(1, 4).bool()}, 0)
    with pytest.raises(ModelError, match="no captions to learn them from"):
        Trainer(max_steps=1, **QUIET).fit(tiny(learned=False), DataLoader([batch([0, 1])], batch_size=None))
    strategy = FullyShardedStrategy()
    strategy.connect(tiny())
    with pytest.raises(ModelError, match=r"set trainer\.strategy to ddp"):
        strategy.setup_environment()
