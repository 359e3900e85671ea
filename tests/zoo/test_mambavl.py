"""MambaVL through the commands: generate, train, test, submit, ask, extract, train on features."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import zoo
from datamodules import EpicKitchens100
from datamodules.annotations.features import FeatureTable
from datamodules.annotations.question_files import GENERIC
from datamodules.synthetic.kitchen import generate_kitchen
from lightning_modules import ActionRecognition
from lightning_modules.nets.mambavl import GENERIC_QUESTIONS
from zoo.checks import check_keys
from zoo.cli import ZooCLI
from zoo.commands.main import main as zoo_main
from zoo.configs import normalise
from zoo.errors import ZooError
from zoo.recipe import list_recipes, read_recipe
from zoo.registry import entries

BIN = Path(sys.executable).parent
RECIPES = {name: read_recipe(path) for name, path in list_recipes().items() if path.parent.name == "mambavl"}
SMALL = ["--data.root=kitchen", "--data.num_workers=0", "--data.batch_size=6", "--trainer.max_epochs=1"]


def run(*command, cwd, check=True):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    assert (result.returncode == 0) == check, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A small generated kitchen, and a run of the demo's recipe on it."""
    folder = tmp_path_factory.mktemp("mambavl")
    generate_kitchen(folder / "kitchen", num_train=4, num_val=5, num_test=1, actions=3, size=(48, 48), num_frames=12,
                     num_workers=0, progress=False)  # fmt: skip
    run("lightning", "fit", "--config", "mambavl-joint-demo", *SMALL, cwd=folder)
    return folder


@pytest.mark.slow
def test_a_run_of_the_demo(workspace):
    version = workspace / "runs" / "mambavl-joint-demo" / "version_0"
    with (version / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["val/score"] for row in rows) and {"val/unseen_verb_top1", "val/pair_top1"} <= set(rows[0])
    model = zoo.load(version)
    assert model.num_classes == len(model.class_names) == len(model.vocabulary["actions"])
    # It started from the shipped weights, by far nearer than fresh ones are.
    donor = zoo.load("videomamba-nano-motion").net.layers.state_dict()
    ours = model.net.vision.layers.state_dict()
    distance = sum((ours[name] - donor[name]).square().sum() for name in donor)
    assert 0 < distance < 0.05 * sum(weight.square().sum() for weight in donor.values())


@pytest.mark.slow
def test_predictions_for_the_challenge(workspace):
    run("lightning", "predict", "--config", "mambavl-joint-demo", "--ckpt_path", "best", *SMALL[:3],
        "--data.test=EPIC_100_test_timestamps.csv",
        "--trainer.callbacks+=lightning_modules.callbacks.EpicSubmission", cwd=workspace)  # fmt: skip
    folder = workspace / "runs" / "mambavl-joint-demo" / "predict_0"
    submission = json.loads((folder / "submission.json").read_text())
    with (workspace / "kitchen" / "annotations" / "EPIC_100_test_timestamps.csv").open() as file:
        wanted = [row["narration_id"] for row in csv.DictReader(file)]
    assert sorted(submission["results"]) == sorted(wanted) and submission["challenge"] == "action_recognition"
    assert {len(result["action"]) for result in submission["results"].values()} == {100}
    assert (folder / "submission.zip").is_file() and (folder / "predictions.csv").is_file()


def test_ask(workspace, capsys):
    version = workspace / "runs" / "mambavl-joint-demo" / "version_0"
    clip = next(workspace.glob("kitchen/P01/videos/*.MP4"))
    zoo_main(["ask", str(version), str(clip), "what is the person doing?", "--topk", "3"])
    table = capsys.readouterr().out
    assert f"{clip.name}: what is the person doing?" in table and table.count("%") == 3
    zoo_main(["ask", str(version), str(clip), "--json", "--topk", "1000", "--clips", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == "what is happening?"
    answers = found["answers"]
    assert {answer["kind"] for answer in answers} == {"verb", "noun", "action"}
    assert sum(answer["probability"] for answer in answers) == pytest.approx(1, abs=1e-4)
    assert [a["probability"] for a in answers] == sorted((a["probability"] for a in answers), reverse=True)


def test_answers_that_are_no_numbers_are_refused(workspace, capsys, monkeypatch):
    clip = str(next(workspace.glob("kitchen/P01/videos/*.MP4")))
    model = zoo.load(workspace / "runs/mambavl-joint-demo/version_0")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    monkeypatch.setattr("zoo.build.load", lambda *_, **__: model)  # loading refuses such weights by itself
    with pytest.raises(SystemExit, match="1"):
        zoo_main(["ask", "broken", clip, "what?"])
    printed = capsys.readouterr()
    assert printed.out == "" and "not finite" in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["videomamba-nano-motion", "CLIP"], "answers no questions; use a MambaVL, or `zoo predict`"),
        (
            ["mambavl-joint-m-epic100", "CLIP"],
            "has no released weights; `lightning fit --config mambavl-joint-m-epic100` trains it",
        ),
        (["videomamba-nano-motion", "gone.mp4"], "There is no file gone.mp4"),
        (["videomamba-nano-motion", "CLIP", "--topk", "0"], "--topk is 0"),
    ],
)
def test_mistakes_in_asking(workspace, capsys, arguments, sentence):
    clip = str(next(workspace.glob("kitchen/P01/videos/*.MP4")))
    with pytest.raises(SystemExit) as stop:
        zoo_main(["ask", *(clip if word == "CLIP" else word for word in arguments)])
    assert stop.value.code == 1 and sentence in capsys.readouterr().err


