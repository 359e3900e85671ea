"""`zoo index` and `zoo search` on generated videos: the real commands, killed, shared out, and on files that change."""

import functools
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
from base64 import b64decode
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from safetensors.torch import save_file

import hub
import zoo
from datamodules.synthetic.writing import generate, write_video
from datamodules.video.decode import VideoReader
from datamodules.video.views import load_views
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main
from zoo.printable import clock
from zoo.retrieval.search import convert_index
from zoo.retrieval.table import Index

ZOO = Path(sys.executable).with_name("zoo")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
ODD_NAME = 'a "quoted" & <b>bold<b> 100% #1 café.mp4'
NUM_CLIPS = 40
LISTS = {"no-path": "name,place\na,b\n", "taken": "path,start\na,1\n", "twice": "path,x\na,1\n./a,2\n",
         "torn": "path,x\na,1,2\n"}  # fmt: skip


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return TextVideoRetrieval(CLIP, "mean", **{"num_frames": 4, **kwargs}).eval()


def start(folder, *arguments, **variables):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen([ZOO, *arguments], cwd=folder, text=True, stdout=-1, stderr=-1, env=env)


def finish(process, status=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == status, err
    return out, err


def content(folder):
    return {record: vector.numpy().tobytes() for record, vector in Index.open(folder).records()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """model/, and videos/ with 40 clips of 0.67 s in folders and one film of 5 s; tests leave both as they are."""
    folder = tmp_path_factory.mktemp("search")
    hub.save(tiny(), folder / "model")
    generate(folder / "made", num_train=0, num_val=0, num_test=NUM_CLIPS, size=(48, 40), num_frames=8, num_workers=0,
             progress=False)  # fmt: skip
    shutil.move(folder / "made/test", folder / "videos")
    shades = np.linspace(0, 255, 60).astype(np.uint8)
    film = np.broadcast_to(shades[:, None, None, None], (60, 40, 48, 3))
    write_video(folder / "videos/film.mp4", film, 12)
    return folder


@pytest.fixture(scope="module")
def model(workspace):
    return zoo.load(workspace / "model")


@pytest.fixture
def videos(workspace, tmp_path):
    """Three clips of one's own to change, one with an odd name."""
    clips = sorted((workspace / "videos").glob("*/*.mp4"))[:3]
    (tmp_path / "mine/deep").mkdir(parents=True)
    for clip, name in zip(clips, ("a.mp4", "b.MP4", f"deep/{ODD_NAME}"), strict=True):
        shutil.copy(clip, tmp_path / "mine" / name)
    (tmp_path / "mine/notes.txt").write_text("no video")
    (tmp_path / "mine/.hidden.mp4").write_text("not looked at")
    return tmp_path / "mine"


OPTIONS = ("--window", "2", "--batch-size", "3", "--workers", "1")


def kill_when(folder, name, ready):
    """`zoo index` of all videos into a new index, killed as soon as `ready()`; the summary of the next run."""
    killed = start(folder, "index", "model", "videos", "-o", name, *OPTIONS)
    while not ready():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = content(folder / name) if Index.exists(folder / name) else {}
    # The reader of the killed process lives on for some seconds: it keeps nobody out.
    out, _ = finish(start(folder, "index", "model", "videos", "-o", name, *OPTIONS, "--json"))
    done, after = json.loads(out), content(folder / name)
    killed.communicate()
    assert done["kept"] == len({record.path for record in before}) and done["kept"] + done["indexed"] == NUM_CLIPS + 1
    assert after.keys() >= before.keys()
    return done, after


@pytest.mark.slow
def test_killed_after_its_first_commit_and_resumed_is_the_same(workspace):
    """Later runs of the same batches give the vectors of a run that nobody killed, bit for bit."""
    versions = workspace / "killed.index/videos.lance/_versions"
    done, after = kill_when(workspace, "killed.index", lambda: len(list(versions.glob("*.manifest"))) >= 2)
    assert done["kept"] > 0
    out, err = finish(start(workspace, "index", "model", "videos", "-o", "whole.index", *OPTIONS))
    assert f"{NUM_CLIPS + 1} indexed now, 0 kept, 0 unreadable, 0 dropped; {NUM_CLIPS + 3} stretches" in out and not err
    assert after == content(workspace / "whole.index")


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_the_same(workspace):
    finish(start(workspace, "index", "model", "videos", "-o", "calm.index", *OPTIONS))
    whole = content(workspace / "calm.index")
    for number in (1, 3):  # tests/zoo/tables/test_fill.py has twenty moments of three commands
        begun = workspace / f"killed{number}.index"
        moment = []

        def ready(begun=begun, moment=moment, number=number):
            """Some time after the folder appeared: while the table is made, at commits, while files are joined."""
            if not moment and begun.exists():
                moment.append(0.4 * number + time.monotonic())
            return moment and time.monotonic() >= moment[0]

        try:
            _, after = kill_when(workspace, begun.name, ready)
        except AssertionError as error:
            if "indexed now" not in str(error):  # it was faster than the moment
                raise
            continue
        assert after == whole


@pytest.mark.slow
def test_shares_of_several_processes_are_the_whole(workspace, model):
    command = ["index", "model", "videos", "-o", "shared.index", "--shard", "auto"]
    variables = [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}]
    shares = [start(workspace, *command, **some) for some in variables]
    for number, share in enumerate(shares, 1):
        assert f"in share {number} of 2: " in finish(share)[0]
    summary = zoo.index(model, workspace / "videos", workspace / "one.index", num_workers=0, batch_size=5)
    assert summary == (NUM_CLIPS + 1, NUM_CLIPS + 1, 0, 0, 0, NUM_CLIPS + 1)
    shared, one = (dict(Index.open(workspace / name).records()) for name in ("shared.index", "one.index"))
    assert shared.keys() == one.keys()
    for record, vector in one.items():
        torch.testing.assert_close(shared[record], vector)
    text = "a red circle moves left"
    found, expected = (
        zoo.search(workspace / f"{name}.index", text, topk=99, model=model)[0] for name in ("shared", "one")
    )
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    scores = {hit.path: hit.score for hit in expected}
    assert {hit.path: hit.score for hit in found} == pytest.approx(scores, abs=1e-5)
    assert scores == pytest.approx(
        {str(workspace / record.path): (model.encode_text(text) @ vector).item() for record, vector in one.items()},
        abs=1e-5,
    )


def test_vectors_are_those_of_the_model(workspace, model, tmp_path):
    """A short video as load_views reads it; of a film, stretches of equal length, each from its own frames."""
    short, film = sorted((workspace / "videos").glob("*/*.mp4"))[7], workspace / "videos/film.mp4"
    zoo.index(model, [short, film], tmp_path / "i", window=2, num_workers=0)
    rows = dict(Index.open(tmp_path / "i").records())
    assert all(seconds == round(seconds, 6) for record in rows for seconds in record[1:])  # no 1.9999999999999998
    assert {(Path(r.path).name, round(r.start, 3), round(r.end, 3)) for r in rows} == {
        (short.name, 0.0, 0.667), ("film.mp4", 0.0, 1.667), ("film.mp4", 1.667, 3.333), ("film.mp4", 3.333, 5.0)
    }  # fmt: skip
    with torch.no_grad():
        expected = model(load_views(short, **model.preprocessing).video)[0]
        torch.testing.assert_close(next(v for r, v in rows.items() if r.path.endswith(short.name)), expected)
        with VideoReader(film) as reader:
            frames = reader.read(range(60), short_side=32, interpolation="bicubic")
        for number, (record, vector) in enumerate((r, v) for r, v in rows.items() if r.path.endswith("film.mp4")):
            # 12 frames a second; 20 or 21 frames touch a stretch, one is taken from each quarter.
            low, high = math.ceil(record.start * 12 - 1e-4), math.floor(record.end * 12 + 1e-4)
            high = min(high, 59)
            step = (high - low) / 4
            places = [low + round(step * quarter) + int(step / 2) for quarter in range(4)]
            clip = frames[places, :, :, 3:35].transpose(0, 1)[None]
            torch.testing.assert_close(model(clip)[0], vector, msg=f"stretch {number}")


def test_only_what_is_new_or_changed_is_read_again(model, videos, tmp_path):
    def run():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            summary = zoo.index(model, videos, tmp_path / "i", num_workers=0)
        return summary, [str(warning.message) for warning in caught]

    assert run() == ((3, 3, 0, 0, 0, 3), [])
    first = content(tmp_path / "i")
    (videos / "torn.mp4").write_bytes((videos / "a.mp4").read_bytes()[:300])
    (videos / "empty.mkv").touch()
    summary, caught = run()
    assert summary == (5, 0, 2, 3, 0, 3) and len(caught) == 2
    assert "empty.mkv is empty (0 bytes); copy or download it again (left out of the index)." in caught[0]
    assert run() == ((5, 0, 2, 3, 0, 3), [])  # nothing is tried again, and the two are still unreadable
    assert content(tmp_path / "i") == first

    shutil.copy(videos / "a.mp4", videos / "torn.mp4")  # whole again
    (videos / "a.mp4").unlink()
    os.utime(videos / "b.MP4", ns=(1, 1))  # touched
    assert run() == ((4, 2, 1, 1, 3, 3), [])
    second = content(tmp_path / "i")
    assert {Path(record.path).name for record in second} == {"torn.mp4", "b.MP4", ODD_NAME}
    assert second.items() >= {r: v for r, v in first.items() if r.path.endswith(ODD_NAME)}.items()

    other = tmp_path / "other.mp4"
    shutil.copy(videos / "torn.mp4", other)
    (videos / "torn.mp4").unlink()
    summary = zoo.index(model, other, tmp_path / "i", num_workers=0)  # another folder: the rest is left alone
    assert summary == (1, 1, 0, 0, 0, 4)


def test_index_and_videos_can_be_moved_together(model, videos, tmp_path):
    hub.save(model, tmp_path / "model")
    main(["index", str(tmp_path / "model"), str(videos), "-o", str(tmp_path / "my.index"), "--workers", "0"])
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    hits = zoo.search(moved / "my.index", ["x", "y"])
    assert [len(found) for found in hits] == [3, 3]
    assert all(Path(hit.path).is_file() and hit.path.startswith(str(moved)) for found in hits for hit in found)
    assert zoo.index(str(moved / "model"), moved / "mine", moved / "my.index", num_workers=0).kept == 3
    moved.rename(tmp_path)


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta" and tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_search_prints_a_table_json_and_a_page(model, videos, tmp_path, monkeypatch, capsys):
    hub.save(model, tmp_path / "model")
    write_video(videos / "film.mp4", np.random.default_rng(0).integers(0, 255, (60, 40, 48, 3), np.uint8), 12)
    monkeypatch.chdir(tmp_path)
    main(["index", "model", "mine", "-o", "my.index", "--window", "3", "--workers", "0"])
    capsys.readouterr()
    (tmp_path / "pages").mkdir()
    queries = ["a red <i>circle</i> moves left", "green"]
    main(["search", "my.index", *queries, "--topk", "4", "--html", "pages/out.html"])
    table = capsys.readouterr().out
    assert queries[0] in table and table.count("mine/deep/a") <= 2 and "Page: pages/out.html" in table
    main(["search", "my.index", *queries, "--topk", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [part["query"] for part in found] == queries and all(len(part["results"]) == 4 for part in found)
    hits = [hit for part in found for hit in part["results"]]
    for hit, line in zip(hits, [line for line in table.splitlines() if line.strip()[:1].isdigit()], strict=True):
        shown = [f"{hit['score']:.3f}", clock(hit["start"]), clock(hit["end"]), os.path.relpath(hit["path"])]
        assert line.split(maxsplit=4)[1:] == shown

    page = Page((tmp_path / "pages/out.html").read_text())
    assert not page.open and queries[0] in page.text and not any(tag in ("i", "b") for tag, _ in page.tags)
    shown = [attrs for tag, attrs in page.tags if tag == "video"]
    for hit, attrs in zip(hits, shown, strict=True):
        address = urllib.parse.urlsplit(attrs["src"])
        assert (tmp_path / "pages" / urllib.parse.unquote(address.path)).resolve() == Path(hit["path"])
        start, end = map(float, address.fragment.removeprefix("t=").split(","))
        assert not address.scheme and (start, end) == (hit["start"], hit["end"])
        still, moving = (Image.open(io.BytesIO(b64decode(attrs[name].removeprefix("data:image/webp;base64,"))))
                         for name in ("poster", "data-moving"))  # fmt: skip
        assert (still.n_frames, moving.n_frames) == (1, 8) and still.size == moving.size == (192, 160)
        assert Path(hit["path"]).name in page.text
    outside = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href") and ":" in v]
    assert not outside and not any(tag == "link" or (tag == "script" and attrs) for tag, attrs in page.tags)

    Path(hits[0]["path"]).unlink()
    main(["search", "my.index", queries[0], "--topk", "1", "--html", "out.html"])
    assert "cannot be read any more" in (tmp_path / "out.html").read_text()


@pytest.fixture(scope="module")
def made(workspace, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "my.index"
    zoo.index(str(workspace / "model"), workspace / "videos/film.mp4", out, num_workers=0)
    hub.save(tiny(seed=1), out.parent / "other")
    hub.save(tiny(num_frames=5), out.parent / "longer")
    (out.parent / "none").mkdir()
    hub.save(tiny(), out.parent / "gone-model")
    zoo.index(str(out.parent / "gone-model"), workspace / "videos/film.mp4", out.parent / "moved", num_workers=0)
    shutil.rmtree(out.parent / "gone-model")
    zoo.index("videomamba-nano-motion", workspace / "videos/film.mp4", out.parent / "looks", num_workers=0)
    for name, text in LISTS.items():
        (out.parent / name).write_text(text)
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("index {model} -o {new}", "A model and videos are needed; write: zoo index MODEL VIDEOS -o INDEX."),
        ("index {model} http://127.0.0.1:9/a.mp4 -o {new}", "There is no file or folder http://127.0.0.1:9/a.mp4"),
        ("index {model} memory://nothing -o {new}", "There is no file or folder memory://nothing"),
        ("index {model} {videos} -o ftp://host/x", "is no place for a table; name a local folder, or a URL of s3://"),
        ("index {model} {videos} -o {new} --ray auto --shard auto", "--ray and --shard both share the work out"),
        ("index {model} {videos} -o {new} --shard auto", "--shard auto reads RANK and WORLD_SIZE, or SLURM_PROCID"),
        ("index {model} {videos} -o {new} --metadata {none}", "none cannot be read as CSV"),
        ("index {model} {videos} -o {new} --metadata {no-path}", "has the columns name, place; it needs path"),
        ("index {model} {videos} -o {new} --metadata {taken}", "has the columns path, start; it needs path"),
        ("index {model} {videos} -o {new} --metadata {twice}", "has two lines about "),
        ("index {model} {videos} -o {new} --metadata {torn}", "torn cannot be read as CSV"),
        ("index {model} {videos} -o {new} --optimise", "--convert and --optimise stand alone"),
        ("index --optimise -o {new}", "is no index of videos; make one"),
        ("index --convert {none} -o {new}", "is no index of the former format"),
        ("search {looks} red", "cannot compare texts with videos; search it by a clip: --like CLIP."),
        ("search {made}", "There is nothing to search for; give a text, or a clip with --like."),
        ("search {made} --like {none}/gone.mp4", "gone.mp4 does not exist; check the path."),
        ("search {made} red --where nothing=1", "The condition 'nothing=1' cannot be applied"),
        ("index {model} {new} -o {new}.index", "There is no file or folder {new}"),
        ("index {model} {none} -o {new}", "holds no videos (files ending in .3gp"),
        ("index {model} {videos} -o {none}/..", "exists and is no index"),
        ("index {model} {videos} -o {new} --shard 3/2", "--shard 3/2 is gone; start a command without it"),
        ("index {model} {videos} -o {new} --window 0", "--window is 0"),
        ("index {model} {videos} -o {new} --batch-size 0", "--batch-size is 0; it has to be from 1"),
        ("index {model} {videos} -o {new} --batch-size 1000000000", "--batch-size is 1000000000; it has to be from 1"),
        ("index {model} {videos} -o {new} --workers 100000", "--workers is 100000; it has to be from 0 to 256"),
        ("index {model} {videos} -o {new} --window 1e-9", "--window is 1e-09; it has to be from 0.01"),
        ("index {model} {videos} -o {new} --window nan", "--window is nan; it has to be from 0.01"),
        ("index {model} {videos} -o {film}", "{film} is a file and is not replaced; name a folder"),
        ("index {other} {videos} -o {made}", "was made with other weights"),
        ("index {longer} {videos} -o {made}", "was made with another num_frames of the model"),
        ("index {model} {videos} -o {made} --window 5", "was made with windows of 20 s in float32"),
        ("index {model} {videos} -o {made} --dtype float16", "was made with windows of 20 s in float32"),
        ("index {model} {videos} -o {new} --device nowhere", "'nowhere' cannot be used"),
        ("search {none} red", "is no index of videos; make one: zoo index"),
        ("search {made} red --model {other}", "was made with other weights"),
        ("search {moved} red", "is not at {gone-model}; say where it is: --model"),
        ("search {made} red --topk 0", "--topk is 0"),
        ("search {made} red --topk 1000000000", "--topk is 1000000000; it has to be from 1 to 100,000"),
        ("search {made} red --html {film}/out.html", "cannot be written, since {film} is no folder"),
        ("search {made} red --html {none}", "has none of the endings .html"),
        ("search {made} red --html /dev/null", "has none of the endings .html"),
    ],
)
def test_mistakes_are_one_sentence(workspace, made, tmp_path, capsys, arguments, words):
    places = {"videos": workspace / "videos", "model": workspace / "model", "made": made, "new": tmp_path / "new"}
    places["film"] = workspace / "videos/film.mp4"
    places |= {name: made.parent / name for name in ("other", "longer", "none", "moved", "looks", "gone-model", *LISTS)}
    with pytest.raises(SystemExit) as exit_:
        main([word.format(**places) for word in arguments.split()])
    printed = capsys.readouterr()
    assert exit_.value.code == 1 and printed.out == ""
    assert words.format(**places) in printed.err and printed.err.count("\n") == 1 and printed.err.startswith("zoo: ")


def test_texts_that_say_nothing_are_refused(made, capsys):
    for text, sentence in (
        ("", "A text to search for is empty"),
        (" \n", "is empty"),
        ("\udcff", "is not valid UTF-8"),
    ):
        with pytest.raises(SystemExit, match="1"):
            main(["search", str(made), "red", text])
        assert sentence in capsys.readouterr().err
        with pytest.raises(zoo.ZooError, match=sentence):
            zoo.search(made, text)


def test_a_model_that_gives_no_numbers_makes_no_index(workspace, tmp_path):
    broken = tiny()
    torch.nn.init.constant_(broken.net.clip.visual_projection.weight, torch.nan)
    with pytest.raises(zoo.ZooError, match="not finite"):
        zoo.index(broken, workspace / "videos/film.mp4", tmp_path / "i", num_workers=0)
    assert len(Index.open(tmp_path / "i")) == 0


@pytest.mark.slow
def test_a_video_of_too_many_stretches_is_left_out(model, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.limits.WINDOWS", 20)  # the real bound takes a video of days
    with pytest.warns(UserWarning, match=r"film\.mp4 is 5 s long, which makes 50 windows .*left out of the index"):
        summary = zoo.index(model, workspace / "videos", tmp_path / "i", window=0.1, num_workers=0)
    assert (summary.unreadable, summary.indexed) == (1, NUM_CLIPS)


def test_rows_of_a_csv_become_columns(model, videos, tmp_path, capsys):
    (tmp_path / "about.csv").write_text(f'path,place,number\nmine/a.mp4,"the kitchen, new",1\n{videos}/b.MP4,hall,2\n')
    hub.save(model, tmp_path / "model")
    command = ["index", str(tmp_path / "model"), str(videos), "-o", str(tmp_path / "i"), "--workers", "0"]
    main(command)
    main([*command, "--metadata", str(tmp_path / "about.csv")])
    (tmp_path / "about.csv").write_text("path,place,number\nmine/a.mp4,garden,5\n")
    shutil.copy(videos / "a.mp4", videos / "c.mp4")

    def found(where):
        return [Path(hit.path).name for hit in zoo.search(tmp_path / "i", "red", where=where)[0]]

    assert found("place LIKE '%kitchen%'") == ["a.mp4"] and found("number = 2") == ["b.MP4"]
    main([*command, "--metadata", str(tmp_path / "about.csv")])
    assert found("place = 'garden' AND number > 4") == ["a.mp4"] and found("place = 'hall'") == ["b.MP4"]
    assert found("number IS NULL AND path LIKE 'mine/c%'") == ["c.mp4"]
    capsys.readouterr()
    main(["search", str(tmp_path / "i"), "red", "--where", "number > 99"])
    assert capsys.readouterr().out == "red: nothing fits the condition.\n"


def test_videos_behind_urls(model, videos, tmp_path):
    """Over HTTP on loopback, and from fsspec's store in memory, whose files change and go."""
    store = MemoryFileSystem()
    for name in ("a.mp4", "b.MP4"):
        store.pipe(f"/bucket/deep/{name}", (videos / name).read_bytes())
    store.pipe("/bucket/broken.mp4", b"no video")
    with pytest.warns(UserWarning, match="memory://bucket/broken.mp4 .*left out of the index"):
        summary = zoo.index(model, "memory://bucket", tmp_path / "i", num_workers=0)
    assert summary == (3, 2, 1, 0, 0, 2)
    assert zoo.index(model, "memory://bucket/", tmp_path / "i", num_workers=0) == (3, 0, 1, 2, 0, 2)
    assert {hit.path for hit in zoo.search(tmp_path / "i", "red", model=model)[0]} == {
        "memory://bucket/deep/a.mp4", "memory://bucket/deep/b.MP4"
    }  # fmt: skip
    store.rm("/bucket/broken.mp4")
    store.pipe("/bucket/deep/a.mp4", (videos / "b.MP4").read_bytes())
    assert zoo.index(model, "memory://bucket", tmp_path / "i", num_workers=0) == (2, 1, 0, 1, 2, 2)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=videos)
    handler.func.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.mp4"
        assert zoo.index(model, url, tmp_path / "i", num_workers=1) == (1, 1, 0, 0, 0, 3)
        local = zoo.index(model, videos / "a.mp4", tmp_path / "local", num_workers=0)
        assert local.vectors == 1
        (vector,) = [vector for record, vector in Index.open(tmp_path / "i").records() if record.path == url]
        assert vector.equal(next(Index.open(tmp_path / "local").records())[1])
    finally:
        server.shutdown()
        server.server_close()


def test_a_hundred_texts_at_once_are_answered_like_each_alone(workspace, model, made):
    texts = [f"{colour} {shape} {number}" for colour in ("red", "blue") for shape in ("disc", "star") for number in
             range(25)]  # fmt: skip
    index = Index.open(made)
    together = zoo.search(index, texts, topk=3, model=model)
    assert len(together) == 100 and any(hits != together[0] for hits in together)
    for text, hits in list(zip(texts, together, strict=True))[::9]:
        (alone,) = zoo.search(index, text, topk=3, model=model)
        assert [hit[:3] for hit in alone] == [hit[:3] for hit in hits]
        assert [hit.score for hit in alone] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    with torch.inference_mode():
        vectors = model.encode_text(texts)
    assert [[hit[1:] for hit in hits] for hits in index.search(vectors, 3)] == [[hit[1:] for hit in hits] for hits in
                                                                               together]  # fmt: skip


def test_search_by_a_clip_with_a_text_model_and_a_classifier(workspace, model, tmp_path, capsys):
    clip = str(sorted((workspace / "videos").glob("*/*.mp4"))[5])
    zoo.index(model, workspace / "videos", tmp_path / "i", num_workers=0)
    text, like, again = zoo.search(tmp_path / "i", "red", like=[clip, clip], topk=NUM_CLIPS, model=model)
    assert like == again and like[0].path == clip and like[0].score == pytest.approx(1, abs=1e-5)
    vectors = {record.path: vector.double().numpy() for record, vector in Index.open(tmp_path / "i").records()}
    place = {os.path.normpath(tmp_path / path): vector for path, vector in vectors.items()}
    mine = place[clip]
    assert [hit.score for hit in like] == pytest.approx([float(place[hit.path] @ mine) for hit in like], abs=1e-6)
    assert text == zoo.search(tmp_path / "i", ["red"], topk=NUM_CLIPS, model=model)[0]

    main(["index", "videomamba-nano-motion", str(workspace / "videos"), "-o", str(tmp_path / "looks")])
    assert "--like CLIP.mp4" in capsys.readouterr().out
    main(["search", str(tmp_path / "looks"), "--like", clip, "--topk", "3", "--json", "--exact"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["query"] == clip and answer["results"][0]["path"] == clip
    expected = torch.nn.functional.normalize(zoo.extract_features("videomamba-nano-motion", clip), dim=0)
    stored = {os.path.normpath(tmp_path / r.path): v for r, v in Index.open(tmp_path / "looks").records()}
    torch.testing.assert_close(stored[clip], expected, atol=1e-5, rtol=1e-5)


def test_the_callable_gives_the_rows_of_the_table(workspace, model, videos, tmp_path):
    (videos / "torn.mp4").write_bytes(b"torn")
    paths = sorted(map(str, videos.rglob("[!.]*.[mM][pP]4")))
    embedder = zoo.VideoEmbedder(model, window=0.3, batch_size=2)
    rows = embedder({"path": paths})
    assert [*rows] == ["vector", "path", "start", "end", "size", "mtime", "error"]
    (broken,) = [number for number, error in enumerate(rows["error"]) if error is not None]
    assert rows["path"][broken].endswith("torn.mp4") and rows["vector"][broken] is rows["start"][broken] is None
    with pytest.warns(UserWarning, match=r"torn\.mp4"):
        zoo.index(model, videos, tmp_path / "i", window=0.3, batch_size=2, num_workers=0)
    table = {(os.path.normpath(tmp_path / r.path), *r[1:]): v for r, v in Index.open(tmp_path / "i").records()}
    made = dict(zip(zip(rows["path"], rows["start"], rows["end"], strict=True), rows["vector"], strict=True))
    assert made.keys() - table.keys() == {(rows["path"][broken], None, None)} and len(table) == len(made) - 1 == 9
    for key, vector in table.items():
        torch.testing.assert_close(torch.from_numpy(made[key]), vector)
    span = embedder({"path": paths[:1], "start": [0.0], "end": [0.3]})
    assert (span["start"], span["end"], len(span["vector"])) == ([0.0], [0.3], 1)
    assert embedder([])["path"] == []


def test_an_index_of_the_former_format_is_converted(workspace, model, videos, tmp_path, capsys):
    """Written here as it was documented; some parts stand for others. Then it goes on as if it had always been so."""
    hub.save(model, tmp_path / "model")
    main(["index", str(tmp_path / "model"), str(videos), "-o", str(tmp_path / "new.index"), "--workers", "0"])
    index = Index.open(tmp_path / "new.index")
    rows, old = dict(index.records()), tmp_path / "old.index"
    old.mkdir()
    head = {"format": "video-mamba-zoo index", "version": 1, "dims": index.dims, "dtype": "float32", **index.settings}
    (old / "index.json").write_text(json.dumps(head))
    files = [file._asdict() for file in index.files.values()]
    for number, (some, replaces) in enumerate(((list(rows)[:2], []), (list(rows), ["part-0.safetensors"]))):
        tensors = {
            "vectors": torch.stack([rows[record] for record in some]),
            "file": torch.tensor([[f["path"] for f in files].index(record.path) for record in some]),
            "seconds": torch.tensor([record[1:] for record in some], dtype=torch.float64),
        }
        metadata = {"files": json.dumps(files), "replaces": json.dumps(replaces)}
        save_file(tensors, old / f"part-{number}.safetensors", metadata)
    (tmp_path / "deep").mkdir()
    for call in (["search", str(old), "red"], ["index", str(tmp_path / "model"), str(videos), "-o", str(old)]):
        with pytest.raises(SystemExit):
            main(call)
        assert "is an index of the former format; convert it: zoo index --convert" in capsys.readouterr().err
    main(["index", "--convert", str(old), "-o", str(tmp_path / "deep/my.index")])
    assert "my.index: 3 stretches to search." in capsys.readouterr().out
    found, expected = (zoo.search(tmp_path / name, "red", topk=9)[0] for name in ("deep/my.index", "new.index"))
    assert found == expected
    assert zoo.index(str(tmp_path / "model"), videos, tmp_path / "deep/my.index", num_workers=0).kept == 3
    with pytest.raises(zoo.ZooError, match="exists and is not replaced"):
        convert_index(old, tmp_path / "deep/my.index")
    for name, text in (("index.json", "[" * 99_999), ("index.json", "{}"), ("part-1.safetensors", "torn")):
        broken = shutil.copytree(old, tmp_path / "broken")
        (broken / name).write_text(text)
        with pytest.raises(zoo.ZooError, match=r"former format|is not of the format|is damaged"):
            convert_index(broken, tmp_path / "never")
        shutil.rmtree(broken)
    assert not (tmp_path / "never").exists() and not list(tmp_path.glob(".never*"))


def test_a_second_process_on_the_same_share_is_refused(workspace, model, tmp_path):
    zoo.index(model, workspace / "videos/film.mp4", tmp_path / "i", num_workers=0)
    code = "from zoo.retrieval.table import Index\n"
    code += f"with Index.open({str(tmp_path / 'i')!r}).locked('shard-1-of-1'):\n"
    code += "    print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for shard in ((1, 1), (2, 3)):
            with pytest.raises(zoo.ZooError, match="Another process is writing "):
                zoo.index(model, workspace / "videos/film.mp4", tmp_path / "i", shard=shard)
    finally:
        holder.kill()
        holder.communicate()
    assert zoo.index(model, workspace / "videos/film.mp4", tmp_path / "i", num_workers=0).kept == 1


def test_the_documented_way_to_read_an_index(made, model, monkeypatch):
    """The program of docs/video_search.md, which uses nothing of the zoo."""
    text = (Path(__file__).parents[3] / "docs/video_search.md").read_text()
    program = text.split("```python\n# read")[1].split("```")[0]
    vector = model.encode_text("red").detach()[0].numpy()
    names = {"folder": str(made), "query": vector}
    exec(f"# read{program}", names)
    hits = zoo.search(made, "red", model=model)[0]
    assert [(os.path.realpath(path), *rest) for path, *rest in names["best"]] == [
        (hit.path, hit.start, hit.end, pytest.approx(hit.score, abs=1e-5)) for hit in hits
    ]


@pytest.mark.slow
def test_the_bar_and_the_warning_on_a_terminal(videos, workspace):
    """In a terminal of 100 columns: a bar that vanishes, and one line per unreadable file above it."""
    (videos / "empty.mp4").touch()
    primary, secondary = os.openpty()
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [ZOO, "index", workspace / "model", "mine", "-o", "i", "--workers", "2"]
    process = subprocess.Popen(command, stdout=secondary, stderr=secondary, env=env, cwd=videos.parent)
    os.close(secondary)
    written = b""
    try:
        while chunk := os.read(primary, 65536):
            written += chunk
    except OSError:  # Linux reports the closed terminal as an I/O error
        pass
    os.close(primary)
    assert process.wait(timeout=600) == 0
    text = written.decode()
    assert "/4" in text and "files" in text
    assert text.count("empty.mp4 is empty (0 bytes); copy or download it again (left out of the index).") == 1
    assert "4 videos: 3 indexed now, 0 kept, 1 unreadable, 0 dropped; 3 stretches to search." in text
