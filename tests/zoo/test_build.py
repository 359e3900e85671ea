"""From names, folders, runs and repositories to modules, through the public functions."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import save_file

import hub
import zoo
import zoo.registry
from lightning_modules.errors import ModelError
from lightning_modules.ops import use_backend
from lightning_modules.tasks.classification import VideoClassifier
from zoo.build import _arguments, _construct, _without_values
from zoo.configs import check_arguments, normalise
from zoo.errors import UnknownModelError, ZooError

REPOSITORY = Path(__file__).resolve().parents[2]
CLASS = "lightning_modules.VideoClassifier"
TINY = {"num_classes": 3, "class_names": ["a", "b", "null"], "embed_dim": 16, "depth": 2, "num_frames": 2}
TINY |= {"image_size": 32}


@pytest.fixture(autouse=True)
def plain_scan():
    """The definition of the scan: on sequences this short it is quick, and needs no compilation."""
    with use_backend("reference"):
        yield


@pytest.fixture
def register(monkeypatch):
    """zoo.register, undone after the test."""
    monkeypatch.setattr(zoo.registry, "_user_entries", dict(zoo.registry._user_entries))
    return lambda name, target=CLASS, init_args=TINY, **more: zoo.register(name, target, init_args=init_args, **more)


@pytest.fixture
def module(register) -> VideoClassifier:
    """A tiny registered model in which every parameter differs from its start."""
    register("tiny", aliases=["small"])
    torch.manual_seed(0)
    module = zoo.create("tiny").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.fixture
def folder(module, tmp_path) -> Path:
    return hub.save(module, tmp_path / "model")


@pytest.fixture
def ckpt(module, tmp_path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def official(module) -> dict[str, torch.Tensor]:
    """The weights under the names of the official files."""
    return {name.removeprefix("net."): tensor.clone() for name, tensor in module.state_dict().items()}


def clip(frames: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (2, 3, frames, size, size), dtype=torch.uint8, generator=torch.manual_seed(1))


def same(left, right) -> bool:
    """Whether two modules are the same model: config, weights, and every bit of their answers."""
    weights, others = left.state_dict(), right.state_dict()
    with torch.inference_mode():
        return (
            left.config == right.config
            and weights.keys() == others.keys()
            and all(torch.equal(weights[key], others[key]) for key in weights)
            and torch.equal(left(clip()), right(clip()))
        )


def edit(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_round_trip_is_exact(module, folder, ckpt):
    for source in (folder, str(folder), f"{folder}/", ckpt, str(ckpt)):
        loaded = zoo.load(source)
        assert same(loaded, module)
        assert not loaded.training and all(p.requires_grad and not p.is_meta for p in loaded.parameters())
        assert loaded.class_names == ["a", "b", "null"]


def test_one_config_everywhere(module, folder, ckpt):
    entry = zoo.info("tiny")
    configs = [{"class_path": entry.class_path, "init_args": entry.init_args}, module.config, hub.read(folder).config]
    content = torch.load(ckpt, weights_only=True)["hyper_parameters"]
    configs.append({"class_path": content.pop("_class_path"), "init_args": content})
    normal = [normalise(config) for config in configs]
    assert normal[0]["init_args"]["embed_dim"] == 16 and normal[0]["init_args"]["patch_size"] == 16
    assert all(config == normal[0] for config in normal)
    assert normalise(normal[0]) == normal[0]
    assert normalise({"class_path": CLASS, "init_args": {"num_classes": 2, "class_names": ["1", "no"]}})["init_args"][
        "class_names"
    ] == ["1", "no"]


def test_names_aliases_and_folders(module, folder, register, monkeypatch):
    register("shipped", aliases=["also"], weights=zoo.Weights(folder=str(folder)))
    assert same(zoo.load("shipped"), module) and same(zoo.load("also"), module)
    with pytest.raises(ZooError, match=r"tiny has no released weights; zoo\.create"):
        zoo.load("tiny")
    # A folder of a registered name is meant only where it is written as a path.
    monkeypatch.chdir(folder.parent)
    folder.rename("tiny")
    with pytest.raises(ZooError, match="no released weights"):
        zoo.load("tiny")
    assert same(zoo.load("./tiny"), module) and same(zoo.load(Path("tiny")), module)
    os.mkdir("org")
    os.rename("tiny", "org/repo")
    assert same(zoo.load("org/repo"), module)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("videomamba-ti-k40", "did you mean videomamba-ti-k400"),
        ("qqq", "zoo list"),
        ("./nothing", "does not exist"),
        ("runs/last.ckpt", "does not exist"),
        ("a/b/c", "does not exist"),
        (Path("nothing"), "does not exist"),
    ],
)
def test_what_is_not_there(source, words):
    with pytest.raises(UnknownModelError, match=words) as caught:
        zoo.load(source)
    assert str(source) in str(caught.value)


def test_files_and_addresses_that_do_not_say_enough(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "official.pth")
    with pytest.raises(ZooError, match=r"official\.pth does not say which model it is.*checkpoint="):
        zoo.load(tmp_path / "official.pth")
    with pytest.raises(ZooError, match="--name"):
        zoo.convert(tmp_path / "official.pth", tmp_path / "out")
    with pytest.raises(ZooError, match="hf://organisation/name"):
        zoo.load("hf://gpt2")
    with pytest.raises(hub.HubError, match="is not a checkpoint of a module of the zoo"):
        zoo.load(torch.save({"a": torch.ones(1)}, tmp_path / "other.ckpt") or tmp_path / "other.ckpt")


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"module": w}])
def test_official_files_nested_or_flat(module, tmp_path, wrap):
    torch.save(wrap(official(module)), tmp_path / "official.pth")
    assert same(zoo.load("small", checkpoint=tmp_path / "official.pth"), module)
    assert same(zoo.load("tiny", checkpoint=str(tmp_path / "official.pth")), module)


def test_weights_from_any_kind_of_file(module, folder, ckpt, tmp_path):
    save_file(official(module), tmp_path / "official.safetensors")
    for file in (tmp_path / "official.safetensors", folder, ckpt):
        assert same(zoo.load("tiny", checkpoint=file), module)


def test_half_precision_weights_become_float32(module, tmp_path):
    save_file({name: tensor.half() for name, tensor in official(module).items()}, tmp_path / "half.safetensors")
    loaded = zoo.load("tiny", checkpoint=tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_every_tensor_is_used_up_or_dropped_by_name(module, tmp_path):
    weights = official(module)
    file = tmp_path / "official.pth"
    torch.save({"model": weights | {"distill_head.1.weight": torch.ones(8, 16)}}, file)
    assert same(zoo.load("tiny", checkpoint=file), module)
    torch.save(weights | {"extra.weight": torch.ones(1)}, file)
    with pytest.raises(hub.HubError, match=r"official\.pth.*1 not in the model: net\.extra\.weight"):
        zoo.load("tiny", checkpoint=file)
    del weights["norm_f.weight"]
    weights["head.bias"] = torch.ones(5)
    torch.save(weights, file)
    with pytest.raises(hub.HubError, match=r"missing: net\.norm_f\.weight.*net\.head\.bias \(5,\) instead of \(3,\)"):
        zoo.load("tiny", checkpoint=file)


def test_positions_are_interpolated_on_request(module, folder):
    loaded = zoo.load(folder, num_frames=4, image_size=64)
    time = F.interpolate(module.net.temporal_pos_embedding.transpose(1, 2), size=4, mode="linear").transpose(1, 2)
    torch.testing.assert_close(loaded.net.temporal_pos_embedding, time)
    grid = module.net.pos_embed[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(loaded.net.pos_embed, torch.cat([module.net.pos_embed[:, :1], grid], dim=1))
    with torch.inference_mode():
        assert loaded(clip(4, 64)).shape == (2, 3)
    assert loaded.config["init_args"]["num_frames"] == 4
    assert same(zoo.load(folder, num_frames=2, image_size=32), module)


def test_interpolating_hides_no_wrong_checkpoint(module, folder, tmp_path):
    weights = official(module)
    weights["pos_embed"] = torch.ones(1, 8, 16)  # no square grid
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(hub.HubError, match=r"net\.pos_embed \(1, 8, 16\) instead of \(1, 5, 16\)"):
        zoo.load("tiny", checkpoint=tmp_path / "odd.pth", image_size=64)
    with pytest.raises(hub.HubError, match=r"missing: net\.layers\.2\.mixer\.A_log"):
        zoo.load(folder, depth=3, num_frames=4)
    with pytest.raises(ValueError, match="image_size 40"):
        zoo.load(folder, image_size=40)


def test_a_temporal_embedding_stored_at_another_length(module, register, tmp_path):
    register("long", init_args=TINY | {"num_frames": 4}, meta={"stored_frames": 2})
    torch.save(official(module), tmp_path / "stored.pth")
    loaded = zoo.load("long", checkpoint=tmp_path / "stored.pth")
    time = F.interpolate(module.net.temporal_pos_embedding.transpose(1, 2), size=4, mode="linear").transpose(1, 2)
    torch.testing.assert_close(loaded.net.temporal_pos_embedding, time)
    torch.save(official(loaded), tmp_path / "whole.pth")
    assert torch.equal(zoo.load("long", checkpoint=tmp_path / "whole.pth").net.temporal_pos_embedding, time)
    torch.save(official(loaded) | {"temporal_pos_embedding": torch.ones(1, 3, 16)}, tmp_path / "other.pth")
    with pytest.raises(hub.HubError, match=r"\(1, 3, 16\) instead of \(1, 2, 16\)"):
        zoo.load("long", checkpoint=tmp_path / "other.pth")
    eight = zoo.load("long", checkpoint=tmp_path / "stored.pth", num_frames=8)
    assert eight.net.temporal_pos_embedding.shape == (1, 8, 16)


def test_an_image_model_at_another_resolution_keeps_its_crop(register, tmp_path):
    image = {k: v for k, v in TINY.items() if k != "num_frames"} | {"num_frames": None, "short_side": 36}
    register("image", init_args=image)
    source = zoo.create("image")
    torch.save({"model": official(source)}, tmp_path / "image.pth")
    loaded = zoo.load("image", checkpoint=tmp_path / "image.pth", image_size=64)
    assert loaded.preprocessing["short_side"] == 72
    assert zoo.load("image", checkpoint=tmp_path / "image.pth", image_size=64, short_side=64).hparams.short_side == 64
    with torch.inference_mode():
        assert loaded(clip(1, 64)).shape == (2, 3)


def test_create_takes_overrides(module):
    other = zoo.create("tiny", num_classes=12, drop_path=0.2)
    assert other.training and other.class_names is None and other.net.head.out_features == 12
    assert "drop_path" not in other.config["init_args"]
    assert zoo.create("tiny", num_classes=3).class_names == ["a", "b", "null"]
    with pytest.raises(ModelError, match=r"no argument 'embed_dimm': did you mean 'embed_dim'\?"):
        zoo.create("tiny", embed_dimm=3)
    with pytest.raises(ModelError, match="num_classes") as caught:
        zoo.create("tiny", num_classes="many")
    assert "\n" not in str(caught.value)


def test_an_empty_module_differs_only_in_its_weights(module):
    with _without_values(len(module.state_dict())):
        empty = _construct(module.config, _arguments(module.config, {}))
    assert all(parameter.is_meta for parameter in empty.parameters())
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == dict(module.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in module.named_buffers())
    assert not any(parameter.is_meta for parameter in zoo.create("tiny").parameters())


def test_a_recorded_hash_is_compared(module, folder, register):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    register("right", weights=zoo.Weights(folder=str(folder), sha256=digest))
    register("wrong", weights=zoo.Weights(folder=str(folder), sha256="0" * 64))
    assert same(zoo.load("right"), module)
    with pytest.raises(hub.HubError, match=r"model\.safetensors is not the recorded file"):
        zoo.load("wrong")


def test_a_class_from_outside_is_refused_before_it_is_imported(folder, ckpt, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = torch.load(ckpt, weights_only=True)
    for class_path in ("os.system", "trap.Model", "zoo.create", "lightning_modules.base.BaseModule", ""):
        content["hyper_parameters"]["_class_path"] = class_path
        torch.save(content, ckpt)
        attempts = [
            lambda: zoo.load(ckpt),
            lambda: zoo.convert(ckpt, tmp_path / "out"),
            lambda class_path=class_path: zoo.load(edit(folder, class_path=class_path)),
        ]
        for attempt in attempts:
            with pytest.raises(ModelError, match=r"is not a class of the zoo, so it is not imported") as caught:
                attempt()
            assert repr(class_path) in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "imported").exists() and not (tmp_path / "out").exists()
    assert "trap" not in sys.modules


OUTER = """
from lightning import LightningModule
from collections.abc import Callable, Mapping
from typing import Literal

