"""The models of text-video retrieval by their names: recipes, training by the real command, loading, sharing."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from datamodules.synthetic.writing import generate
from lightning_modules import TextVideoRetrieval
from zoo.commands.main import main as zoo_main
from zoo.configs import normalise
from zoo.recipe import list_recipes, read_recipe
from zoo.registry import entries

BIN = Path(sys.executable).parent
RECIPES = {entry.name: entry for entry in entries() if entry.task == "text-video-retrieval" and entry.weights is None}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 600, "max_position_embeddings": 40, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
DATA = {
    "msrvtt": "MSRVTT",
    "didemo": "DiDeMo",
    "activitynet": "ActivityNet",
    "lsmdc": "LSMDC",
    "msvd": "MSVD",
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_trains_the_registrys_model(name):
    entry, config = RECIPES[name], read_recipe(list_recipes()[name])
    model = config["model"]
    what_it_is = {k: v for k, v in model["init_args"].items() if k not in TextVideoRetrieval.training_only()}
    expected = normalise({"class_path": entry.class_path, "init_args": entry.init_args})
    assert normalise({"class_path": model["class_path"], "init_args": what_it_is}) == expected
    assert entry.parts == {"clip_weights": model["init_args"]["clip_weights"]}
    assert str(what_it_is["clip"]["vision_config"]["patch_size"]) == entry.parts["clip_weights"][-2:]
    assert config["data"]["class_path"] == f"datamodules.{DATA[entry.meta['dataset']]}"
    # Reference muse.md, section 3: 8 processes make the global batch of 128.
    assert config["data"]["init_args"]["batch_size"] * 8 == 128
    frames_and_words = (model["init_args"]["num_frames"], model["init_args"]["max_words"])
    assert frames_and_words == ((64, 64) if entry.meta["dataset"] in ("didemo", "activitynet") else (12, 32))


def test_the_recipe_of_the_published_log_switches_on_its_quirks():
    recipes = list_recipes()
    ours, published = (read_recipe(recipes[f"muse-vit-b32-msrvtt{end}"]) for end in ("", "-published"))
    optim = {**ours["model"]["init_args"]["optim"], "decayed": "norms"}
    quirks = {"frozen_pyramid": True, "init": "official", "optim": optim}
    assert published == {**ours, "model": {**ours["model"], "init_args": {**ours["model"]["init_args"], **quirks}}}
    tiny = {**published["model"]["init_args"], "clip": CLIP, "clip_weights": None}
    model = TextVideoRetrieval(**tiny)
    assert not any(p.requires_grad for p in model.net.head.pyramid.parameters())
    assert model.net.head.blocks[0].mixer.dt_proj.bias.abs().max() == 0  # lost in the published initialisation
    assert published["trainer"]["max_epochs"] == 5 and published["seed_everything"] == 42


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A tiny CLIP as transformers writes it, and generated videos in the layout of MSR-VTT."""
    folder = tmp_path_factory.mktemp("retrieval")
    clips = generate(folder / "data", num_train=6, num_val=0, num_test=3, size=(48, 40), num_frames=8, num_workers=0,
                     progress=False)  # fmt: skip
    captions: dict[str, list[str]] = {}
    with (clips / "captions.csv").open() as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["video"], []).append(row["caption"])
    torch.manual_seed(1)
    donor = TextVideoRetrieval(CLIP, "mean", max_words=40)
    donor.net.tokenizer.learn([text for texts in captions.values() for text in texts])
    donor.encode_text("x")
    donor.net.clip.save_pretrained(folder / "clip")
    donor.net.tokenizer._tokenizer.save_pretrained(folder / "clip")

    root = folder / "msrvtt"
    (root / "videos").mkdir(parents=True)
    videos, sentences, lists = [], [], {"train": ["video_id"], "test": ["key,vid_key,video_id,sentence"]}
    for number, (path, texts) in enumerate(captions.items()):
        name, split = f"video{number}", path.partition("/")[0]
        shutil.copy(clips / path, root / "videos" / f"{name}.mp4")
        videos.append({"video_id": name, "split": split})
        sentences += [{"video_id": name, "caption": text} for text in texts]
        lists[split].append(name if split == "train" else f"ret{number},msr{number},{name},{texts[0]}")
    (root / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (root / "MSRVTT_train.9k.csv").write_text("\n".join(lists["train"]))
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(lists["test"]))
    return folder


