"""Files that the commands write: what is refused before any work, and what is left when the disk is full."""

import os
import resource
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.files import PICTURES, check_folder, check_target, written
from zoo.retrieval.table import Index

NANO = "videomamba-nano-motion"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with four clips."""
    folder = tmp_path_factory.mktemp("files")
    generate(folder / "data", num_train=0, num_val=0, num_test=4, classes=("grow", "shrink"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    return (folder / "data/test").rename(folder / "clips")


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith(".") and path.suffix != ".lock")


@pytest.fixture
def special(tmp_path):
    """A path of each kind that is no regular file."""
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(tmp_path / "socket.png"))
        yield {kind: tmp_path / f"{kind}.png" for kind in ("folder", "pipe", "device", "socket")}


def test_special_files_are_refused_and_left(special):
    for kind, path in special.items():
        before = path.stat()
        for attempt in (lambda path=path: check_target(path), lambda path=path: written(path).__enter__()):
            with pytest.raises(ZooError, match=f"is a {kind} and is not replaced"):
                attempt()
        assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert left(special["pipe"].parent) == []


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("clip.mp4/a.png", "since .*clip.mp4 is no folder"),
        ("noext", r"has none of the endings \.png, \.jpg"),
        ("a.mp4", "has none of the endings"),
        (f"{'x' * 300}.png", "cannot be written"),
        ("\0.png", "cannot be written"),
        ("", "has none of the endings"),
    ],
)
def test_other_targets_are_refused(tmp_path, path, sentence):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(ZooError, match=sentence):
        check_target(str(tmp_path) + "/" + path, PICTURES)
    assert left(tmp_path) == []


def test_written_replaces_through_links_and_keeps_permissions(tmp_path):
    real, link = tmp_path / "real/page.html", tmp_path / "link.html"
    link.symlink_to("real/page.html")
    for text, mode in (("new", None), ("newer", 0o600)):
        if mode is not None:
            real.chmod(mode)
        with written(link) as beside:
            assert beside.parent == real.parent
            beside.write_text(text)
        assert link.is_symlink() and real.read_text() == text and (mode is None or real.stat().st_mode & 0o777 == mode)
    with pytest.raises(KeyboardInterrupt), written(link) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert real.read_text() == "newer" and left(tmp_path) == []
    with written(tmp_path / os.fsdecode(b"caf\xe9.html")) as beside:
        beside.touch()
    with written(tmp_path / ("x" * 250 + ".html")) as beside:
        beside.touch()
    assert len(os.listdir(os.fsencode(tmp_path))) == 4 and left(tmp_path) == []


def test_a_folder_to_write_into(tmp_path):
    (tmp_path / "file").touch()
    assert check_folder(tmp_path / "new/deep") == tmp_path / "new/deep" and not (tmp_path / "new").exists()
    with pytest.raises(ZooError, match="file is a file and is not replaced; name a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(ZooError, match="file is no folder"):
        check_folder(tmp_path / "file/deep")


def test_commands_refuse_before_the_model_is_loaded(special, clips, capsys):
    """The model does not exist, so a sentence about the target proves that it was checked first."""
    video = str(next(clips.rglob("*.mp4")))
    targets = [*special.values(), special["pipe"].with_name("noext"), Path(video) / "a.png"]
    for target in map(str, targets):
        for command in (
            ["predict", "no-such-model", video, "--plot", target],
            ["predict", "no-such-model", video, "--timeline", target],
            ["predict", "no-such-model", video, "--segments", target.replace(".png", ".srt")],
            ["masks", video, "--teacher", "/no/such/clip", "--plot", target],
            ["search", "no-such-index", "red", "--html", target.replace(".png", ".html")],
        ):
            if command[-1] != target and os.path.exists(target):
                os.symlink(target, command[-1])
            with pytest.raises(SystemExit) as exit_:
                main(command)
            told = capsys.readouterr().err
            assert exit_.value.code == 1 and os.path.basename(command[-1]) in told and told.count("\n") == 1
            assert "no-such" not in told and "no/such" not in told
    os.symlink(video, special["pipe"].with_name("video.lance"))
    os.symlink(clips, special["pipe"].with_name("clips.parquet"))
    for command, sentence in (
        (["extract", "no-such", str(clips), "-o", "video.lance"], "is a file and is not replaced; name a folder"),
        (["predict", "no-such", str(clips), "-o", "clips.parquet"], "is a folder and is not replaced; name a file"),
        (["index", "no-such", str(clips), "-o", video], "is a file and is not replaced; name a folder"),
    ):
        command[-1] = str(special["pipe"].with_name(command[-1]) if os.sep not in command[-1] else command[-1])
        with pytest.raises(SystemExit):
            main(command)
        assert f"{command[-1]} {sentence}" in capsys.readouterr().err


FULL = """
import resource, sys
import torchvision.transforms.v2  # with parts of torch that write a file when they are imported
from zoo.commands.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
for command in sys.argv[2:]:
    try:
        main(command.split("|"))
        print("status 0", file=sys.stderr)
    except SystemExit as error:
        print(f"status {error.code}", file=sys.stderr)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_with_the_file_and_the_next_run_goes_on(clips, tmp_path):
    """As on a full disk, no file grows beyond a few hundred bytes; what is written is larger."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"projection_dim": 32, "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **tower},
              "vision_config": {"image_size": 32, "patch_size": 16, **tower}}  # fmt: skip
    hub.save(TextVideoRetrieval(config, "mean", num_frames=4), tmp_path / "model")
    model, video = str(tmp_path / "model"), str(next(clips.rglob("*.mp4")))
    zoo.index(model, clips, tmp_path / "whole", num_workers=0)
    zoo.index(model, video, tmp_path / "begun", num_workers=0)
    (tmp_path / "old.png").write_text("old")
    zoo.predict(NANO, video)  # compiles kernels, which are written to a cache
    commands = {
        "a.parquet": ["extract", NANO, str(clips), "-o", str(tmp_path / "a.parquet"), "--workers", "0"],
        "b.lance": ["predict", NANO, str(clips), "-o", str(tmp_path / "b.lance"), "--workers", "0"],
        "begun": ["index", model, str(clips), "-o", str(tmp_path / "begun"), "--workers", "0"],
        "new": ["index", model, str(clips), "-o", str(tmp_path / "new"), "--workers", "0"],
        "old.png": ["predict", NANO, video, "--plot", str(tmp_path / "old.png")],
        "line.png": ["predict", NANO, video, "--timeline", str(tmp_path / "line.png")],
        "masks.png": ["masks", video, "--plot", str(tmp_path / "masks.png")],
        "page.html": ["search", str(tmp_path / "whole"), "red", "--html", str(tmp_path / "page.html")],
    }
    arguments = ["300", *("|".join(command) for command in commands.values())]
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr
    told = done.stderr.splitlines()
    assert told[1::2] == ["status 1"] * len(commands), done.stderr
    for place, sentence in zip(commands, told[::2], strict=True):
        assert sentence.startswith("zoo: ") and f"{tmp_path / place}" in sentence, sentence
        assert "File too large" in sentence or "os error 27" in sentence
        assert sentence.endswith("make room on that disk, or write to another place.")
    assert left(tmp_path) == [] and (tmp_path / "old.png").read_text() == "old"
    assert not (tmp_path / "a.parquet").exists() and len(Index.open(tmp_path / "begun")) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.index(model, clips, tmp_path / "begun", num_workers=0, batch_size=1).vectors == 4
        assert zoo.index(model, clips, tmp_path / "new", num_workers=0).vectors == 4
        main(commands["a.parquet"])
        main(commands["b.lance"])
    assert pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet").num_rows == 4


def test_the_limit_that_stands_for_a_full_disk_is_not_set_here():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
