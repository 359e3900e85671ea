"""`zoo index`, `zoo extract` and `zoo predict -o` killed at any moment: the next run completes an equal table."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import hub
from datamodules.synthetic.writing import write_video
from lightning_modules.tasks.classification import VideoClassifier
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main
from zoo.tables import output
from zoo.tables.table import VideoTable, Where

lancedb = pytest.importorskip("lancedb")
parquet = pytest.importorskip("pyarrow.parquet")

COMMANDS = {
    "index": ("my.index", ["--window", "1", "--batch-size", "2"]),
    "extract": ("features.lance", ["--window", "1", "--stride", "0.5", "--batch-size", "4"]),
    "predict": ("labels.parquet", ["--clips", "2", "--crops", "1"]),
}
KILLS = 20
PROGRAM = """
import zoo.tables.fill
from zoo.commands.main import main
zoo.tables.fill.SAVE_SECONDS = 0  # a commit for each chunk of files: more moments that matter
main({words})
"""
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {"projection_dim": 32, "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
        "vision_config": {"image_size": 32, "patch_size": 16, **TOWER}}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """14 clips of 0.7 to 4 s and a broken file; beside them text/ and net/, models."""
    folder = tmp_path_factory.mktemp("fill") / "videos"
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (48, 40, 48, 3), np.uint8)
    for number in range(14):
        write_video(folder / f"{number:02}.mp4", frames[40 - 3 * number if number < 13 else 0 :], 12)
    (folder / "torn.mp4").write_bytes(b"torn")
    torch.manual_seed(0)
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4), folder.parent / "text")
    size = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32, "tubelet_size": 2}
    hub.save(VideoClassifier(3, **size), folder.parent / "net")
    return folder


def rows_of(out):
    """All rows, sorted."""
    if out.suffix == ".parquet":
        rows = parquet.read_table(out).to_pylist()
    else:
        database, name = (out, "videos") if out.suffix == ".index" else (out.parent, out.stem)
        rows = VideoTable.read(Where(str(database), name, str(out), str(out))).to_arrow().to_pylist()
    return sorted(rows, key=lambda row: (row["path"], row["start"] or 0))


@pytest.mark.slow
def test_killed_at_any_of_20_moments_the_next_run_completes_an_equal_table(videos, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Processes come from one that has imported torch; each is real, and so are its loader processes.
    context = multiprocessing.get_context("forkserver")
    modules = ["zoo.retrieval.search", "zoo.inference.features", "zoo.inference.predictor"]
    modules += ["lightning_modules.tasks.classification", "lightning_modules.tasks.retrieval", "pyarrow.parquet"]
    context.set_forkserver_preload(modules)
    moments = random.Random(0)

    def begin(name, folder):
        place, options = COMMANDS[name]
        out = videos.parent / folder / place
        out.parent.mkdir(exist_ok=True)
        model = str(videos.parent / ("text" if name == "index" else "net"))
        words = [name, model, str(videos), "-o", str(out), "--workers", "1", "--json", *options]
        process = context.Process(target=exec, args=(PROGRAM.format(words=words),))
        process.start()
        return process, out

    server = context.Process(target=len, args=("",))  # starts the server, which imports
    server.start()
    server.join(600)
    seconds, whole = {}, {}
    for name in COMMANDS:
        started = time.monotonic()
        process, out = begin(name, "calm")
        process.join(600)
        assert process.exitcode == 0
        seconds[name], whole[name] = time.monotonic() - started, rows_of(out)
        assert len(whole[name]) >= 15
    killed = dict.fromkeys(COMMANDS, 0)
    for number in range(3 * KILLS):
        if sum(killed.values()) == KILLS:
            break
        name = min(killed, key=killed.get)
        process, out = begin(name, f"killed{number}")
        process.join(moments.uniform(0, seconds[name]))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join(600)
            killed[name] += process.exitcode == -signal.SIGKILL
        else:
            seconds[name] *= 0.6  # it was faster than the moment
        process, out = begin(name, f"killed{number}")
        process.join(600)
        assert process.exitcode == 0, (name, number)
        assert rows_of(out) == whole[name], (name, number)
        assert sorted(os.listdir(out.parent)) == [out.name], (name, number)
    assert sum(killed.values()) == KILLS


@pytest.mark.parametrize("stop", ["rename", "rmtree", "write_table"])
def test_a_parquet_file_is_whole_wherever_its_completion_stops(videos, tmp_path, monkeypatch, capsys, stop):
    """Before the file takes its place, before the hidden table goes, and while that is removed."""
    out = tmp_path / "labels.parquet"
    words = ["predict", videos.parent / "net", videos / "torn.mp4", videos / "00.mp4", "-o", out, "--clips", "1",
             "--crops", "1", "--workers", "0"]  # fmt: skip
    command = [*map(str, words)]
    main(command)
    first = rows_of(out)
    more = [*command[:3], str(videos / "01.mp4"), *command[3:]]
    real = {"rename": os.rename, "rmtree": shutil.rmtree, "write_table": parquet.write_table}[stop]

    def stopped(*args, **kwargs):
        if stop == "rename" and not str(args[1]).startswith(str(args[0])):
            return real(*args, **kwargs)  # the beginning of the run
        if stop == "write_table":
            Path(args[1]).write_bytes(b"PAR1 torn")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        owner = {"rename": output.os, "rmtree": output.shutil, "write_table": parquet}[stop]
        patch.setattr(owner, stop, stopped)
        with pytest.raises(SystemExit):
            main(more)
    assert rows_of(out) == first if stop == "write_table" else len(rows_of(out)) == 3
    capsys.readouterr()
    main(more)
    assert "3 videos: 0 predicted now, 2 kept, 1 unreadable, 0 dropped; 3 rows." in capsys.readouterr().out
    assert len(rows_of(out)) == 3 and os.listdir(tmp_path) == [out.name]


@pytest.mark.slow
def test_a_second_process_is_refused(videos, tmp_path, capsys):
    words = ["predict", videos.parent / "net", videos / "00.mp4", "-o", tmp_path / "a.lance"]
    command = [*map(str, words), "--clips", "1", "--crops", "1"]
    main([*command, "--workers", "0"])
    place = str(tmp_path / "a.lance")
    table = VideoTable.read(Where(str(tmp_path), "a", place, place))
    context = multiprocessing.get_context("spawn")
    with table.locked("shard-1-of-1"):  # of this process: another one has to be refused
        process = context.Process(target=main, args=([*command, "--workers", "0"],))
        process.start()
        process.join(600)
    assert process.exitcode == 1