class Outer(LightningModule):
    def __init__(
        self, inner: LightningModule, parts: list[LightningModule] | None = None, act: Callable | None = None,
        kind: "type[LightningModule] | None" = None, name: str | None = None,
        sizes: Mapping[str, list[float]] | None = None, mode: Literal["a.b", 3] = 3,
    ) -> None:
        super().__init__()
"""


def test_a_class_from_outside_among_the_arguments_is_refused_before_it_is_imported(register, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nfrom outer_module import Outer\n")
    (tmp_path / "outer_module.py").write_text(OUTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    register("outer", "outer_module.Outer", init_args={})
    inner, trap = {"class_path": CLASS, "init_args": TINY}, {"class_path": "trap.Outer"}
    deep = {"class_path": "outer_module.Outer", "init_args": {"inner": trap}}
    hidden = (
        {"inner": trap}, {"inner": deep}, {"inner": inner, "parts": [trap]}, {"inner": {"x": [[trap]]}},
        {"inner": "trap.Outer"}, {"inner": inner, "parts": ["trap.Outer"]}, {"inner": inner, "act": "trap.Outer"},
        {"inner": inner, "kind": "trap.Outer"}, {"inner": {**inner, "dict_kwargs": {"x": trap}}},
        {"inner": {"class_path": "outer_module.Outer", "init_args": {"inner": "trap.Outer"}}},
    )  # fmt: skip
    for arguments in hidden:
        with pytest.raises(ModelError, match=r"'trap\.Outer' is not a class of the zoo, so it is not imported"):
            normalise({"class_path": "outer_module.Outer", "init_args": arguments})
    assert not (tmp_path / "imported").exists() and "trap" not in sys.modules
    with pytest.raises(ModelError, match=r"\['trap'\] is not a class of the zoo"):
        normalise({"class_path": "outer_module.Outer", "init_args": {"inner": {"class_path": ["trap"]}}})
    plain = {"name": "trap.Outer", "sizes": {"a.b": [0.5]}, "mode": "a.b"}  # strings that are meant as such
    found = normalise({"class_path": "outer_module.Outer", "init_args": {"inner": inner, **plain}})
    assert plain.items() <= found["init_args"].items() and "trap" not in sys.modules
    assert found["init_args"]["inner"]["class_path"].rpartition(".")[2] == "VideoClassifier"
    # The trap is a real one: without the look at the names, checking the arguments imports it.
    check_arguments(sys.modules["outer_module"].Outer, {"inner": trap | {"init_args": {"inner": inner}}}, False)
    assert (tmp_path / "imported").exists()


def test_a_config_with_a_wrong_key_names_file_and_nearest(folder):
    init_args = json.loads((folder / "config.json").read_text())["init_args"]
    for name, nearest in (("embed_dimm", "did you mean 'embed_dim'"), ("drop_path", "it takes num_classes")):
        with pytest.raises(ModelError, match=f"no argument {name!r}: {nearest}") as caught:
            zoo.load(edit(folder, init_args=init_args | {name: 16}))
        assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize("config", [{}, [], {"class_path": CLASS, "x": 1}, {"class_path": CLASS, "init_args": [1]}])
def test_configs_that_are_none(config):
    with pytest.raises(ModelError, match="this config has"):
        normalise(config)


OWN = """
from lightning import LightningModule
from torch import nn