@pytest.mark.slow
def test_extract_and_train_on_features(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    command = ["extract", "videomamba-nano-motion", "kitchen", "-o", "features.parquet", "--stride", "0.5"]
    zoo_main(command)
    told = capsys.readouterr().out
    assert "features.parquet: 10 videos: 10 extracted now, 0 kept, 0 unreadable, 0 dropped; " in told
    zoo_main([*command, "--json"])
    expected = {"features": "features.parquet", "videos": 10, "extracted": 0, "unreadable": 0, "kept": 10, "dropped": 0}
    said = json.loads(capsys.readouterr().out)
    assert said.pop("rows") >= 10 and said == expected
    text = "{vocab_size: 514, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1}"
    sizes = ["--model.num_classes=null", "--model.vocabulary.num_verbs=8", "--model.vocabulary.num_nouns=14",
             "--model.vision.feature_dim=96", "--model.text_weights=null", f"--model.text={text}",
             "--model.fuser.dim=16"]  # fmt: skip
    run("lightning", "fit", "--config", "mambavl-joint-epic100-features", *SMALL, *sizes,
        "--data.features=features.parquet", "--trainer.accelerator=cpu", "--trainer.precision=32",
        "--trainer.devices=1", cwd=workspace)  # fmt: skip
    model = zoo.load(workspace / "runs" / "mambavl-joint-epic100-features" / "version_0")
    assert model.net.vision is None and model(torch.zeros(1, 3, 96)).shape == (1, model.num_classes)
    # The same vectors in files, a folder of which earlier releases wrote.
    table = FeatureTable("features.parquet")
    for name, (first, last) in table.places.items():
        tensors = {"features": table.features[first:last].clone(), "seconds": table.seconds[first:last].float()}
        os.makedirs("features", exist_ok=True)
        save_file(tensors, f"features/{name}.safetensors")
    text = "{vocab_size: 261, hidden_size: 16, num_attention_heads: 1}"
    sizes[5:] = [f"--model.text={text}"]
    run("lightning", "fit", "--config", "mambavl-epic100-features", *SMALL, "--data.features=features", *sizes,
        "--trainer.accelerator=cpu", "--trainer.precision=32", "--trainer.devices=1", cwd=workspace)  # fmt: skip
    model = zoo.load(workspace / "runs" / "mambavl-epic100-features" / "version_0")
    assert model.net.vision is None and model(torch.zeros(1, 3, 96)).shape == (1, model.num_classes)


# The published family ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_questions_about_a_published_model_go_to_both_heads(workspace, capsys):
    run("lightning", "fit", "--config", "mambavl-demo", *SMALL, cwd=workspace)
    version = workspace / "runs" / "mambavl-demo" / "version_0"
    clip = next(workspace.glob("kitchen/P01/videos/*.MP4"))
    zoo_main(["ask", str(version), str(clip), "which object is moved?", "--json", "--topk", "1000"])
    asked = json.loads(capsys.readouterr().out)
    assert asked["question"] == "which object is moved?"
    for kind, count in (("verb", 8), ("noun", 14)):
        of_kind = [answer["probability"] for answer in asked["answers"] if answer["kind"] == kind]
        assert len(of_kind) == count and sum(of_kind) == pytest.approx(1, abs=1e-4)
    zoo_main(["ask", str(version), str(clip), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["question"] == " ".join(GENERIC_QUESTIONS.values())


@pytest.mark.slow
def test_weights_from_elsewhere_are_tested_without_a_training(workspace):
    if not (workspace / "runs" / "mambavl-demo").exists():
        run("lightning", "fit", "--config", "mambavl-demo", *SMALL, cwd=workspace)
    scores = []
    for source in (["--ckpt_path=best"], ["--model.init_from=runs/mambavl-demo/version_0"]):
        run("lightning", "test", "--config", "mambavl-demo", *SMALL[:3], *source, cwd=workspace)
        number = max((workspace / "runs" / "mambavl-demo").glob("test_*"), key=lambda path: int(path.name[5:]))
        with (number / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        scores.append({key: value for key, value in row.items() if key.startswith("test/")})
    assert scores[0] == scores[1] and float(scores[0]["test/loss"]) > 0


def test_both_packages_ask_the_same_generic_questions():
    assert GENERIC._asdict() == GENERIC_QUESTIONS


@pytest.mark.parametrize(
    ("config", "arguments", "sentence"),
    [
        (
            {"fusion_dim": 96},
            [],
            "model.fusion_dim is part of model.fuser: write --model.fuser.dim, or in a config fuser",
        ),
        (
            {},
            ["--model.num_verbs=8"],
            "model.num_verbs is part of model.vocabulary: write --model.vocabulary.num_verbs",
        ),
        ({}, ["--model.feature_dim", "8"], "model.feature_dim is part of model.vision"),
        ({"fussion": "mlp"}, [], "has no argument 'fussion': did you mean 'fusion'"),
    ],
)
def test_arguments_that_are_in_groups_now_are_named(config, arguments, sentence):
    model = {"class_path": "lightning_modules.ActionRecognition", "init_args": config}
    with pytest.raises(ZooError, match=sentence):
        check_keys({"model": model}, arguments)


# Registry and recipes ------------------------------------------------------------------------------------------------


def test_registered_without_weights():
    ours = [entry for entry in entries() if entry.name.startswith("mambavl-")]
    assert len(ours) == 14 and all(entry.weights is None for entry in ours)
    for entry in ours:
        assert (entry.init_args.get("task") == "anticipation") == entry.name.endswith("anticipation")
        model = RECIPES[entry.name]["model"]
        assert model["class_path"] == entry.class_path
        what_it_is = {k: v for k, v in model["init_args"].items() if k in entry.init_args}
        assert normalise({"class_path": entry.class_path, "init_args": entry.init_args}) == normalise(
            {"class_path": entry.class_path, "init_args": {"num_frames": 16, **what_it_is}}
        )
        assert entry.init_args["fusion"] == ("joint" if "-joint-" in entry.name else "published")
        assert {name: model["init_args"][name] for name in entry.parts} == entry.parts
        assert RECIPES[entry.name]["trainer"]["callbacks"][-2]["init_args"]["monitor"] == "val/score"


@pytest.fixture(scope="module")
def official_tables(tmp_path_factory):
    """The annotations with the official numbers of classes, as a clone of their repository leaves them."""
    folder = tmp_path_factory.mktemp("epic") / "epic-kitchens-100-annotations"
    folder.mkdir()
    for name, count in (("verb_classes", 97), ("noun_classes", 300), ("noun_classes_v2", 305)):
        rows = [f"{i},{name[:4]} {i},\"['{name[:4]} {i}']\",x" for i in range(count)]
        (folder / f"EPIC_100_{name}.csv").write_text("\n".join(["id,key,instances,category", *rows]))
    columns = ("narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,"
               "all_noun_classes")  # fmt: skip
    pairs = [f"{i},P01,P01_11,00:00:00.00,00:00:01.00,take,{i % 97},{i // 97},[{i // 97}]" for i in range(3806)]
    for name, rows in (("train", pairs[:3000]), ("validation", pairs[2500:])):
        (folder / f"EPIC_100_{name}.csv").write_text("\n".join([columns, *rows]))
    return folder.parent


@pytest.mark.parametrize("name", [name for name in RECIPES if "demo" not in name])
def test_the_sizes_are_those_of_the_official_tables(name, official_tables):
    text = {"vocab_size": 514, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 1}  # fmt: skip
    given = RECIPES[name]["model"]["init_args"]
    sizes = {key: given.get(key) for key in ("num_classes", "vocabulary")}
    model = ActionRecognition(**sizes, vision={"tower": "features", "feature_dim": 16}, text=text, fusion="joint")
    trainer = SimpleNamespace(datamodule=EpicKitchens100(official_tables))
    model.trainer = trainer
    model.setup("fit")
    assert model.vocabulary["noun_names"][299] == "noun 299" and len(model.vocabulary["actions"]) == 3806


TRAINED = [name for name in RECIPES if "demo" not in name and "features" not in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "questions"),
    [(name, "generic") for name in TRAINED] + [(name, "as_published") for name in TRAINED if "joint" not in name],
)
def test_each_recipe_trains(name, questions, workspace, tmp_path, monkeypatch):
    text = "{vocab_size: 514, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1}"
    sizes = ["--model.num_classes=null", "--model.vocabulary.num_verbs=8", "--model.vocabulary.num_nouns=14",
             "--model.vision.embed_dim=16", "--model.vision.depth=1", "--model.num_frames=4", "--model.image_size=28",
             "--model.vision.patch_size=14", "--model.text_weights=null", f"--model.text={text}",
             "--model.init_from=null", "--model.vision_weights=null"]  # fmt: skip
    sizes += ["--model.fuser.dim=16"] if "joint" in name else []
    sizes += ["--model.vision.heads=2"] if "avion" in name else []
    if questions == "as_published":
        files = [f"EPIC_100_{split}_actions_gpt_questions_clean.pkl" for split in ("train", "validation")]
        sizes += [f"--data.question_files={json.dumps(files)}", f"--data.questions={questions}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [
        "lightning", "fit", "--config", name, *SMALL[1:], f"--data.root={workspace / 'kitchen'}", *sizes,
        "--trainer.accelerator=cpu", "--trainer.precision=32", "--trainer.devices=1"])  # fmt: skip
    ZooCLI()
    version = tmp_path / "runs" / name / "version_0"
    assert (version / "checkpoints" / "best.ckpt").is_file()
    with (version / "metrics.csv").open() as file:
        marked = [row.get("val/questions_from_labels") for row in csv.DictReader(file)]
    assert any(marked) == (questions == "as_published")
