"""Folders of runs: names, what "last" and "best" mean, and runs that are killed and go on in their place."""

import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

import zoo.cli
from datamodules.synthetic.writing import generate
from zoo.errors import ZooError
from zoo.runs import Metrics, Runs, discard, new_folder, steps_done

CONFIG = {
    "include": [{"trainer": str(Path(zoo.cli.__file__).parent / "recipes" / "parts" / "trainer.yaml")}],
    "model": {
        "class_path": "lightning_modules.VideoClassifier",
        "init_args": {"num_classes": None, "embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32},
    },
    "data": {
        "class_path": "datamodules.VideoFolder",
        "init_args": {"root": "data", "batch_size": 2, "num_workers": 0},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 6, "log_every_n_steps": 2, "enable_progress_bar": False},
}
OFTEN = ["--trainer.callbacks.LastCheckpoint.every_minutes", "0"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def steps_with(rows: list[dict[str, str]], column: str) -> list[int]:
    return [int(row["step"]) for row in rows if row[column]]


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "root", "folder", "version"),
    [
        ("recipes/demo.yaml", None, "runs/demo", None),
        ("recipes/demo.yaml", "/data/out", "/data/out/demo", None),
        (None, None, "runs/VideoClassifier", None),
        ("runs/demo/version_3/config.yaml", None, "runs/demo", "runs/demo/version_3"),
        ("/far/demo/version_3/config.yaml", None, "/far/demo", "/far/demo/version_3"),
        ("/far/demo/version_3/config.yaml", "out", "out/demo", "/far/demo/version_3"),
        ("version_3/mine.yaml", None, "runs/mine", None),
    ],
)
def test_runs_are_named_after_the_config(config, root, folder, version):
    runs = Runs.of(config and Path(config), "VideoClassifier", root)
    assert runs == (Path(folder), version and Path(version))


def test_runs_at_a_url_are_refused():
    with pytest.raises(ZooError, match=r"trainer\.default_root_dir is s3://bucket/x: .*set trainer\.logger"):
        Runs.of(None, "Model", "s3://bucket/x")


def test_the_newest_run_with_the_checkpoint_is_found(tmp_path):
    runs = Runs(tmp_path / "demo")
    assert runs.find("last") is None
    for number in (0, 2, 9, 10, 11):
        (runs.folder / f"version_{number}" / "checkpoints").mkdir(parents=True)
    for name in ("version_12", "version_x", "test_20", "version_13.old"):
        (runs.folder / name).mkdir()
    assert runs.find("last") is None
    for number in (2, 9, 10):
        (runs.folder / f"version_{number}" / "checkpoints" / "last.ckpt").touch()
    (runs.folder / "version_9" / "checkpoints" / "best.ckpt").touch()
    assert runs.find("last") == runs.folder / "version_10" / "checkpoints" / "last.ckpt"
    assert runs.find("best") == runs.folder / "version_9" / "checkpoints" / "best.ckpt"
    assert runs._replace(version=runs.folder / "version_2").find("last").parts[-3] == "version_2"
    assert runs._replace(version=runs.folder / "version_0").find("last") is None


def test_each_program_gets_a_folder_of_its_own(tmp_path):
    """Many at once; the count goes on behind the highest number, gaps stay."""
    assert new_folder(tmp_path / "a" / "b", "version").name == "version_0"
    (tmp_path / "version_9").mkdir()
    (tmp_path / "version_3").mkdir()
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path, "version"), range(64)))
    assert sorted(int(folder.name.removeprefix("version_")) for folder in folders) == list(range(10, 74))


def test_other_processes_make_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.runs.rank_zero_only.rank", 1)
    assert new_folder(tmp_path, "version") == tmp_path / "version_0"
    (tmp_path / "version_4").mkdir()
    assert new_folder(tmp_path, "version") == tmp_path / "version_4"
    assert [folder.name for folder in tmp_path.iterdir()] == ["version_4"]


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(ZooError, match=r"last\.ckpt cannot be read .*; remove it, or pass another to --ckpt_path"):
        steps_done(tmp_path / "last.ckpt")
    torch.save({"global_step": 7, "state_dict": {"w": torch.zeros(3)}}, tmp_path / "last.ckpt")
    assert steps_done(tmp_path / "last.ckpt") == 7