class Own(LightningModule):
    def __init__(self, width: int, num_frames: int = 2, *, lr: float = 0.1) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.scale = self.layer.weight.abs().max().item()  # needs values while it is built
"""


def test_a_module_of_your_own(register, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"class_path": "own_module.Own", "init_args": {"width": 3}}
    weights = {"layer.weight": torch.randn(3, 3), "layer.bias": torch.randn(3)}
    folder = hub.checkpoint.write(hub.checkpoint.Checkpoint(config, weights), tmp_path / "own")
    with pytest.raises(ModelError, match=r"'own_module\.Own' is not a class of the zoo"):
        zoo.load(folder)
    register("own", "own_module.Own", init_args={"width": 3}, weights=zoo.Weights(folder=str(folder)))
    for source in ("own", folder):
        assert torch.equal(zoo.load(source).layer.weight, weights["layer.weight"])
    assert torch.equal(zoo.load("own", num_frames=4).layer.bias, weights["layer.bias"])
    with pytest.raises(ModelError, match="Own has no argument 'depth'"):
        zoo.create("own", depth=3)


def test_a_registered_class_that_is_not_there(register):
    register("gone", "no_such_module.Model")
    with pytest.raises(ModelError, match=r"'no_such_module\.Model' is registered but cannot be imported"):
        zoo.create("gone")


def test_convert_official_and_run(module, ckpt, tmp_path):
    torch.save({"model": official(module)}, tmp_path / "official.pth")
    assert same(zoo.load(zoo.convert(tmp_path / "official.pth", tmp_path / "a", name="tiny")), module)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": module.config, "trainer": {"max_epochs": 3}}))
    assert same(zoo.load(zoo.convert(ckpt, tmp_path / "b")), module)
    assert (tmp_path / "b" / "recipe.yaml").read_text() == (tmp_path / "config.yaml").read_text()
    torch.save({"model": official(module) | {"extra": torch.ones(1)}}, tmp_path / "official.pth")
    with pytest.raises(hub.HubError, match=r"net\.extra"):
        zoo.convert(tmp_path / "official.pth", tmp_path / "c", name="tiny")
    assert not (tmp_path / "c").exists()


# One process for all that goes through the Hub: its client reads the environment when it is imported.
THROUGH_THE_HUB = """
import json, sys
import torch, zoo
class_path, tiny = "lightning_modules.VideoClassifier", json.loads(sys.argv[1])
file = "official.pth"
weights = {"file": (file, None), "hashed": (file, sys.argv[2]), "swapped": (file, "0" * 64), "whole": (None, None)}
for name, (filename, sha256) in weights.items():
    zoo.register(name, class_path, init_args=tiny,
                 weights=zoo.Weights("org/tiny", filename, "main", sha256=sha256))
