"""Malformed arguments and files of every `zoo` command: one sentence and a status, never a traceback or success."""

import json
import os
import shutil
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from typing import NamedTuple

import lancedb
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import hub
import zoo
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import COMMANDS, main
from zoo.retrieval.table import Index

NANO = "videomamba-nano-motion"
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {"projection_dim": 32, "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
        "vision_config": {"image_size": 32, "patch_size": 16, **TOWER}}  # fmt: skip
SIZE = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "tubelet_size": 2}

LONG, SURROGATE, ESCAPE = "x" * 300, "\udcff\udcfe", "\x1b[2J"
INTEGERS = ["", "x", "1.5", "nan", "-1", "9" * 30, "9" * 5000, "0x10", "1e3", SURROGATE]
SECONDS = ["", "x", "nan", "-1", "0", "1e-9", "1e300", "-inf", "1" * 5000, SURROGATE]
VIDEOS = ["", "gone.mp4", "broken.mp4", "empty.mp4", "list.csv", "text.mp4", "/dev/null", "pipe.mp4", LONG, SURROGATE,
          ESCAPE, "http://127.0.0.1:9/a.mp4", "~nobody/a.mp4", "model", "*.mp4", "a.mp4/b.mp4", "./-"]  # fmt: skip
MODELS = ["", "gone", "./gone", "..", "broken.ckpt", "empty.ckpt", "list.csv", "clip.mp4", "hf://", "hf://a",
          "a/b", "a/b@c", "*", "videomamba-m-k40", LONG, SURROGATE, ESCAPE, "/dev/null", "clips", "no-config",
          "deep-config", "list-config", "foreign", "unsafe.pth", "~nobody/model", "a\nb"]  # fmt: skip
PICTURES = ["", "noext", ".", "/dev/null", "clip.mp4", "clip.mp4/a.png", "pipe.png", "folder.png", f"{LONG}.png",
            "a.doc", SURROGATE, "/proc/a.png"]  # fmt: skip
PAGES = ["", "noext", ".", "/dev/null", "clip.mp4", "clip.mp4/a.html", f"{LONG}.html", "/proc/a.html"]
SEGMENTS = ["", "noext", ".", "/dev/null", "clip.mp4", "clip.mp4/a.srt", f"{LONG}.csv", SURROGATE, "/proc/a.json"]
FOLDERS = ["clip.mp4", "clip.mp4/deep", "/dev/null", "pipe.mp4", LONG, "/proc/new"]
TABLES = ["", "noext", ".", "/dev/null", "clip.mp4/a.parquet", f"{LONG}.parquet", "/proc/new.parquet", "torn.parquet",
          "ftp://host/a.lance", "s3://none/a.parquet", "a b.lance", "good.index", f"{SURROGATE}.lance"]  # fmt: skip
SHARES = ["", "1/2", "2/1", "1", "x", "Auto", "auto", "1/" + "9" * 5000]  # auto: without the variables
DEVICES = ["", "nowhere", "cuda:99", "meta", "cpu:x", SURROGATE, "x" * 5000]
TEXTS = ["", "  \n", SURROGATE]
INDICES = ["", "gone", "clip.mp4", "clips", "model", "torn.index", "deep.index", "foreign.index", "odd.index", LONG,
           SURROGATE, "/dev/null", "."]  # fmt: skip
RECIPES = ["", "gone", "..", "list.csv", "clip.mp4", "/dev/null", "scalar.yaml", "torn.yaml", "loop.yaml",
           LONG, SURROGATE, "videomamba-m-k40", "a/b"]  # fmt: skip
DATA = ["", "gone", "list.csv", "long.csv", "torn.csv", "clip.mp4", "model", "/dev/null", "gone.tar", "torn.tar",
        "{0..99999999}.tar", "{a,b", "pairs.json", "deep.json", "Nothing", "VideoFolder", "os.system", LONG, SURROGATE,
        "http://127.0.0.1:9/a.tar", "s3://none/a.tar"]  # fmt: skip
SIZES = ["", "x", "-1", "0", "nanGB", "infGB", "1e400", "9" * 5000, "1 parsec"]
SETTINGS = ["", "x", "=", "=1", "nonsense=1", "batch_size=x", "batch_size=-1", "root", f"{SURROGATE}=1", "pattern=["]