def test_only_the_record_of_a_start_is_discarded(tmp_path):
    for kept in ("metrics.csv", "checkpoints/last.ckpt", "notes.txt"):
        folder = tmp_path / "runs" / "demo" / "version_0"
        (folder / "checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "hparams.yaml", "events.out.tfevents.1.host", kept):
            (folder / name).touch()
        discard([folder, folder.parent, folder.parent.parent])
        assert (folder / "config.yaml").exists() and (folder / kept).exists()
        (folder / kept).unlink()
        discard([folder, folder.parent])
        assert list((tmp_path / "runs").iterdir()) == []


# metrics.csv --------------------------------------------------------------------------------------------------------


def test_rows_before_the_step_stay_and_later_ones_go(tmp_path):
    folder = tmp_path / "demo" / "version_0"
    file = folder / "metrics.csv"
    first = Metrics(folder)
    for step in range(6):
        first.log_metrics({"loss": step / 10}, step)
        first.save()
    first.log_metrics({"val": 0.5, "epoch": 0}, 5)
    first.save()
    whole = rows_of(file)
    assert [row["step"] for row in whole] == ["0", "1", "2", "3", "4", "5", "5"]
    with file.open("a") as opened:
        opened.write("0,0.")  # the process was killed while it wrote
    second = Metrics(folder, first_step=4)
    second.log_metrics({"loss": 0.45, "new": 1.0}, 4)
    second.save()
    rows = rows_of(file)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole[:4]] + ["0.45"]
    assert [row["new"] for row in rows] == ["", "", "", "", "1.0"]
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("content", ["", "epoch,lo", "epoch,loss,step\r\n", "epoch,loss,step\r\n0,0.1"])
def test_a_file_that_was_only_begun_does_no_harm(tmp_path, content):
    folder = tmp_path / "demo" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_bytes(content.encode())
    logger = Metrics(folder, first_step=5)
    logger.log_metrics({"loss": 0.5}, 5)
    logger.save()
    assert [(row["loss"], row["step"]) for row in rows_of(folder / "metrics.csv")] == [("0.5", "5")]


