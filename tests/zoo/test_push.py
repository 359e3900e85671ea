"""Sharing a model, as a user does it: train, push, and load it somewhere else; real processes, a Hub on loopback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.ops import use_backend
from lightning_modules.tasks.classification import VideoClassifier
from zoo.commands.main import main as zoo_main

CONF = Path(__file__).parents[1] / "conf"
BIN = Path(sys.executable).parent
TOKEN = "hf_" + "Zq7" * 11
SMALL = dict(num_train=8, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40), num_frames=8,
             num_workers=0, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Generated clips, and a run of the real command on them, started from the shipped model, which keeps its best."""
    folder = tmp_path_factory.mktemp("push")
    generate(folder / "data", **SMALL)
    config = yaml.safe_load((CONF / "tiny.yaml").read_text())
    best = {"monitor": "val/top1", "mode": "max", "filename": "best"}
    config["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best}]
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    command = [BIN / "lightning", "fit", "--config", "fit.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def server(hub_server):
    hub_server.tokens[TOKEN] = {"me"}
    return hub_server


def run(server, home, *command, cwd):
    done = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, capture_output=True, text=True, timeout=600,
        env=server.environment(home, HF_TOKEN=TOKEN),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr
    return done


# Loads the model from each place, and then does what the card says, word for word.
ELSEWHERE = """
import sys, torch, zoo
from lightning_modules.ops import use_backend
with use_backend("reference"):
    with torch.inference_mode():
        torch.save([zoo.load(place)(torch.load("clips.pt")) for place in sys.argv[1:]], "logits.pt")
    exec(open("snippet.py").read())
"""


@pytest.mark.slow
def test_fit_push_wipe_the_cache_load_elsewhere_equal_logits(workspace, server, tmp_path):
    done = run(server, tmp_path / "mine", "zoo", "push", "run", "me/actions", "--private", cwd=workspace)
    assert "me/actions/commit/" in done.stdout and 'zoo.load("me/actions")' in done.stdout
    assert len(server.messages) == 1 and server.private == {"me/actions"}

    # What was pushed: the run's own files, with the scores of its log.
    files = server.files("me/actions")
    config = yaml.safe_load((workspace / "run" / "config.yaml").read_text())
    assert yaml.safe_load(files["recipe.yaml"]) == config
    assert files["metrics.csv"] == (workspace / "run" / "metrics.csv").read_bytes()
    published = json.loads(files["config.json"])
    assert published["class_path"] == config["model"]["class_path"]
    given = config["model"]["init_args"]
    assert all(given[name] == value for name, value in published["init_args"].items() if given.get(name) is not None)
    assert published["init_args"]["class_names"] == ["grow", "move_left"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "video-classification" and card.data.datasets == ["data"]
    content = torch.load(workspace / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    (score,) = [r for r in card.data.eval_results if r.metric_type == "accuracy"]
    callbacks = content["callbacks"].values()
    (best,) = [float(c["best_model_score"]) for c in callbacks if c.get("best_model_score") is not None]
    assert score.metric_value == pytest.approx(best, abs=1e-5) and score.dataset_split == "validation"

    # A new machine: another cache, another process, no files of the run.
    arguments = {name: value for name, value in content["hyper_parameters"].items() if name != "_class_path"}
    source = VideoClassifier(**arguments).eval()
    source.load_state_dict(content["state_dict"])
    clips = torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    with use_backend("reference"), torch.inference_mode():
        expected = source(clips)
        assert torch.equal(zoo.load(workspace / "run")(clips), expected)  # a run's folder is loaded like its best
    torch.save(clips, tmp_path / "clips.pt")
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet)
    clip = next((workspace / "data" / "val" / "grow").glob("*.mp4"))
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    places = ["me/actions", f"hf://me/actions@{server.refs['me/actions']['main']}"]
    said = run(server, tmp_path / "theirs", "python", "-c", ELSEWHERE, *places, cwd=tmp_path).stdout
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.equal(logits, expected)
    labels = re.findall(r"^ *([\d.]+)%  (\w+)$", said, flags=re.MULTILINE)
    assert {label for _, label in labels} == {"grow", "move_left"}
    with use_backend("reference"):
        predictions = {p.label: p.probability for p in zoo.predict(source, clip)}
    assert all(float(percent) == pytest.approx(100 * predictions[label], abs=0.06) for percent, label in labels)
    assert "```sh\nzoo predict me/actions clip.mp4\n```" in card.text


@pytest.fixture
def official(tmp_path):
    """Random weights of VideoMamba-Ti in the official format."""
    torch.manual_seed(0)
    model = zoo.create("videomamba-ti-ssv2")
    path = tmp_path / "official.pth"
    torch.save({"model": {key.removeprefix("net."): value for key, value in model.state_dict().items()}}, path)
    return path


PUSH = "import sys, zoo; zoo.push(sys.argv[1], 'me/model', license='mit'); zoo.push(sys.argv[2], 'me/official')"


@pytest.mark.slow
def test_converted_folders_are_pushed_with_their_cards(workspace, official, server, tmp_path):
    ours = zoo.convert(workspace / "run" / "checkpoints" / "best.ckpt", tmp_path / "model")
    card = (ours / "README.md").read_text()
    (ours / "README.md").write_text(card.replace("## Input", "Filmed in my garden.\n\n## Input"))

    # Official weights keep the licence of their source, and the scores published for them.
    theirs = zoo.convert(official, tmp_path / "out", name="videomamba-ti-ssv2")
    entry, found = zoo.info("videomamba-ti-ssv2"), ModelCard((theirs / "README.md").read_text())
    assert found.data.license == entry.meta["license"] == "apache-2.0"
    assert found.data.base_model == entry.weights.repo_id and found.data.datasets == ["something-something-v2"]
    scores = {r.metric_type: r.metric_value for r in found.data.eval_results}
    assert scores == {"accuracy": 0.66, "top_5_accuracy": 0.896}
    assert (entry.meta["top1"], entry.meta["top5"]) == (66.0, 89.6)
    assert all("as published, 2 x 3 views" in r.metric_name for r in found.data.eval_results)
    assert entry.meta["paper"] in found.text and entry.name in found.text

    run(server, tmp_path / "hf", "python", "-c", PUSH, ours, theirs, cwd=tmp_path)
    for repo_id, folder in (("me/model", ours), ("me/official", theirs)):
        files = server.files(repo_id)
        pushed = ModelCard(files["README.md"].decode())
        assert f'zoo.load("{repo_id}")' in pushed.text and str(tmp_path) not in pushed.content
        for name in files.keys() - {".gitattributes", "README.md"}:
            assert files[name] == (folder / name).read_bytes()
    assert (pushed.data.license, pushed.data.model_name) == ("apache-2.0", "official")
    pushed = ModelCard(server.files("me/model")["README.md"].decode())
    assert pushed.data.license == "mit" and "Filmed in my garden." in pushed.text
    assert pushed.data.eval_results == ModelCard(card).data.eval_results != []


@pytest.mark.slow
def test_what_a_run_started_from_is_in_its_card(workspace, tmp_path):
    """A registered name stands for its repository and its licence; a path of one's own says nothing to others."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes((workspace / "run" / "checkpoints" / "best.ckpt").read_bytes())
    config = yaml.safe_load((workspace / "run" / "config.yaml").read_text())
    origins = {
        "videomamba-ti-k400": ("OpenGVLab/VideoMamba", "apache-2.0"),
        "videomamba-nano-motion": (None, "apache-2.0"),
        "org/other@v2": ("org/other", None),
        "hf://org/other": ("org/other", None),
        str(workspace / "run"): (None, None),
    }
    for i, (source, (base_model, license)) in enumerate(origins.items()):
        config["model"]["init_args"]["init_from"] = source
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        card = ModelCard((zoo.convert(folder, tmp_path / f"out{i}") / "README.md").read_text())
        assert (card.data.base_model, card.data.license) == (base_model, license), source
        assert f"`{source}`" in card.text


def errors(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        zoo_main(["push", *map(str, arguments)])
    assert stop.value.code == 1
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


def test_what_cannot_be_pushed_is_one_sentence(workspace, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "official.pth").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    trap = zoo.convert(workspace / "run" / "checkpoints" / "best.ckpt", tmp_path / "trap")
    config = json.loads((trap / "config.json").read_text())
    (trap / "config.json").write_text(json.dumps(config | {"class_path": "os.system"}))
    assert "gone does not exist" in errors(capsys, "gone", "me/x")
    assert "official.pth does not say which model it is" in errors(capsys, "official.pth", "me/x")
    assert "empty has no config.json" in errors(capsys, "empty", "me/x")
    assert "'os.system' is not a class of the zoo" in errors(capsys, trap, "me/x")
    assert "'x' is not a repository name" in errors(capsys, workspace / "run", "x")
