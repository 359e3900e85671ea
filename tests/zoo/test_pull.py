"""`zoo pull` and loading from the Hub by several processes, against a Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hub
import zoo
from lightning_modules.tasks.classification import VideoClassifier
from zoo.commands.main import main as zoo_main

BIN = Path(sys.executable).parent
PINNED = zoo.info("videomamba-ti-k400").weights.revision
TINY = {"num_classes": 3, "class_names": ["a", "b", "c"], "embed_dim": 16, "depth": 1, "num_frames": 2}
TINY |= {"image_size": 32}


def total(module) -> float:
    return sum(p.double().sum().item() for p in module.parameters())


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> tuple[dict, dict]:
    """Two official files with random weights, of those whose hash is not known, and a model of somebody's own: files,
    and sums of their weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    official, sums = {}, {}
    for name in ("videomamba-ti-ssv2", "videomamba-ti-ssv2-f8"):
        module, entry = zoo.create(name), zoo.info(name)
        sums[name] = total(module)
        torch.save({key.removeprefix("net."): value for key, value in module.state_dict().items()}, folder / "x.pth")
        official[entry.weights.filename] = (folder / "x.pth").read_bytes()
    module = VideoClassifier(**TINY)
    sums["me/actions"] = total(module)
    saved = hub.save(module, folder / "model", recipe="model: {}\n")
    files = {file.name: file.read_bytes() for file in saved.iterdir()}
    files |= {"README.md": b"# card", "notes/more.txt": b"not ours"}
    return {"OpenGVLab/VideoMamba": official, "me/actions": files}, sums


@pytest.fixture
def server(hub_server, repositories):
    for repo_id, files in repositories[0].items():
        hub_server.commit(repo_id, files, name=PINNED if repo_id == "OpenGVLab/VideoMamba" else None)
    hub_server.sums = repositories[1]
    return hub_server


def run(server, home, *command, check=True, **env):
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], capture_output=True, text=True, timeout=600, cwd=home.parent,
        env=server.environment(home, **env),
    )  # fmt: skip
    assert (done.returncode == 0) == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


FACTS = """
import json, sys, zoo
print(json.dumps([sum(p.double().sum().item() for p in zoo.load(name).parameters()) for name in sys.argv[1:]]))
"""


