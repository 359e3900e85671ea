"""VideoMamba with language by its names: recipes, the real command, official files, and the search that follows."""

import collections
import csv
import json
import shutil
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg
from transformers import BertConfig, BertForMaskedLM

import hub
import zoo
from datamodules import VideoReader
from datamodules.synthetic.writing import generate
from lightning_modules import MaskedPretraining, VideoTextPretraining
from lightning_modules.nets.bert import BertWords
from lightning_modules.nets.clip_tower import build_clip
from lightning_modules.nets.pretrained import PINNED
from zoo.cli import ZooCLI
from zoo.configs import normalise
from zoo.recipe import find_recipe, list_recipes, read_recipe
from zoo.share import _about_entry

BIN = Path(sys.executable).parent
RELEASED = [f"videomamba-m-{corpora}-f8-r224" for corpora in ("5m", "17m", "25m")]
MASKED = [name.replace("-f8-", "-masked-f8-") for name in RELEASED]
ZERO_SHOT = {"msrvtt": ("MSRVTT", 32), "didemo": ("DiDeMo", 64), "activitynet": ("ActivityNet", 150),
             "lsmdc": ("LSMDC", 96), "msvd": ("MSVD", 64)}  # fmt: skip
TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 160}  # fmt: skip
SMALL = {"embed_dim": 16, "depth": 2, "image_size": 32, "patch_size": 8, "text": TEXT}
SHORT = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 2, "trainer__log_every_n_steps": 1}
CAPTIONS = ["a red circle moves left", "a green square grows", "a blue star turns"]


def recipe(name):
    return read_recipe(list_recipes()[name])


# What the recipes say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RELEASED, *MASKED])
def test_the_recipe_trains_the_registrys_model(name):
    entry, config = zoo.info(name.replace("-masked", "")), recipe(name)
    model = config["model"]
    what_it_is = {k: v for k, v in model["init_args"].items() if k not in VideoTextPretraining.training_only()}
    expected = normalise({"class_path": entry.class_path, "init_args": entry.init_args})
    assert normalise({"class_path": model["class_path"], "init_args": what_it_is}) == expected
    assert find_recipe(entry.aliases[0]) == list_recipes()[entry.name]
    # Reference videomamba_multimodal.md, section 3.
    init_args, data = model["init_args"], config["data"]["init_args"]
    masked = name in MASKED
    optim = init_args["optim"]
    assert (optim["lr"], optim["min_lr"]) == ((4e-4, 4e-6) if masked else (8e-5, 8e-7))
    assert (config["trainer"]["max_epochs"], optim["warmup_epochs"]) == ((10, 1) if masked else (1, 0.2))
    assert data["batch_size"] == (128 if masked else 64)
    assert (init_args["teacher"] is None, init_args["text_weights"] is None) == (not masked, not masked)
    assert (init_args["mask_ratio"], init_args["image_mask_ratio"], init_args["drop_path"]) == (0.8, 0.5, 0.25)
    assert init_args["init_from"] == (entry.meta["init_from"] if masked else None)
    files = {corpus["annotations"] for corpus in data["corpora"]}
    videos = "webvid10m_train.json" if "25m" in name else "webvid_train.json"
    images = set() if "-5m-" in name else {"cc12m_train.json", "coco.json", "vg.json", "sbu.json"}
    assert files == {videos, "cc3m_train.json"} | images


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_the_recipe_tests_a_released_model(name):
    config, (data, words) = recipe(f"zeroshot-{name}"), ZERO_SHOT[name]
    assert config["data"]["class_path"] == f"datamodules.{data}"
    init_args = config["model"]["init_args"]
    assert init_args["max_words"] == words and init_args["rerank"] == 128  # section 5
    seen = [init_args[name] for name in ("sampling", "resize", "interpolation")]
    assert seen == ["intervals", "squeeze", "bicubic-plain"]  # section 4
    what_it_is = {k: v for k, v in init_args.items() if k not in VideoTextPretraining.training_only()}
    entry = zoo.info(init_args["init_from"])
    expected = normalise({"class_path": entry.class_path, "init_args": {**entry.init_args, "max_words": words}})
    assert normalise({"class_path": config["model"]["class_path"], "init_args": what_it_is}) == expected


def test_names_and_facts():
    assert zoo.info("videomamba-m-25m").name == RELEASED[2]
    assert set(zoo.list_models(task="video-text-pretraining")) == set(RELEASED)
    entry = zoo.info("videomamba-m-5m")
    assert entry.weights.filename == "videomamba_m16_5M_f8_res224.pth"
    assert entry.parts == {"text_weights": "google-bert/bert-base-uncased"}
    assert _about_entry(entry).task == "feature-extraction"


# Official files -----------------------------------------------------------------------------------------------------


