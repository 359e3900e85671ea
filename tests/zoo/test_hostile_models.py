"""Models from strangers: what is wrong with a config, file or folder is said in one sentence, before memory is taken or
anything is written."""

import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import hub
import zoo
import zoo.registry
from lightning_modules.errors import ModelError
from lightning_modules.tasks.classification import VideoClassifier
from zoo.commands.main import main
from zoo.errors import ZooError

CLASS = "lightning_modules.VideoClassifier"
TINY = {"num_classes": 3, "class_names": ["a", "b", "c"], "embed_dim": 16, "depth": 1, "num_frames": 2}
TINY |= {"image_size": 32}
TYPED = (hub.HubError, ModelError, ZooError)


@pytest.fixture(scope="module")
def module() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(**TINY).eval()


@pytest.fixture
def folder(module, tmp_path) -> Path:
    return hub.save(module, tmp_path / "model")


def content(module, **changes) -> dict:
    """What a Lightning checkpoint of the module holds, as far as it is read."""
    return {"hyper_parameters": {**TINY, "_class_path": CLASS}, "state_dict": module.state_dict(), **changes}


def refused(call, words: str) -> None:
    """One sentence of a typed error, and no memory to speak of."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TYPED, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


CONFIGS = {
    "depth 10,000": (lambda c: c.replace('"class_names"', f'"mean": {nested(10_000)}, "class_names"'), "JSON"),
    "depth 500": (lambda c: c.replace('"class_names"', f'"mean": {nested(500)}, "class_names"'), "levels"),
    "objects in objects": (lambda c: c.replace('"a"', '{"x":' * 200 + "1" + "}" * 200), "levels"),
    "100,000 entries": (lambda c: c.replace('"a"', ",".join(["1"] * 100_000)), "more than 65,536 values"),
    "3 million names": (lambda c: c.replace('"a"', ",".join(f'"c{i}"' for i in range(3_000_000))), "at most 4,194,304"),
    "5,000 digits": (lambda c: c.replace('"depth": 1', '"depth": ' + "9" * 5000), "JSON"),
    "4,000 digits": (lambda c: c.replace('"depth": 1', '"depth": ' + "9" * 4000), "depth is 9"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_would_cost_much(folder, case):
    change, words = CONFIGS[case]
    text = json.dumps({"class_path": CLASS, "init_args": TINY})
    (folder / "config.json").write_text(change(text))
    refused(lambda: zoo.load(folder), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 65_536}, "another architecture"),
        ({"depth": 1000}, "far more layers than the weights have"),
        ({"depth": 10**9}, "depth is 1000000000"),
        ({"num_frames": 100_000}, r"temporal_pos_embedding \(1, 2, 16\) instead of \(1, 100000, 16\)"),
        ({"image_size": 16_384, "patch_size": 1}, "another architecture"),
        ({"patch_size": 32}, "another architecture"),
        ({"num_classes": 1_000_000, "class_names": None}, r"head\.weight \(3, 16\) instead of \(1000000, 16\)"),
        ({"num_classes": 0, "class_names": None}, "num_classes is 0"),
        ({"std": [0, 0, 0]}, "std is"),
        ({"std": [-1, -1, -1]}, "std is"),
        ({"mean": [float("nan")] * 3}, "mean is"),
        ({"short_side": 10**8}, "short_side is"),
        ({"depth": None}, "depth"),
        ({"depth": [1]}, "depth"),
        ({"class_names": {"a": 1}}, "class_names"),
        ({"embed_dim": "os.system"}, "embed_dim"),
        ({"sampling": {"class_path": "os.system"}}, "is not a class of the zoo"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_the_weights(folder, changes, words):
    (folder / "config.json").write_text(json.dumps({"class_path": CLASS, "init_args": TINY | changes}))
    refused(lambda: zoo.load(folder), words)


@pytest.mark.parametrize(
    "class_path", ["os.system", "numpy.array", "zoo.load", ".x", "", "1", 1, True, ["a"], None, {}]
)
def test_a_class_path_that_is_none(folder, module, tmp_path, class_path):
    (folder / "config.json").write_text(json.dumps({"class_path": class_path, "init_args": TINY}))
    refused(lambda: zoo.load(folder), "is not a class of the zoo|should map class_path to a name")
    arguments = {**TINY, "_class_path": class_path}
    torch.save(content(module, hyper_parameters=arguments), tmp_path / "a.ckpt")
    refused(lambda: zoo.load(tmp_path / "a.ckpt"), "is not a class of the zoo|not a checkpoint of a module")
    refused(lambda: zoo.configs.normalise({"class_path": class_path, "init_args": {}}), "is not a class of the zoo")


def test_a_registered_path_that_is_no_class(monkeypatch):
    monkeypatch.setattr(zoo.registry, "_user_entries", {})
    for path in ("os.system", "os.path", "json.dumps"):
        zoo.register(path, path)
        refused(lambda path=path: zoo.create(path), "no class of a module")


def archive(path: Path, source: Path, **records: bytes) -> Path:
    """A copy of a file of torch.save with some records replaced, compressed where the name says so."""
    kind = zipfile.ZIP_DEFLATED if path.stem == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", kind) as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2].replace(".", "_")
            new.writestr(entry.filename, records.get(name, old.read(entry)))
    return path


class Bytes:
    def __reduce__(self):
        return bytearray, (4 * 10**11,)


def test_checkpoints_that_ask_for_memory(module, tmp_path):
    weights = module.state_dict()
    huge = torch.zeros(1).expand(10**11)
    loop: list = []
    loop.append(loop)
    shared: list = [0] * 10
    for _ in range(9):
        shared = [shared] * 10
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (10**6, 10**5))
    base = torch.zeros(10**5)
    cases = {
        "expanded": (content(module, state_dict=weights | {"net.norm_f.weight": huge}), "not stored number by number"),
        "sparse": (content(module, state_dict=weights | {"net.norm_f.weight": sparse}), "not stored number by number"),
        "meta": (
            content(module, state_dict=weights | {"net.norm_f.weight": torch.empty(10**11, device="meta")}),
            "not stored number by number",
        ),
        "repeated": (
            content(module, state_dict=weights | {f"x{i}": base.view(-1) for i in range(1000)}),
            "more than four times the file",
        ),
        "loop": (content(module, hyper_parameters={**TINY, "_class_path": CLASS, "mean": loop}), "levels"),
        "shared": (content(module, hyper_parameters={**TINY, "_class_path": CLASS, "mean": shared}), "65,536 values"),
        "tensor": (content(module, hyper_parameters={**TINY, "_class_path": CLASS, "mean": base}), "holds a Tensor"),
        "keys": (content(module, hyper_parameters={**TINY, "_class_path": CLASS, 5: 1}), "key that is not a string"),
        "many": (content(module, hyper_parameters={**TINY, "_class_path": CLASS, "depth": 10**6}), "depth is 1000000"),
    }  # fmt: skip
    for name, (stored, words) in cases.items():
        file = tmp_path / f"{name}.ckpt"
        torch.save(stored, file)
        refused(lambda file=file: zoo.load(file), words)
        out = tmp_path / "out"
        refused(lambda file=file, out=out: zoo.convert(file, out), words)
        assert not out.exists()
    # The same tensors in an official file.
    torch.save({k.removeprefix("net."): v for k, v in weights.items()} | {"norm_f.weight": huge}, tmp_path / "a.pth")
    refused(lambda: zoo.load("videomamba-ti-k400", checkpoint=tmp_path / "a.pth"), "not stored number by number")

    torch.save(content(module), tmp_path / "good.ckpt")
    zeros = bytes(10**7)
    refused(lambda: zoo.load(archive(tmp_path / "deflated.ckpt", tmp_path / "good.ckpt", data_0=zeros)), "unpacks to")
    blob = pickle.dumps({"state_dict": Bytes()}, 2)
    refused(lambda: zoo.load(archive(tmp_path / "bytes.ckpt", tmp_path / "good.ckpt", data_pkl=blob)), "bytes.ckpt")


def header(names: dict, size: int | None = None) -> bytes:
    text = json.dumps(names).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


def test_safetensors_headers_that_claim_what_is_not_there(folder):
    huge = {"a": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}
    overflow = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}
    for bytes_ in (header(huge), header(overflow) + b"1234", header({}, 2**63), header({}, 10**9), header({}, 0), b"x"):
        (folder / "model.safetensors").write_bytes(bytes_)
        (folder / "config.json").write_text(json.dumps({"class_path": CLASS, "init_args": TINY}))
        refused(lambda: zoo.load(folder), "not a readable safetensors file")
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    (folder / "model.safetensors").write_bytes(header(many))
    refused(lambda: zoo.load(folder), "header would have")


def test_weights_that_are_not_numbers(module, folder, tmp_path):
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            bad = {k: v.clone() for k, v in module.state_dict().items()}
            bad["net.head.weight"] = bad["net.head.weight"].to(dtype)
            bad["net.head.weight"][1, 2] = value
            save_file(bad, folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps({"class_path": CLASS, "init_args": TINY}))
            refused(lambda: zoo.load(folder), r"net\.head\.weight of .* holds NaN or infinity")
    refused(lambda: zoo.initialise(VideoClassifier(**TINY), folder), "holds NaN or infinity")
    integers = module.state_dict() | {"net.head.weight": torch.ones(3, 16, dtype=torch.int64)}
    save_file(integers, folder / "model.safetensors")
    refused(lambda: zoo.load(folder), r"of another type: net\.head\.weight torch\.int64 instead of torch\.float32")


def test_finite_weights_whose_answers_are_not(module, folder, tmp_path, capsys):
    video = tmp_path / "still.png"
    from PIL import Image

    Image.new("RGB", (40, 40), (200, 100, 50)).save(video)
    bad = {k: v.clone() for k, v in module.state_dict().items()}
    bad["net.head.weight"].fill_(3e38)
    hub.checkpoint.write(hub.checkpoint.Checkpoint(module.config, bad), folder)
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(folder), str(video)])
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert "nan" not in shown.out and "NaN" in shown.err


def test_what_is_no_checkpoint(module, folder, tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "text.ckpt": "not a checkpoint written by torch.save",
        "empty.ckpt": "is empty",
        "folder.ckpt": "has no config.json",
        "pipe.ckpt": "a device or a pipe",
        "pipe": "a device or a pipe",
    }
    for name, words in cases.items():
        refused(lambda name=name: zoo.load(tmp_path / name), words)
        if name != "folder.ckpt":
            refused(lambda name=name: zoo.load("videomamba-ti-k400", checkpoint=tmp_path / name), words)
            refused(lambda name=name: zoo.convert(tmp_path / name, tmp_path / "out"), f"{words}|name it")
    for device in ("/dev/zero", "/dev/null"):
        refused(lambda device=device: zoo.load(device), "a device or a pipe")
        refused(lambda device=device: zoo.load("videomamba-ti-k400", checkpoint=device), "a device or a pipe")
    for address in ("https://example.com/model.ckpt", "ftp://host/x", "file:///etc/passwd", "s3://bucket/x"):
        refused(lambda address=address: zoo.load(address), "is an address")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(lambda: zoo.load(folder), "has no model.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda w: {"state_dict": w | {"extra": torch.ones(2)}}, "1 not in the model: extra"),
        (lambda w: {"hyper_parameters": {**TINY, "_class_path": CLASS, "embed_dim": 32}}, "of another shape"),
        (lambda w: {"hyper_parameters": {**TINY, "_class_path": CLASS, "std": [0, 0, 0]}}, "std is"),
        (lambda w: {"state_dict": w | {"net.norm_f.weight": torch.full((16,), float("nan"))}}, "NaN"),
        (lambda w: {"shared_as": None}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": CLASS}}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": 5, "without": []}}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": CLASS, "without": "net."}}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": CLASS, "without": [5]}}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": CLASS, "without": [""]}}, "shared_as in"),
        (lambda w: {"shared_as": {"class_path": CLASS, "without": ["net.head"]}}, "2 missing: net.head"),
        (lambda w: {"shared_as": {"class_path": "os.system", "without": []}}, "is not a class of the zoo"),
    ],
)  # fmt: skip
def test_convert_writes_no_folder_that_cannot_be_loaded(module, folder, tmp_path, capsys, changes, words):
    torch.save(content(module, **changes(module.state_dict())), tmp_path / "run.ckpt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for target in (tmp_path / "new", folder):
        with pytest.raises(SystemExit) as caught:
            main(["convert", str(tmp_path / "run.ckpt"), str(target)])
        assert caught.value.code == 1
        (sentence,) = capsys.readouterr().err.splitlines()
        assert words in sentence and str(tmp_path / "run.ckpt") in sentence and "/.new-" not in sentence
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run.ckpt"]


def test_another_number_of_classes_says_what_to_do(folder):
    for call in (lambda: zoo.load(folder, num_classes=5), lambda: zoo.load("videomamba-nano-motion", num_classes=5)):
        refused(call, r"num_classes is 5.*zoo\.create\(NAME, num_classes=5\).*zoo\.initialise.*init_from")
    assert zoo.load(folder, num_classes=3).num_classes == 3


def test_many_threads_load_at_once(module, folder, tmp_path):
    torch.save(content(module), tmp_path / "run.ckpt")
    sources = [folder, tmp_path / "run.ckpt", "videomamba-nano-motion"] * 6
    serial = {source: zoo.load(source).state_dict() for source in set(sources)}
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(zoo.load, sources))
    for source, found in zip(sources, loaded, strict=True):
        weights = found.state_dict()
        assert weights.keys() == serial[source].keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in serial[source].items())


def test_a_load_leaves_what_other_threads_build_alone(folder):
    zoo.load(folder)
    here, go_on = threading.Event(), threading.Event()

    def wait(*_) -> None:
        """In the other thread, in the midst of torch's walk through the hooks."""
        if threading.current_thread() is not threading.main_thread():
            here.set()
            go_on.wait(60)

    hook = register_module_parameter_registration_hook(wait)
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(nn.Linear, 4, 4)
            assert here.wait(60)
            loaded = zoo.load(folder)
            go_on.set()
            layer = other.result()
    finally:
        hook.remove()
    assert not any(p.is_meta for p in (*layer.parameters(), *loaded.parameters()))