# Through the front door ---------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    generate(tmp_path / "data", num_train=16, num_val=4, num_test=4, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lightning(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
    return zoo.cli.ZooCLI()


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "zoo", *arguments]
    return subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def rows_until(file: Path, step: int) -> bool:
    """Whether a row of that step has been written; no number in it is as short and stands between commas."""
    return file.exists() and f",{step}," in file.read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_in_its_folder(workspace, monkeypatch, caplog):
    """Kill -9 in the second epoch of six, the folder moved; then last, best, and a new version beside it."""
    metrics = workspace / "runs" / "mine" / "version_0" / "metrics.csv"
    process = start("fit", "--config", "mine.yaml", "--ckpt_path", "last", *OFTEN)
    wait_for(lambda: rows_until(metrics, 11), process)
    process.kill()
    assert "No run to resume in runs/mine." in process.communicate()[1]
    (workspace / "runs").rename(workspace / "kept")
    run = workspace / "kept" / "mine" / "version_0"
    metrics = run / "metrics.csv"
    before, config = rows_of(metrics), yaml.safe_load((run / "config.yaml").read_text())
    assert config["ckpt_path"] is None and "version_0" not in (run / "config.yaml").read_text()
    done = steps_done(run / "checkpoints" / "last.ckpt")
    assert 8 < done < 48

    # A later start that was killed before its first checkpoint is passed over.
    (workspace / "kept" / "mine" / "version_1" / "checkpoints").mkdir(parents=True)
    cli = lightning("fit", "--config", "mine.yaml", "--ckpt_path", "last", *OFTEN, "--trainer.default_root_dir",
                    workspace / "kept", monkeypatch=monkeypatch)  # fmt: skip
    assert f"Resuming {run}." in caplog.messages
    assert cli.trainer.global_step == 48
    after = rows_of(metrics)
    assert steps_with(after, "train/loss") == list(range(1, 48, 2))
    assert steps_with(after, "val/top1") == list(range(7, 48, 8))
    assert steps_with(after, "train/clips_per_second") == list(range(1, 48, 2))
    values = [[row["train/loss"] for row in rows if row["train/loss"] and int(row["step"]) < done]
              for rows in (before, after)]  # fmt: skip
    assert values[0] == values[1]
    assert len({row["epoch"] for row in after if row["epoch"]}) == 6
    assert sorted(p.name for p in run.iterdir() if "tfevents" not in p.name) == [
        "checkpoints", "config.yaml", "curves.png", "hparams.yaml", "metrics.csv"]  # fmt: skip
    assert len(list(run.glob("events.out.tfevents.*"))) == 2
    assert {p.name for p in (run / "checkpoints").iterdir()} - {".last.ckpt.part"} == {"best.ckpt", "last.ckpt"}
    best = cli.trainer.checkpoint_callback
    assert best.best_model_path == str(run / "checkpoints" / "best.ckpt")
    assert list(best.best_k_models) == [best.best_model_path]
    scores = [float(row["val/top1"]) for row in after if row["val/top1"]]
    assert best.best_model_score.item() == pytest.approx(max(scores))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 48, 2))

    # It is finished now, whatever the number of workers.
    cli = lightning("fit", "--config", "mine.yaml", "--ckpt_path", "last", "--data.num_workers", "1",
                    "--trainer.default_root_dir", workspace / "kept", monkeypatch=monkeypatch)  # fmt: skip
    (said,) = [message for message in caplog.messages if "is finished" in message]
    assert said == (f"The run in {run} is finished; to train longer, raise trainer.max_epochs, which is 6, "
                    "or trainer.max_steps.")  # fmt: skip
    assert cli.trainer.global_step == 0 and rows_of(metrics) == after

    # The saved config names its own run, and can be run again.
    saved = run / "config.yaml"
    tested = lightning("test", "--config", saved, "--ckpt_path", "best", monkeypatch=monkeypatch)
    assert Path(tested.trainer.ckpt_path) == run / "checkpoints" / "best.ckpt"
    (row,) = rows_of(workspace / "kept" / "mine" / "test_0" / "metrics.csv")
    assert float(row["test/top1"]) == pytest.approx(tested.trainer.callback_metrics["test/top1"].item())
    again = lightning("fit", "--config", saved, "--trainer.max_steps", "1", "--trainer.callbacks.Curves", "null",
                      monkeypatch=monkeypatch)  # fmt: skip
    assert Path(again.trainer.log_dir) == workspace / "kept" / "mine" / "version_2"
    assert not (workspace / "kept" / "mine" / "version_2" / "curves.png").exists()
    assert rows_of(metrics) == after


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_of_the_step(workspace, monkeypatch):
    """As a cluster stops a program: no epoch and no half hour is over, and yet nothing is lost."""
    metrics = workspace / "runs" / "mine" / "version_0" / "metrics.csv"
    process = start("fit", "--config", "mine.yaml")
    wait_for(lambda: rows_until(metrics, 3), process)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate(timeout=600)[1]
    assert process.returncode == 128 + signal.SIGTERM
    done = steps_done(metrics.parent / "checkpoints" / "last.ckpt")
    assert 0 <= done - 1 - max(steps_with(rows_of(metrics), "train/loss")) <= 1
    assert (metrics.parent / "curves.png").read_bytes().startswith(b"\x89PNG")
    lightning("fit", "--config", "mine.yaml", "--ckpt_path", "last", monkeypatch=monkeypatch)
    assert steps_with(rows_of(metrics), "train/loss") == list(range(1, 48, 2))


def test_what_cannot_be_found_or_is_switched_off(workspace, monkeypatch):
    with pytest.raises(ZooError, match=r"There is no best\.ckpt of a run in runs/mine; train first, or pass a file"):
        lightning("test", "--config", "mine.yaml", "--ckpt_path", "best", monkeypatch=monkeypatch)
    quick = ["--config", "mine.yaml", "--trainer.max_steps", "1", "--trainer.callbacks.Summary=null"]
    lightning("fit", *quick, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false",
              monkeypatch=monkeypatch)  # fmt: skip
    lightning("fit", *quick, "--trainer.fast_dev_run", "true", monkeypatch=monkeypatch)
    # Lightning's own place for what has no logger.
    assert sorted(path.name for path in workspace.iterdir()) == ["config.yaml", "data", "mine.yaml"]
    with pytest.raises(ZooError, match=r"trainer\.callbacks has no Curve: did you mean 'Curves'"):
        lightning("fit", *quick, "--trainer.callbacks.Curve", "null", monkeypatch=monkeypatch)