answers = {}
for source in sys.argv[3:]:
    try:
        module = zoo.load(source)
        total = sum(p.double().sum().item() for p in module.parameters())
        answers[source] = [total, len(module.class_names), module.class_names[0], module.config["init_args"]["mean"][0]]
    except Exception as error:
        answers[source] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


def through_the_hub(tmp_path, server, sha256, sources, **env) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_HUB, json.dumps(TINY), sha256, *sources],
        capture_output=True, text=True, timeout=600, env=server.environment(tmp_path / "hf", **env), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_through_the_hub_and_then_offline(module, folder, tmp_path, hub_server):
    torch.manual_seed(0)
    real = zoo.create("videomamba-ti-ssv2")
    torch.save(official(real), tmp_path / "real.pth")
    weights = zoo.info("videomamba-ti-ssv2").weights
    assert weights.sha256 is None  # of most others a file with random weights would be refused
    file = (tmp_path / "real.pth").read_bytes()
    hub_server.commit(weights.repo_id, {weights.filename: file}, name=weights.revision)

    torch.save({"model": official(module)}, tmp_path / "tiny.pth")
    tiny_file = (tmp_path / "tiny.pth").read_bytes()
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub_server.commit("org/tiny", files | {"official.pth": tiny_file})
    # Somebody pushes other weights and another config between the download of the two files.
    hub_server.commit("org/moving", files)
    other = hub.save(VideoClassifier(**(TINY | {"mean": [0.25, 0.25, 0.25]})), tmp_path / "other")
    pushed = {name: (other / name).read_bytes() for name in files}
    hub_server.on_request = lambda line: (
        line == "GET /org/moving/resolve/main/config.json" and hub_server.commit("org/moving", pushed)
    )
    bad = edit(hub.save(module, tmp_path / "bad"), class_path="os.system")
    hub_server.commit("org/bad", {"config.json": (bad / "config.json").read_bytes(), "model.safetensors": b"x"})

    def facts(model):
        total = sum(p.double().sum().item() for p in model.parameters())
        return [pytest.approx(total, rel=1e-12), len(model.class_names), model.class_names[0], model.hparams.mean[0]]

    good = {
        "videomamba-ti-ssv2": real, "file": module, "hashed": module, "whole": module, "org/tiny": module,
        "hf://org/tiny@main": module, "org/moving": module,
    }  # fmt: skip
    refused = {
        "swapped": ("HubError", "SHA-256"),
        "org/bad": ("ModelError", "'os.system' is not a class of the zoo"),
        "hf://org/none": ("HubError", "There is no repository org/none"),
        "runs/none": ("HubError", "There is no folder runs/none here", "no repository runs/none"),
        "org/tiny@v2": ("HubError", "no revision 'v2'"),
    }
    digest = hashlib.sha256(tiny_file).hexdigest()
    answers = through_the_hub(tmp_path, hub_server, digest, [*good, *refused])
    for source, model in good.items():
        assert answers[source] == facts(model), source
    for source, words in refused.items():
        assert all(word in answers[source] for word in words) and "\n" not in answers[source], answers[source]
    assert answers["videomamba-ti-ssv2"][1:3] == [174, "Approaching something with your camera"]
    assert not any("bad" in line and "safetensors" in line for line in hub_server.log)
    moved = hub_server.refs["org/moving"]["main"]
    assert hub_server.commits["org/moving"][moved] == pushed

    asked = len(hub_server.log)
    offline = through_the_hub(tmp_path, hub_server, digest, list(good), HF_HUB_OFFLINE="1")
    assert offline == {source: answers[source] for source in good}
    assert len(hub_server.log) == asked


@pytest.mark.slow
def test_predicting_without_connection_is_one_sentence(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"not read before the model is there")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}", "HF_HOME": str(tmp_path / "hf")}
        command = [
            sys.executable,
            "-m",
            "zoo.commands.main",
            "predict",
            "videomamba-ti-k400",
            str(tmp_path / "clip.mp4"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env=env | {"PYTHONPATH": str(REPOSITORY)}
        )
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert "videomamba_t16_k400_f16_res224.pth" in sentence and "--checkpoint" in sentence
