"""`--ray`: two nodes of a cluster on this machine do the work of one process, and one of them dies in the middle."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import hub
import zoo
from datamodules.synthetic.writing import write_video
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.retrieval.table import Index
from zoo.tables import ray_data

pytest.importorskip("lancedb")
ZOO = Path(sys.executable).with_name("zoo")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
NUM_CLIPS = 36


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """model/, and videos/ with 36 clips that take some time to decode and a broken file."""
    folder = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4), folder / "model")
    (folder / "videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (48, 45, 80, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    for number in range(4):
        write_video(folder / f"videos/{number:02}.mp4", frames[number * 8 :], 12)
    for number in range(4, NUM_CLIPS):
        shutil.copy(folder / f"videos/{number % 4:02}.mp4", folder / f"videos/{number:02}.mp4")
    (folder / "videos/torn.mp4").write_bytes(b"torn")
    return folder


@pytest.fixture
def cluster(monkeypatch):
    """A running cluster of two nodes with a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def start(folder, *arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([ZOO, *map(str, arguments)], cwd=folder, text=True, stdout=-1, stderr=-1, env=env)


def content(folder):
    """Rows by name of file and start."""
    found = {}
    for record, vector in Index.open(folder).records():
        found[record.path.rpartition("/")[2], record.start, record.end] = vector
    return found


@pytest.fixture(params=["local", "s3"])
def place(request, workspace, tmp_path):
    """A folder or bucket with the videos, as text; indices go there too."""
    if request.param == "local":
        shutil.copytree(workspace / "videos", tmp_path / "place/videos")
        return str(tmp_path / "place")
    bucket = request.getfixturevalue("object_store")
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(bucket)
    filesystem.put(str(workspace / "videos"), f"{path}/videos", recursive=True)
    return bucket


@pytest.mark.slow
def test_a_node_that_dies_costs_a_retry_and_nothing_else(workspace, tmp_path, place, cluster):
    videos, out = f"{place}/videos", f"{place}/ray.index"
    options = ["--window", "1", "--batch-size", "2"]
    command = ["index", "model", videos, "-o", out, *options, "--ray", cluster.address, "--json"]
    running = start(workspace, *command)
    while not (Index.exists(out) and Index.open(out).count_rows()):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    cluster.remove_node(cluster.second, allow_graceful=False)
    before = Index.open(out).count_rows()
    said, err = running.communicate(timeout=600)
    assert running.returncode == 0, err
    done = json.loads(said)  # Ray's news of the dead node are elsewhere
    assert (done["indexed"], done["kept"], done["unreadable"]) == (NUM_CLIPS, 0, 1)
    assert err.count("(left out of the index).") == 1
    assert before < Index.open(out).count_rows()  # it was in the middle

    with pytest.warns(UserWarning, match=r"torn\.mp4"):
        zoo.index(str(workspace / "model"), workspace / "videos", tmp_path / "alone.index", window=1, batch_size=2,
                  num_workers=0)  # fmt: skip
    alone, together = content(tmp_path / "alone.index"), content(out)
    assert alone.keys() == together.keys() and len(alone) > NUM_CLIPS
    assert Index.open(out).count_rows() == Index.open(tmp_path / "alone.index").count_rows() == len(alone) + 1
    for key, vector in alone.items():
        torch.testing.assert_close(together[key], vector, atol=1e-5, rtol=0)

    # With the node that is left: nothing is done twice, and what is new is done.
    shutil.copy(workspace / "videos/00.mp4", tmp_path / "new.mp4")
    again = start(workspace, *command[:3], tmp_path / "new.mp4", *command[3:])
    said, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    done = json.loads(said)
    assert (done["indexed"], done["kept"], done["unreadable"]) == (1, NUM_CLIPS, 1)


@pytest.mark.slow
def test_labels_and_features_are_those_of_one_process(workspace, tmp_path, cluster):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("00.mp4", "01.mp4", "02.mp4", "03.mp4", "torn.mp4"):
        shutil.copy(workspace / "videos" / name, videos)
    options = {"predict": [], "extract": ["--window", "1", "--stride", "1"]}
    for job, more in options.items():
        rows = []
        for name, engine in (("ray", ["--ray", cluster.address]), ("alone", ["--workers", "0"])):
            out = tmp_path / f"{job}-{name}.parquet"
            done = start(workspace, job, "videomamba-nano-motion", videos, "-o", out, *more, *engine, "--json")
            said, err = done.communicate(timeout=600)
            assert done.returncode == 0, err
            assert json.loads(said)["unreadable"] == 1
            rows.append(pyarrow.parquet.read_table(out).to_pylist())
        assert len(rows[0]) == len(rows[1]) >= 5
        for one, other in zip(*rows, strict=True):
            for key in ("probabilities", "features"):
                if one.get(key) is not None:
                    np.testing.assert_allclose(one.pop(key), other.pop(key), atol=1e-5)
            assert one == other


@pytest.mark.slow
def test_without_ray_one_sentence_says_how_to_install_it(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else True)
    with pytest.raises(zoo.ZooError, match=r"--ray needs Ray; install it: pip install 'video-mamba-zoo\[ray\]'\."):
        zoo.index(str(workspace / "model"), workspace / "videos", tmp_path / "i", ray="auto")
    assert not (tmp_path / "i").exists()


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_sentence(workspace, tmp_path):
    pytest.importorskip("ray")
    process = start(workspace, "index", "model", "videos", "-o", tmp_path / "i", "--ray", "no port")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("zoo: Ray cannot be reached (") and "no port" in err.splitlines()[-1]


def test_parts_of_chunks_that_come_in_any_order_are_whole():
    def part(chunk, number, is_last):
        return {"chunk": chunk, "number": number, "is_last": is_last, "part": ([(chunk, number)], [], is_last)}

    parts = [part(0, 1, True), part(1, 0, False), part(2, 0, True), part(1, 2, True), part(0, 0, False)]
    found = list(ray_data._in_order(iter([*parts, part(1, 1, False)])))
    assert [answer.rows[0] for answer in found] == [(2, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(zoo.ZooError, match="not finite"):
        list(ray_data._in_order(iter([{**parts[0], "part": "numbers that are not finite"}])))