class Command(NamedTuple):
    """A command that works, and what breaks it.

    Attributes:
        positional: arguments that work.
        broken: for each of them, values of which every one has to be refused.
        options: for options, added or replaced, the same.
        more: options that the working command needs.
    """

    positional: list[str]
    broken: list[list[str]]
    options: dict[str, list[str]]
    more: list[str] = []


COMMON = {"--device": DEVICES}
WORKING = {
    "list": Command(["nano"], [["none such", SURROGATE]], {"--task": ["", "x"], "--dataset": ["", "x", SURROGATE]}),
    "info": Command([NANO], [[model for model in MODELS]], {}),
    "predict": Command(
        ["model", "clip.mp4"],
        [MODELS, VIDEOS],
        {"--topk": [*INTEGERS, "0"], "--clips": [*INTEGERS, "0"], "--crops": [*INTEGERS, "2"], "--window": SECONDS,
         "--step": SECONDS, "--frames": [*INTEGERS, "0", "3"], "--plot": PICTURES, "--timeline": PICTURES,
         "--segments": SEGMENTS, "-o": TABLES, "--workers": INTEGERS, "--shard": SHARES, "--ray": ["", "auto"],
         "--checkpoint": ["gone.pth", "clip.mp4", "", "/dev/null"], **COMMON},
    ),
    "index": Command(
        ["text", "clip.mp4"],
        [MODELS, [v for v in VIDEOS if v not in ("broken.mp4", "empty.mp4", "list.csv", "text.mp4")]],
        {"-o": [*FOLDERS, "clips"], "--window": [s for s in SECONDS if s not in ("1" * 5000,)],
         "--batch-size": [*INTEGERS, "0"], "--workers": INTEGERS, "--shard": SHARES, "--ray": ["", " "],
         "--dtype": ["", "int8"],
         "--metadata": ["", "gone", "clip.mp4", "clips", "torn.csv", "pipe.mp4", LONG, SURROGATE],
         "--convert": ["", "gone", "good.index"], **COMMON},
        ["-o", "new.index", "--workers", "0"],
    ),
    "search": Command(
        ["good.index", "red"],
        [INDICES, TEXTS],
        {"--topk": [*INTEGERS, "0"], "--where": ["", "x", "1", "nothing = 1", "start >", SURROGATE],
         "--like": ["", "gone", "clips", "broken.mp4", "empty.mp4", "/dev/null", LONG, SURROGATE],
         "--html": PAGES, "--model": [m for m in [*MODELS, "model"]], **COMMON},
    ),
    "ask": Command(
        ["model", "clip.mp4", "what?"],
        [MODELS, VIDEOS, [SURROGATE]],
        {"--topk": [*INTEGERS, "0"], "--clips": [*INTEGERS, "0"], **COMMON},
    ),
    "extract": Command(
        ["model", "clip.mp4"],
        [MODELS, ["", "gone", "no-config", "http://127.0.0.1:9/a", LONG, SURROGATE]],
        {"-o": TABLES, "--tokens": ["", "x"], "--window": SECONDS, "--stride": SECONDS,
         "--batch-size": [*INTEGERS, "0"], "--workers": INTEGERS, "--shard": SHARES, "--ray": ["", " "], **COMMON},
        ["-o", "features.parquet", "--workers", "0"],
    ),
    "explain": Command(
        ["model", "clip.mp4"],
        [MODELS, VIDEOS],
        {"--target": ["", "gone", SURROGATE], "--method": ["", "x"], "--tube": INTEGERS, "--plot": PICTURES,
         "--animation": ["", "noext", ".", "/dev/null", "clip.mp4", "clip.mp4/a.webp", f"{LONG}.webp", "/proc/a.gif"],
         "--array": ["", "noext", ".", "/dev/null", "clip.mp4", "clip.mp4/a.npy", f"{LONG}.npz", "/proc/a.npy"],
         "--checkpoint": ["gone.pth", "clip.mp4", "", "/dev/null"], **COMMON},
    ),
    "live": Command(
        ["model", "clip.mp4"],
        [MODELS, [*VIDEOS, "7", "udp://", "udp://127.0.0.1", "udp://nowhere:x", "rtsp://", "ftp://a/b", "http://"]],
        {"--window": SECONDS, "--step": SECONDS, "--reconnect": ["", "x", "nan", "-1", "1e300", "-inf", SURROGATE],
         "--checkpoint": ["gone.pth", "clip.mp4", "", "/dev/null"], **COMMON},
    ),
    "app": Command(
        ["model"],
        [MODELS],
        {"--index": INDICES, "--host": ["", "x y", "nowhere.invalid", "1.2.3.4.5", SURROGATE, LONG],
         "--port": [*INTEGERS, "0", "65536"], "--max-mb": [*INTEGERS, "0"], "--max-minutes": SECONDS, **COMMON},
    ),
    "export": Command(
        ["model", "model.pt2"],
        [MODELS, ["", "noext", "a.onnxx", ".", "/dev/null", "clip.mp4", "clip.mp4/a.pt2", f"{LONG}.pt2", "/proc/a.pt2",
                  "folder.pt2/", f"{SURROGATE}.pt2", f"{SURROGATE}/a.onnx"]],
        {"--format": ["", "x"], "--output": ["", "x"], "--input": ["", "x"], "--tower": ["", "x", "text"],
         "--frames": [*INTEGERS, "0", "3"], "--checkpoint": ["gone.pth", "clip.mp4", "", "/dev/null"]},
    ),
    "recipe": Command(["demo"], [RECIPES], {}),
    "convert": Command(["broken.ckpt", "converted"], [MODELS, FOLDERS], {"--name": ["", "gone", SURROGATE]}),
    "push": Command(["model", "me/x"], [["", "gone", "clip.mp4", SURROGATE], ["", "x", "a/b/c", SURROGATE, LONG]], {}),
    "pull": Command([NANO], [["", "gone", "a/b", "gone*", "[", "hf://", SURROGATE, LONG, "a/b@\n"]], {}),
    "masks": Command(
        ["clip.mp4"],
        [VIDEOS],
        {"--type": ["", "x"], "--ratio": ["", "x", "nan", "-1", "1", "2", "inf"], "--frames": [*INTEGERS, "0"],
         "--size": [*INTEGERS, "0", "31"], "--patch": [*INTEGERS, "0"], "--seed": [i for i in INTEGERS if i != "-1"],
         "--teacher": ["", "gone", "./gone", "clip.mp4", SURROGATE], "--plot": PICTURES},
        ["--frames", "2", "--size", "32"],
    ),
    "shard": Command(
        ["clips"],
        [DATA],
        {"-o": [*FOLDERS, "s3://bucket/x"], "--root": ["", "gone", "clip.mp4"], "--set": SETTINGS,
         "--split": ["", "x", "train,val"],
         "--max-size": SIZES, "--shuffle-seed": [i for i in INTEGERS if i not in ("-1", "9" * 30)],
         "--short-side": [*INTEGERS, "0", "1"], "--crf": [*INTEGERS, "52"], "--workers": INTEGERS},
        ["-o", "shards"],
    ),
}  # fmt: skip
# They want a larger model, a run, or a connection; a page is served until it is stopped.
FAILS_ANYWAY = ("ask", "convert", "push", "app")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files and broken ones by the names that the lists above use; the current folder of the tests."""
    folder = tmp_path_factory.mktemp("malformed")
    generate(folder / "data", num_train=4, num_val=0, num_test=0, classes=("grow", "shrink"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    shutil.move(folder / "data/train", folder / "clips")
    shutil.copy(next((folder / "clips").rglob("*.mp4")), folder / "clip.mp4")
    torch.manual_seed(0)
    hub.save(VideoClassifier(3, **SIZE), folder / "model")
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4), folder / "text")
    zoo.index(str(folder / "text"), folder / "clip.mp4", folder / "good.index", num_workers=0)
    (folder / "folder.png").mkdir()
    for name in ("pipe.mp4", "pipe.png"):
        os.mkfifo(folder / name)
    for name in ("no-config", "deep-config", "list-config", "foreign"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "no-config/config.json").unlink()
    (folder / "deep-config/config.json").write_text('{"class_path": ' + "[" * 100_000)
    (folder / "list-config/config.json").write_text("[1, 2]")
    (folder / "foreign/config.json").write_text(
        json.dumps({"class_path": "os.system", "init_args": {"command": "true"}})
    )
    shutil.copytree(folder / "good.index", folder / "torn.index")
    for manifest in (folder / "torn.index").rglob("*.manifest"):
        manifest.write_bytes(manifest.read_bytes()[:-9])
    (folder / "deep.index").mkdir()
    (folder / "deep.index/index.json").write_text("[" * 100_000)
    theirs = pa.table({"vector": [[1.0, 2.0]], "path": ["a"]})
    lancedb.connect(folder / "foreign.index").create_table("videos", theirs)
    Index.create(folder / "odd.index", 16, settings={"window": "x", "model": {"source": 5, "config": 6}})
    texts = {"list.csv": "path,label\na.mp4,b\n", "long.csv": f"{'x' * 200_000},1\n", "torn.csv": 'a.mp4,"b',
             "text.mp4": "text", "torn.parquet": "text",
             "empty.mp4": "", "empty.ckpt": "", "pairs.json": '[{"image": 5}]', "deep.json": "[" * 100_000,
             "deep.yaml": "[" * 20_000, "scalar.yaml": "5", "torn.yaml": "model: {",
             "loop.yaml": "&a [*a]"}  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name in ("broken.mp4", "broken.ckpt", "unsafe.pth", "torn.tar"):
        (folder / name).write_bytes(bytes(range(256)) * 8)
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield


def call(argv):
    """The command in this process -> exit status, standard output, standard error; a traceback fails the test."""
    out, err = (TextIOWrapper(BytesIO(), encoding="utf-8", errors="strict") for _ in range(2))
    status = 0
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(argv)
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            short = [word if len(word) < 400 else f"{word[:20]}...{len(word)}" for word in argv]
            trace = "".join(traceback.format_exception(error)[-12:])
            pytest.fail(f"{short}: {type(error).__name__}: {str(error)[:300]}\n{trace}")
    for stream in (out, err):
        stream.flush()
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err))


def check_refused(argv):
    status, _, err = call(argv)
    lines = err.splitlines()
    assert status in (1, 2), argv
    assert lines and lines[-1].startswith("zoo"), (argv, err)
    assert not any(char in err for char in (ESCAPE[0], "\udcff", "\r")), (argv, err)


def one_broken(name):
    """Command lines of which one argument is wrong, and each may be wrong on its own."""
    command = WORKING[name]
    for place, values in enumerate(command.broken):
        for value in values:
            yield [name, *command.positional[:place], value, *command.positional[place + 1 :], *command.more]
    for option, values in command.options.items():
        for value in values:
            word = f"{option}={value}" if option.startswith("--") else f"{option}{value}"
            yield [name, *command.positional, *command.more, word]


def test_every_command_is_tried():
    assert WORKING.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", [name for name in WORKING if name not in FAILS_ANYWAY])
def test_the_working_command_works(folder, name):
    if name == "export" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        pytest.skip("PyTorch before 2.9 does not export")
    status, _, err = call([name, *WORKING[name].positional, *WORKING[name].more])
    assert status == 0, err


ALL = [argv for name in WORKING for argv in one_broken(name)]
# What a hand or a script may type, in any order: words of every kind, and every option.
WORDS = sorted({word for argv in ALL for word in argv if len(word) < 400} | {"--json", "--help", "--", "-x"})
# Free text leads nowhere else: some commands write where it says. The system passes no null characters.
TYPED = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="/~\0"), max_size=20)
LINES = st.tuples(st.sampled_from(sorted(COMMANDS.keys() - {"app"})), st.lists(TYPED, max_size=6))
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True,
         "phases": (Phase.explicit, Phase.generate)}  # fmt: skip


def check_random(line):
    name, words = line
    argv = [name, *words]
    status, _, err = call(argv)
    assert status in (0, 1, 2), argv
    assert status == 0 or err.splitlines()[-1].startswith("zoo"), (argv, err)


@settings(max_examples=60, **QUICK)
@given(st.sampled_from(ALL))
def test_one_broken_argument_is_refused(folder, argv):
    check_refused(argv)


@settings(max_examples=60, **QUICK)
@given(LINES)
def test_any_words_are_answered_or_refused(folder, line):
    check_random(line)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_every_broken_argument_is_refused(folder, name):
    for argv in one_broken(name):
        check_refused(argv)


@pytest.mark.slow
@settings(max_examples=400, **QUICK)
@given(LINES)
def test_many_words_are_answered_or_refused(folder, line):
    check_random(line)