def run(folder, program, *arguments):
    done = subprocess.run([BIN / program, *arguments], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(file):
    with file.open() as lines:
        return [row for row in csv.DictReader(lines) if any(row[name] for name in row if name.endswith("t2v_r1"))]


@pytest.mark.slow
def test_from_a_clip_checkpoint_to_a_folder_to_share(workspace):
    """`lightning fit` with the recipe as it is but for its towers, its size of batch and the machine."""
    small = ["--model.clip", "null", "--model.clip_weights", "clip", "--model.optim.lr_of.clip", "1e-3",
             "--data.batch_size", "6", "--model.scales", "[1]", "--data.num_workers", "0"]  # fmt: skip
    machine = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_epochs", "2"]
    recipe = ["--config", "muse-vit-b32-msrvtt", "--data.root", "msrvtt"]
    run(workspace, "lightning", "fit", *recipe, *small, *machine)
    version = workspace / "runs" / "muse-vit-b32-msrvtt" / "version_0"
    validated = scores(version / "metrics.csv")
    assert len(validated) == 2 and all(0 <= float(row["val/t2v_r1"]) <= 1 for row in validated)
    run(workspace, "lightning", "test", *recipe, *small, *machine, "--ckpt_path", "best")
    tested = scores(version.parent / "test_0" / "metrics.csv")[0]
    best = max(validated, key=lambda row: float(row["val/t2v_r1"]))
    assert float(tested["test/t2v_mnr"]) == pytest.approx(float(best["val/t2v_mnr"]))

    run(workspace, "zoo", "convert", str(version / "checkpoints" / "best.ckpt"), "model")
    (workspace / "clip").rename(workspace / "gone")
    try:
        shared, resumable = zoo.load(workspace / "model"), zoo.load(version / "checkpoints" / "best.ckpt")
    finally:
        (workspace / "gone").rename(workspace / "clip")
    assert shared.hparams["clip"]["vision_config"]["patch_size"] == 16
    video = torch.randint(256, (2, 3, 12, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        similarity = shared.similarity(["a red disc moves left", "something grows"], video)
        assert torch.equal(similarity, resumable.similarity(["a red disc moves left", "something grows"], video))
    assert similarity.abs().max() <= 1 + 1e-6 and similarity.std() > 1e-4


def test_create_starts_from_the_checkpoint_unless_told_not_to(workspace):
    started = zoo.create("muse-vit-b32-msrvtt", clip=None, clip_weights=str(workspace / "clip"))
    donor = zoo.create("clip4clip-vit-b32-msrvtt", clip=None, clip_weights=str(workspace / "clip"))
    for name, weight in donor.net.clip.state_dict().items():
        assert torch.equal(started.net.clip.state_dict()[name], weight)
    assert started.training and started.preprocessing["num_frames"] == 12
    with pytest.raises(zoo.ZooError, match="has no released weights"):
        zoo.load("muse-vit-b32-msrvtt")


def test_what_a_retrieval_model_does_not_do_is_said(workspace, capsys):
    folder = workspace / "untrained"
    if not folder.exists():
        import hub

        hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4, max_words=16), folder)
    video = str(next((workspace / "msrvtt" / "videos").iterdir()))
    with pytest.raises(SystemExit) as caught:
        zoo_main(["predict", str(folder), video])
    assert caught.value.code == 1 and "has no classes to predict" in capsys.readouterr().err
    assert zoo.extract_features(str(folder), video).shape == (32,)