@pytest.mark.slow
def test_pull_then_everything_works_offline(server, tmp_path):
    home = tmp_path / "hf"
    names = ["videomamba-ti-ssv2*", "videomamba-ti-ssv2-f16-r224", "me/actions", "videomamba-nano-motion"]
    # Of the pattern's models this Hub has two; the others are named as missing and keep nothing from being fetched.
    done = run(server, home, "zoo", "pull", *names, check=False)
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert lines["videomamba-ti-ssv2-f16-r224"][0] == lines["videomamba-ti-ssv2-f8-r224"][0] != "-"
    assert lines["videomamba-ti-ssv2-f16-r288"] == ["-", "not", "fetched"]
    assert lines["videomamba-nano-motion"][1:] == ["shipped", "with", "the", "package"]
    assert "4 of 5 models are here" in done.stdout and "work with HF_HUB_OFFLINE=1" in done.stdout
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "1 of 5 models was not fetched: videomamba-ti-ssv2-f16-r288 (" in done.stderr
    assert "has no file videomamba_t16_ssv2_f16_res224to288.pth" in done.stderr
    snapshot = Path(lines["me/actions"][1])
    ours = ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    assert sorted(p.name for p in snapshot.iterdir()) == ours

    asked = len(server.log)
    server.__exit__()  # the server is gone
    offline = run(server, home, "python", "-c", FACTS, *server.sums, "hf://me/actions", HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == [*server.sums.values(), server.sums["me/actions"]]
    assert len(server.log) == asked
    listed = json.loads(run(server, home, "zoo", "list", "--json", "ti-ssv2").stdout)
    assert [r["name"] for r in listed if r["cached"]] == ["videomamba-ti-ssv2-f8-r224", "videomamba-ti-ssv2-f16-r224"]


def test_repositories_that_are_not_what_they_should_be_are_refused(server, tmp_path):
    files = server.files("me/actions")
    # Somebody puts other weights beside a config that records the hash of the first: whole, valid, not the model's.
    other = hub.save(VideoClassifier(**TINY), tmp_path / "other")
    server.commit("me/swapped", files | {"model.safetensors": (other / "model.safetensors").read_bytes()})
    trap = {"config.json": b'{"class_path": "os.system", "init_args": {}}', "model.safetensors": b"x"}
    server.commit("me/trap", trap)
    server.commit("me/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    server.commit("me/outside", files | {"../../recipe.yaml": b"evil"})
    names = ["me/actions", "me/swapped", "me/trap", "me/bert", "me/outside"]
    done = run(server, tmp_path / "hf", "zoo", "pull", *names, "--json", check=False)
    good, *bad = json.loads(done.stdout)
    assert good["name"] == "me/actions" and good["error"] is None
    assert good["bytes"] == sum(len(content) for name, content in files.items() if name != "notes/more.txt")
    sentences = [
        "model.safetensors is not the recorded file, so it is not loaded",
        "'os.system' is not a class of the zoo",
        "does not hold exactly class_path and init_args",
        "lists a file '../../recipe.yaml', whose name leads out of its folder",
    ]
    for record, sentence in zip(bad, sentences, strict=True):
        assert sentence in record["error"] and record["files"] == []
    assert "owners of me/swapped" in bad[0]["error"]
    assert server.count("/me/(trap|bert)/resolve/.*safetensors") == 0
    assert server.count("GET .*/recipe.yaml") == 1  # the good one's


COMMANDS = """
import contextlib, io, json, sys
from zoo.commands.main import main
for command in json.loads(sys.argv[1]):
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            main(command)
        except SystemExit as stop:
            status = stop.code
    print(status, said.getvalue().strip(), file=sys.stderr)
"""


def test_another_file_in_the_place_of_a_published_one_is_refused_cached_too(server, tmp_path):
    entry = zoo.info("videomamba-ti-k400")
    assert entry.weights.sha256 is not None
    server.commit(entry.weights.repo_id, {entry.weights.filename: b"PK\x03\x04 something else"}, name=PINNED)
    predict = ["predict", entry.name, "clip.mp4"]
    (tmp_path / "clip.mp4").write_bytes(b"not read")
    commands = [["pull", entry.name], predict, predict, ["pull", "me/none", "me/neither"]]
    done = run(server, tmp_path / "hf", "python", "-c", COMMANDS, json.dumps(commands))
    *refused, neither = done.stderr.splitlines()
    assert len(refused) == 3
    for said in refused:
        assert said.startswith("1 zoo: ") and "is not the recorded file, so it is not loaded" in said, said
        assert entry.weights.sha256[:12] in said
    assert server.count("GET /OpenGVLab/VideoMamba/resolve") == 1
    assert server.count(f"HEAD /OpenGVLab/VideoMamba/resolve/{PINNED}") == server.count("HEAD /OpenGVLab") > 0
    # Nothing was fetched: nothing works offline.
    assert "None of the 2 models is here" in done.stdout and "OFFLINE" not in done.stdout
    assert neither.startswith("1 zoo: 2 of 2 models were not fetched: me/none (") and "; me/neither (" in neither


@pytest.mark.parametrize(
    ("name", "words"),
    [("videomamba-ti-k40", "did you mean"), ("resnet*", "No model matches 'resnet*'"), ("x", "No model is named 'x'")],
)
def test_a_name_that_means_nothing_is_said_before_anything_is_downloaded(capsys, name, words):
    with pytest.raises(SystemExit) as stop:
        zoo_main(["pull", "videomamba-ti-k400", name])
    said = capsys.readouterr()
    assert stop.value.code == 1 and said.out == "" and words in said.err and said.err.count("\n") == 1


# The processes are copies of one that has imported everything and asked for nothing, so that they start together.
EIGHT = """
import multiprocessing, sys
import torch, zoo, zoo.build, huggingface_hub.file_download
torch.set_num_threads(1)

def load(barrier, answers, names):
    for name in names:
        barrier.wait()
        try:
            answers.put((name, sum(p.double().sum().item() for p in zoo.load(name).parameters())))
        except Exception as error:
            answers.put((name, repr(error)))

context = multiprocessing.get_context("fork")
barrier, answers = context.Barrier(8), context.Queue()
processes = [context.Process(target=load, args=(barrier, answers, sys.argv[1:])) for _ in range(8)]
for process in processes:
    process.start()
found = [answers.get(timeout=600) for _ in range(8 * len(sys.argv[1:]))]
for process in processes:
    process.join()
    assert process.exitcode == 0
for answer in found:
    print(*answer)
"""


@pytest.mark.slow
def test_eight_processes_load_into_an_empty_cache_and_download_once(server, tmp_path):
    names = ["videomamba-ti-ssv2", "me/actions"]
    done = run(server, tmp_path / "hf", "python", "-W", "ignore", "-c", EIGHT, *names)
    expected = [f"{name} {server.sums[name]}" for name in names for _ in range(8)]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert server.count("GET /store/") == 2
    assert server.count("GET /me/actions/resolve/.*/config.json") == 1
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