def official_file(path, model, extras):
    """A released file: official names, with BERT's copies; with `extras` the teacher and its decoder too."""
    names = {
        "net.vision.norm_f.": "vision_encoder.norm.",
        "net.vision.": "vision_encoder.",
        "net.text.": "text_encoder.",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        old = next((old for old in names if name.startswith(old)), "net.")
        if not name.startswith("net.words."):
            weights[names.get(old, "") + name.removeprefix(old)] = tensor.bfloat16() if extras else tensor
    head = "text_encoder.cls.predictions."
    weights[f"{head}decoder.weight"] = weights["text_encoder.bert.embeddings.word_embeddings.weight"].clone()
    weights[f"{head}decoder.bias"] = weights[f"{head}bias"].clone()
    if extras:
        weights["clip_teacher.ln_pre.weight"] = torch.ones(3)
        weights["vision_encoder.clip_decoder.0.head.weight"] = torch.ones(3, 3)
        weights["text_encoder.bert.embeddings.position_ids"] = torch.arange(160)[None]
    torch.save({"model": weights} if extras else weights, path)


@pytest.mark.slow
def test_official_files_load_with_the_words_of_bert(tmp_path, hub_server):
    words = BertWords(60, 32)
    words.learn(CAPTIONS)
    ids = words._made().get_vocab()
    pieces = sorted(ids, key=ids.get)
    vocabulary = ("\n".join(pieces) + "\n").encode()
    revision = PINNED["google-bert/bert-base-uncased"]["vocab.txt"][0]
    hub_server.commit("google-bert/bert-base-uncased", {"vocab.txt": vocabulary}, name=revision)
    torch.manual_seed(1)
    sizes = {**SMALL, "text": {**TEXT, "vocab_size": len(pieces)}}
    source = VideoTextPretraining(**sizes).eval()
    source.net.words.set_pieces(pieces)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).bfloat16())
    official_file(tmp_path / "bare.pth", source, extras=False)
    official_file(tmp_path / "whole.pth", source, extras=True)
    video = torch.randint(256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    torch.save(video, tmp_path / "video.pt")
    code = f"""
        import torch, zoo
        from hub import HubError
        from lightning_modules.nets.pretrained import PINNED
        try:  # it is not BERT's vocabulary, as its hash tells
            zoo.load("videomamba-m-25m", checkpoint="bare.pth", **{sizes!r})
        except HubError as error:
            assert "vocab.txt is not the recorded file" in str(error), error
            PINNED["google-bert/bert-base-uncased"]["vocab.txt"] = {(revision, sha256(vocabulary).hexdigest())!r}
        found = {{}}
        for file in ("bare.pth", "whole.pth"):
            model = zoo.load("videomamba-m-25m", checkpoint=file, **{sizes!r})
            video = torch.load("video.pt")
            with torch.inference_mode():
                found[file] = model(video), model.encode_text({CAPTIONS!r}), model.match({CAPTIONS!r}, video)
        assert len(found) == 2
        torch.save(found, "found.pt")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env=hub_server.environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = source(video), source.encode_text(CAPTIONS), source.match(CAPTIONS, video)
    for found in torch.load(tmp_path / "found.pt").values():
        for there, here in zip(found, expected, strict=True):
            torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


# Through the front door ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Corpora as the recipes name them, MSR-VTT's test, a tiny BERT, a tiny CLIP and a pretrained video tower."""
    folder = tmp_path_factory.mktemp("video_text")
    clips = generate(folder / "clips", num_train=6, num_val=0, num_test=3, size=(48, 40), num_frames=8, num_workers=0,
                     progress=False)  # fmt: skip
    captions = collections.defaultdict(list)
    with (clips / "captions.csv").open() as file:
        for row in csv.DictReader(file):
            captions[row["video"]].append(row["caption"])
    root = folder / "root"
    train = [path for path in captions if path.startswith("train")]
    videos = [{"video": Path(path).name, "caption": captions[path][0]} for path in train]
    pictures = [{"image": f"{Path(path).stem}.jpg", "caption": f"the start of {captions[path][0]}"} for path in train]
    for corpus in recipe(MASKED[2])["data"]["init_args"]["corpora"] + recipe(MASKED[0])["data"]["init_args"]["corpora"]:
        media = root / corpus["media"]
        media.mkdir(parents=True, exist_ok=True)
        is_video = "webvid" in corpus["annotations"]
        (root / corpus["annotations"]).write_text(json.dumps(videos if is_video else pictures))
        for path in train:
            if is_video:
                shutil.copy(clips / path, media)
            else:
                with VideoReader(clips / path) as reader:
                    write_jpeg(reader.read([0])[0], str(media / f"{Path(path).stem}.jpg"))
    (root / "MSRVTT_Videos").mkdir()
    tested, rows = [], ["key,vid_key,video_id,sentence"]
    for number, path in enumerate(path for path in captions if path.startswith("test")):
        shutil.copy(clips / path, root / "MSRVTT_Videos" / f"video{number}.mp4")
        tested.append({"video": f"video{number}.mp4", "caption": captions[path][0]})
        rows.append(f"ret{number},msr{number},video{number},{captions[path][0]}")
    (root / "msrvtt_test1k.json").write_text(json.dumps(tested))
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(rows))

    torch.manual_seed(0)
    words = BertWords(200, 32)
    words.learn([text for texts in captions.values() for text in texts])
    words._made().save_pretrained(folder / "bert")
    BertForMaskedLM(BertConfig(**{**TEXT, "vocab_size": 200})).save_pretrained(folder / "bert")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = build_clip({
        "projection_dim": 12, "text_config": {"vocab_size": 514, "max_position_embeddings": 8, **tower},
        "vision_config": {"image_size": 32, "patch_size": 8, **tower},
    })  # fmt: skip
    clip.save_pretrained(folder / "clip")
    student = MaskedPretraining(16, 2, num_frames=8, image_size=32, patch_size=8, target_dim=12, variant="official")
    hub.save(student, folder / "donor")
    return folder