# What a config may be made of: mostly arguments that exist, with values that may or may not.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 64), st.floats(), st.text(max_size=9),
    st.sampled_from([10**9, 10**30, -1, 0, float("nan"), float("inf"), "os.system", "null", "1", "dense"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda part: st.one_of(st.lists(part, max_size=4), st.dictionaries(st.text(max_size=5), part, max_size=3)),
    max_leaves=8,
)  # fmt: skip
NAMES = ["num_classes", "embed_dim", "depth", "num_frames", "image_size", "patch_size", "tubelet_size", "class_names",
         "mean", "std", "short_side", "sampling", "frame_stride", "interpolation", "scan_order"]  # fmt: skip
CHANGES = st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), VALUES, max_size=3)
WHOLE = st.one_of(
    CHANGES.map(lambda changes: {"class_path": CLASS, "init_args": TINY | changes}),
    st.fixed_dictionaries({"class_path": VALUES, "init_args": VALUES}),
    VALUES,
)


def try_configs(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    try:
        loaded = zoo.load(folder)
    except TYPED as error:
        assert "\n" not in str(error)
    else:  # what has no influence on the shapes of weights
        assert isinstance(loaded, VideoClassifier)
        assert loaded.hparams.embed_dim == 16 and loaded.net.depth == 1


@pytest.fixture(scope="module")
def shared_folder(module, tmp_path_factory) -> Path:
    return hub.save(module, tmp_path_factory.mktemp("random") / "model")


@settings(max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=WHOLE)
def test_random_configs_give_a_model_or_a_sentence(shared_folder, config):
    try_configs(shared_folder, config)


@pytest.mark.slow
@settings(max_examples=2000, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=WHOLE)
def test_many_random_configs_give_a_model_or_a_sentence(shared_folder, config):
    try_configs(shared_folder, config)


@pytest.mark.slow
def test_a_mutated_checkpoint_ends_no_process(module, tmp_path):
    """In a process of its own, since what torch reads is compiled code."""
    torch.save(content(module), tmp_path / "run.ckpt")
    script = """
import random, sys, zoo, hub
from pathlib import Path
from lightning_modules.errors import ModelError
good = Path(sys.argv[1]).read_bytes()
for seed in range(500):
    draw, raw = random.Random(seed), bytearray(good)
    for _ in range(draw.choice([1, 3, 20])):
        raw[draw.randrange(len(raw)) if draw.random() < 0.5 else draw.randrange(3000)] = draw.randrange(256)
    Path(sys.argv[1]).write_bytes(raw)
    try:
        zoo.load(sys.argv[1])
    except (hub.HubError, ModelError, zoo.ZooError):
        pass
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run.ckpt")], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr
