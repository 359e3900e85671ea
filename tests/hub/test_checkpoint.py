"""The folder format, and files that are not what they should be."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

import hub
from hub.checkpoint import (
    Checkpoint,
    check_state_dict,
    fingerprint,
    load_pickle,
    load_safetensors,
    read_config,
    write,
)
from hub.files import _take_place

CONFIG = {"class_path": "lightning_modules.VideoClassifier", "init_args": {"class_names": ["é", "1"], "mean": [0.5]}}
WEIGHTS = {"net.a": torch.arange(6.0).view(2, 3).t(), "net.b": torch.tensor(3)}


@pytest.fixture
def folder(tmp_path):
    return write(Checkpoint(CONFIG, WEIGHTS, "model: {}\n"), tmp_path / "some" / "model")


def names(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_what_is_written_is_read(folder):
    found = hub.read(folder)
    assert found.config == CONFIG
    assert found.recipe == "model: {}\n"
    assert found.state_dict.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.state_dict[key], tensor) for key, tensor in WEIGHTS.items())
    assert names(folder) == ["config.json", "model.safetensors", "recipe.yaml"]
    assert names(folder.parent) == ["model"]


def test_what_a_run_left_is_kept_beside_the_weights_and_replaced_with_them(folder):
    extras = {"README.md": b"# card", "metrics.csv": b"epoch,step\n", "curves.png": b"\x89PNG"}
    write(Checkpoint(CONFIG, WEIGHTS, None, extras), folder)
    assert hub.read(folder).extras == extras
    assert names(folder) == ["README.md", "config.json", "curves.png", "metrics.csv", "model.safetensors"]
    write(Checkpoint(CONFIG, WEIGHTS), folder)
    assert hub.read(folder).extras == {}
    assert names(folder) == ["config.json", "model.safetensors"]


def test_weights_that_are_not_those_recorded_are_refused(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])  # the last byte of a tensor: the format itself notices nothing
    path.write_bytes(flipped)
    assert load_safetensors(path).keys() == WEIGHTS.keys()
    with pytest.raises(hub.HubError, match=r"model\.safetensors is not the recorded file.*save or fetch") as caught:
        hub.read(folder)
    assert hashlib.sha256(flipped).hexdigest()[:12] in str(caught.value) and "\n" not in str(caught.value)
    other = write(Checkpoint(CONFIG, {**WEIGHTS, "net.b": torch.tensor(4)}), folder.parent / "other")
    path.write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(hub.HubError, match="not the recorded file"):
        hub.read(folder)
    path.write_bytes(good)
    assert hub.read(folder).config == CONFIG
    # Folders of others, and those written before hashes were recorded, have none.
    (folder / "config.json").write_text(json.dumps(CONFIG))
    path.write_bytes(flipped)
    assert hub.read(folder).config == CONFIG


def test_a_model_folder_is_replaced_as_a_whole(folder):
    write(Checkpoint(CONFIG, {"net.c": torch.ones(1)}), folder)
    assert hub.read(folder).state_dict.keys() == {"net.c"}
    assert names(folder) == ["config.json", "model.safetensors"]
    assert names(folder.parent) == ["model"]


def test_a_link_to_a_model_folder_stays_a_link(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder, target_is_directory=True)
    write(Checkpoint(CONFIG, {"net.c": torch.ones(1)}), tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert hub.read(folder).state_dict.keys() == {"net.c"}


def test_what_is_not_a_model_folder_is_not_replaced(folder, tmp_path, monkeypatch):
    checkpoint = hub.read(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(hub.HubError, match=r"notes\.txt"):
        write(checkpoint, folder)
    assert (folder / "notes.txt").read_text() == "mine"

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(hub.HubError, match="not a model folder"):
        write(checkpoint, foreign)
    assert names(foreign) == ["config.json"]

    (tmp_path / "file").write_text("x")
    with pytest.raises(hub.HubError, match="is a file"):
        write(checkpoint, tmp_path / "file")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(hub.HubError, match="current folder"):
        write(checkpoint, ".")


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    write(Checkpoint(CONFIG, WEIGHTS), tmp_path / "empty")
    assert hub.read(tmp_path / "empty").config == CONFIG


def test_a_config_that_is_no_data_changes_nothing(folder):
    with pytest.raises(hub.HubError, match="numbers, strings and lists"):
        write(Checkpoint({"class_path": "x", "init_args": {"teacher": nn.Linear(1, 1)}}, WEIGHTS), folder)
    assert hub.read(folder).config == CONFIG
    assert names(folder.parent) == ["model"]


def test_a_class_whose_folder_is_not_utf8_is_named(folder):
    name = os.fsdecode(b"gr\xfcn")
    named = {"class_path": "x", "init_args": {"class_names": ["blau", name]}}
    with pytest.raises(hub.HubError, match=r"holds 'gr\\udcfcn', which cannot be written as UTF-8; rename"):
        write(Checkpoint(named, WEIGHTS), folder)
    assert hub.read(folder).config == CONFIG
    assert names(folder.parent) == ["model"]
    # A folder may hold the name as an escape of JSON; it is read, and not pushed.
    (folder / "config.json").write_text(json.dumps(named))
    assert hub.read(folder).config == named
    with pytest.raises(hub.HubError, match="rename that class"):
        hub.push(folder, "org/name")


FULL_DISK = """
import resource, signal, sys, torch, hub
from hub.checkpoint import Checkpoint, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(Checkpoint({"class_path": "x", "init_args": {}}, {"w": torch.zeros(1_000_000)}), sys.argv[1])
except hub.HubError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_leaves_the_old_model(folder):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, timeout=600, check=True
    )
    assert "cannot be written" in done.stdout and str(folder) in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert hub.read(folder).config == CONFIG
    assert names(folder.parent) == ["model"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(folder):
    with pytest.raises(FileNotFoundError):
        _take_place(folder.parent / "gone", folder)  # the second of the two renames fails
    assert hub.read(folder).config == CONFIG
    assert names(folder.parent) == ["model"]


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(hub.HubError, match="cannot be written"):
        write(Checkpoint(CONFIG, WEIGHTS), tmp_path / "file" / "model")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "exactly class_path and init_args"),
        ('{"class_path": "a.B"}', "exactly class_path and init_args"),
        ('{"class_path": ["a.B"], "init_args": {}}', "map class_path to a name"),
        ('{"class_path": "a.B", "init_args": [1]}', "map class_path to a name"),
        ('{"class_path": "a.B", "init_args": {}, "sha256": "abc"}', "SHA-256 of the weights, which is none"),
        ('{"class_path": "a.B", "init_args": {}, "sha256": null}', "SHA-256 of the weights, which is none"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_configs_that_are_none(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(hub.HubError, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(hub.HubError, match=r"has no config\.json"):
        hub.read(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(hub.HubError, match=r"has no model\.safetensors"):
        hub.read(folder)


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def evil_files(folder, command: str):
    """The ways in which a pickle that runs a command can be stored, also as weights deep inside a checkpoint."""
    torch.save({"model": {"a": torch.ones(1), "b": Evil(command)}}, folder / "zip.pth")
    torch.save(Evil(command), folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": Evil(command)}, folder / "run.ckpt")
    torch.save(Evil(command), folder / "without_an_ending")
    torch.save(Evil(command), folder / "model.safetensors")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"raw{protocol}.bin").write_bytes(pickle.dumps(Evil(command), protocol))
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)
    (folder / "behind_the_magic_number.pth").write_bytes(magic + pickle.dumps(Evil(command), 2))
    return sorted(folder.iterdir())


def test_a_pickle_that_wants_to_run_code_does_not(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "files").mkdir()
    files = evil_files(tmp_path / "files", f"touch {ran}")
    assert len(files) == 12
    for path in files:
        read = load_safetensors if path.suffix == ".safetensors" else load_pickle
        with pytest.raises(hub.HubError) as caught:
            read(path)
        sentence = str(caught.value)
        assert str(path) in sentence and "\n" not in sentence
        if path.suffix in (".pth", ".ckpt"):
            assert "system" in sentence and "refused" in sentence
    assert not ran.exists()
    pickle.loads((tmp_path / "files" / "raw2.bin").read_bytes())  # the trap is a real one
    assert ran.exists()


def damaged(folder):
    torch.save({"model": {"a": torch.randn(5000)}}, folder / "good.pth")
    content = (folder / "good.pth").read_bytes()
    torch.save({"model": {"a": torch.randn(5000)}}, folder / "good_old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "good_old.pth").read_bytes()
    yield "half.pth", content[: len(content) // 2]
    yield "head.pth", content[:30]
    yield "half_old.pth", old[: len(old) // 2]
    yield "head_old.pth", old[:30]
    yield "empty.pth", b""
    yield "page.pth", b"<!DOCTYPE html>\n<html>404</html>"
    yield "pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    yield "image.pth", b"\x89PNG\r\n\x1a\n"


def test_damaged_files_are_one_sentence(tmp_path):
    files = [*damaged(tmp_path), ("archive.pth", None), ("missing.pth", None), ("folder.pth", None)]
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "folder.pth").mkdir()
    for name, content in files:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for read in (load_pickle, load_safetensors):
            with pytest.raises(hub.HubError) as caught:
                read(path)
            sentence = str(caught.value)
            assert str(path) in sentence and "\n" not in sentence
            assert any(remedy in sentence for remedy in ("fetch", "check the path", "name the file")), sentence


def test_plain_values_beside_the_weights_are_data(tmp_path):
    args = argparse.Namespace(lr=0.1, sizes=[1, 2])  # official training scripts save their command line
    torch.save({"model": {"a": torch.ones(2)}, "args": args, "epoch": 3}, tmp_path / "a.pth")
    found = load_pickle(tmp_path / "a.pth")
    assert found["args"] == args and torch.equal(found["model"]["a"], torch.ones(2))


def test_another_architecture_is_listed():
    expected = {f"layers.{i}": torch.zeros(2) for i in range(7)} | {"head": torch.zeros(3, 2)}
    check_state_dict(dict(expected), expected, "x")
    with pytest.raises(hub.HubError) as caught:
        check_state_dict({"head": torch.zeros(4, 2), "extra": torch.zeros(1)}, expected, "file.pth")
    sentence = str(caught.value)
    assert "file.pth" in sentence
    assert "7 missing: layers.0, layers.1, layers.2, layers.3, layers.4 and 2 more" in sentence
    assert "1 not in the model: extra" in sentence
    assert "head (4, 2) instead of (3, 2)" in sentence


def test_config_json_is_readable_by_people(folder):
    text = (folder / "config.json").read_text(encoding="utf-8")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(text) == CONFIG | {"sha256": digest}
    assert "é" in text and text.endswith("}\n")


def test_a_fingerprint_is_of_names_types_shapes_and_numbers():
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2])}
    expected = hashlib.sha256()
    for line, tensor in (("a int64 [2]\n", weights["a"]), ("b float32 [2, 3]\n", weights["b"])):
        expected.update(line.encode() + tensor.numpy().tobytes())
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items()))) == expected.hexdigest()
    for other in ({**weights, "b": weights["b"].T}, {**weights, "b": weights["b"].half()}, {"c": weights["a"]}):
        assert fingerprint(other) != fingerprint(weights)
    assert fingerprint({"x": torch.zeros(2, dtype=torch.bfloat16)}) != fingerprint({"x": torch.zeros(2).half()})