def flags(workspace, name, **more):
    model = {"embed_dim": 16, "depth": 2, "image_size": 32, "patch_size": 8}
    if name in MASKED:
        model |= {"init_from": workspace / "donor", "text": "null", "text_weights": workspace / "bert",
                  "teacher": workspace / "clip", "target_dim": 12}  # fmt: skip
    values = {"model": model, "data": {"root": workspace / "root", "batch_size": 2, "num_workers": 0},
              "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true"}}  # fmt: skip
    for key, value in more.items():
        part, _, option = key.partition("__")
        values[part][option] = value
    return [f"--{part}.{key}={value}" for part, found in values.items() for key, value in found.items()]


def run_here(arguments, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
    return ZooCLI()


@pytest.fixture(scope="module")
def masked_run(workspace, tmp_path_factory):
    """The 5M model after one masked step each of clips and pictures, by the real command."""
    folder = tmp_path_factory.mktemp("masked")
    name = MASKED[0]
    arguments = ["fit", "--config", name, *flags(workspace, name, **SHORT)]
    done = subprocess.run([BIN / "lightning", *arguments], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / name / "version_0"


@pytest.mark.slow
def test_from_the_masked_part_by_way_of_tuning_to_a_test_and_a_search(workspace, masked_run, tmp_path, monkeypatch):
    with (masked_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/vtc", "train/vtm", "train/mlm", "train/uta", "val/t2v_r1"} <= set(rows[0])
    name = RELEASED[0]
    text = json.dumps({**TEXT, "vocab_size": 200})
    tuning = flags(workspace, name, model__init_from=masked_run, model__text=text, **SHORT)
    tuned = run_here(["fit", "--config", name, *tuning], tmp_path, monkeypatch)
    assert tuned.trainer.global_step == 2 and "train/uta" not in tuned.trainer.callback_metrics
    run = tmp_path / "runs" / name / "version_0"

    arguments = flags(workspace, "zeroshot-msrvtt", model__init_from=run, model__text=text)
    tested = run_here(["test", "--config", "zeroshot-msrvtt", *arguments], tmp_path, monkeypatch)
    scores = tested.trainer.callback_metrics
    assert tested.datamodule.clip.resize == "squeeze"
    assert 1 <= scores["test/t2v_mnr"] <= 3 and 1 <= scores["test/reranked_v2t_mnr"] <= 3
    trained = zoo.load(run)
    for key, value in trained.state_dict().items():
        assert torch.equal(tested.model.state_dict()[key], value), key

    zoo.index(trained, workspace / "root" / "MSRVTT_Videos", out=tmp_path / "my.index", num_workers=0)
    (hits,) = zoo.search(tmp_path / "my.index", "a red disc moves left", model=trained)
    assert len(hits) == 3 and all(-1 <= hit.score <= 1 for hit in hits)


def test_the_video_tower_and_bert_are_taken_over(workspace, tmp_path, monkeypatch):
    name = MASKED[2]
    monkeypatch.setattr(ZooCLI, "_run_subcommand", lambda *_: None)
    cli = run_here(["fit", "--config", name, *flags(workspace, name)], tmp_path, monkeypatch)
    donor = zoo.load(workspace / "donor").state_dict()
    own = cli.model.state_dict()
    for key, value in donor.items():
        if not key.startswith(("net.clip_decoder.", "net.norm_f.")):
            assert torch.equal(own[key.replace("net.", "net.vision.", 1)], value), key
    bert = BertForMaskedLM.from_pretrained(workspace / "bert").state_dict()
    shared = [key for key in bert if ".decoder." not in key]
    assert all(torch.equal(own[f"net.text.{key}"], bert[key]) for key in shared)
    assert not cli.model.net.words.is_empty


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RELEASED, *MASKED])
def test_each_recipe_trains(name, workspace, masked_run, tmp_path, monkeypatch):
    more = {"trainer__max_steps": 2}
    if name in RELEASED:
        more |= {"model__init_from": masked_run, "model__text": json.dumps({**TEXT, "vocab_size": 200})}
    cli = run_here(["fit", "--config", name, *flags(workspace, name, **more)], tmp_path, monkeypatch)
    assert cli.trainer.global_step == 2 and torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert cli.trainer.optimizers[0].param_groups[0]["initial_lr"] == recipe(name)["model"]["init_args"]["optim"]["lr"]
