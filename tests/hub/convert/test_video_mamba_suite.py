"""Official files of Video Mamba Suite: names, and what stands beside the weights, which is read around."""

import argparse
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from hub import HubError
from hub.checkpoint import load_pickle
from hub.convert.video_mamba_suite import to_zoo
from hub.convert.videomamba import read_official

BLOCK = "transformer.resblocks.3"


def test_names_of_a_vivim_classifier():
    """Class token first, time in the second place, a kernel of one frame."""
    positions = torch.arange(5.0).view(1, 5, 1)
    official = {"temporal_embedding": torch.randn(3, 1, 4), "pos_embed": positions, "head.bias": torch.ones(7),
                "patch_embed.proj.weight": torch.randn(4, 3, 2, 2)}  # fmt: skip
    found = to_zoo(official, "a.pt")
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == {"net.temporal_pos_embedding": (1, 3, 4), "net.pos_embed": (1, 5, 1),
                      "net.patch_embed.proj.weight": (4, 3, 1, 2, 2), "net.head.bias": (7,)}  # fmt: skip
    assert found["net.pos_embed"].flatten().tolist() == [2, 0, 1, 3, 4]


def test_names_of_a_dual_encoder_and_a_classifier_of_actions():
    queries = torch.arange(12.0).view(12, 1).expand(12, 4).contiguous()
    text = {f"textual.{BLOCK}.attn.in_proj_weight": queries, f"textual.{BLOCK}.attn.in_proj_bias": torch.arange(12.0),
            f"textual.{BLOCK}.attn.out_proj.bias": torch.ones(4), f"textual.{BLOCK}.ln_2.weight": torch.ones(4),
            f"textual.{BLOCK}.mlp.c_fc.bias": torch.ones(16), "textual.text_projection": torch.randn(4, 8),
            "textual.positional_embedding": torch.randn(9, 4), "textual.ln_final.bias": torch.ones(4)}  # fmt: skip
    vision = {"visual.image_projection": torch.randn(6, 8), "visual.blocks.1.alpha_timeattn": torch.ones(()),
              "visual.patch_embed.proj.weight": torch.randn(6, 3, 2, 2)}  # fmt: skip
    official = {f"module.{name}": tensor for name, tensor in (text | vision).items()}
    found = to_zoo(official | {"module.logit_scale": torch.ones(())}, "b.pt")
    own = "net.text.text_model.encoder.layers.3"
    for number, letter in enumerate("qkv"):
        rows = slice(4 * number, 4 * number + 4)
        assert torch.equal(found.pop(f"{own}.self_attn.{letter}_proj.weight"), queries[rows])
        assert torch.equal(found.pop(f"{own}.self_attn.{letter}_proj.bias"), torch.arange(12.0)[rows])
    assert torch.equal(found.pop("net.vision_proj.weight"), vision["visual.image_projection"].T)
    assert torch.equal(found.pop("net.text.text_projection.weight"), text["textual.text_projection"].T)
    # TimeMamba's patch kernel stays as it is.
    assert found.pop("net.vision.patch_embed.proj.weight").shape == (6, 3, 2, 2)
    assert set(found) == {f"{own}.self_attn.out_proj.bias", f"{own}.layer_norm2.weight", f"{own}.mlp.fc1.bias",
                          "net.text.text_model.embeddings.position_embedding.weight",
                          "net.text.text_model.final_layer_norm.bias", "net.vision.blocks.1.alpha_timeattn",
                          "net.logit_scale"}  # fmt: skip
    actions = to_zoo({"module.visual.norm.bias": torch.ones(6), "module.fc_cls.bias": torch.ones(9)}, "c.pt")
    assert set(actions) == {"net.vision.norm.bias", "net.head.bias"}


@pytest.mark.parametrize(
    ("official", "sentence"),
    [
        ({"textual.transformer.resblocks.0.attn.in_proj_bias": torch.ones(7), "visual.cls_token": torch.ones(1)},
         r"in_proj_bias of d\.pt has the shape \(7,\), which is not queries, keys and values in one"),
        ({"visual.image_projection": torch.ones(7)}, r"image_projection of d\.pt has the shape \(7,\) and not 2 dim"),
        ({"temporal_embedding": torch.ones(3)}, r"temporal_embedding of d\.pt has the shape \(3,\) and not 3 dim"),
        ({"temporal_embedding": torch.ones(3, 1, 2), "pos_embed": torch.ones(1, 0, 2)}, r"pos_embed of d\.pt has the"),
        ({"cls_token": torch.ones(1), "module.cls_token": torch.ones(1)}, r"d\.pt has two tensors for net\.cls_token"),
    ],
)  # fmt: skip
def test_damaged_files(official, sentence):
    with pytest.raises(HubError, match=sentence):
        to_zoo(official, "d.pt")


# What stands beside the weights -------------------------------------------------------------------------------------

WEIGHTS = {"module.cls_token": torch.randn(1, 1, 4), "module.norm_f.weight": torch.randn(4)}


def saved(path, **beside):
    torch.save({"epoch": 5, "state_dict": WEIGHTS, **beside}, path)
    return path


def test_numbers_of_numpy_and_a_table_of_pandas_are_read_around(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": [0, 1], "action": ["take plate", "put plate"]}, index=["0:1", "1:1"])
    args = argparse.Namespace(lr=3e-3, actions=table, best=np.float32(1), seeds=np.arange(3), path=tmp_path)
    file = saved(tmp_path / "official.pt", best_acc1=np.float64(46.1), args=args)
    with pytest.raises(HubError, match="holds more than data: reading it would call"):
        read_official(file)
    found = read_official(file, inert=True)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: w.tolist() for n, w in WEIGHTS.items()}
    content = load_pickle(file, inert=True)
    assert content["epoch"] == 5 and not vars(content["best_acc1"])


class Calls:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "exec": lambda marker: Calls(exec, f"open({marker!r}, 'w')"),
    "subprocess": lambda marker: Calls(subprocess.call, ["touch", marker]),
    "open": lambda marker: Calls(open, marker, "w"),
    "pickle": lambda marker: Calls(pickle.loads, pickle.dumps(Calls(exec, f"open({marker!r}, 'w')"))),
    "torch.load": lambda marker: Calls(torch.load, marker),
    "nested": lambda marker: Calls(Calls, Calls(exec, f"open({marker!r}, 'w')")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_wants_to_run_code_does_not(tmp_path, name):
    marker = tmp_path / "was_run"
    args = argparse.Namespace(hook=HOSTILE[name](str(marker)))
    file = saved(tmp_path / "official.pt", args=args)
    assert set(read_official(file, inert=True)) == set(WEIGHTS)
    assert not marker.exists()


@pytest.mark.parametrize("module", ["os", "posix", "nt", "sys"])
def test_the_system_is_not_even_named(tmp_path, module):
    """A pickle that names os.system, as the plain text that it is in the file."""
    marker = tmp_path / "was_run"
    text = f"touch {marker}".encode()
    # {"args": system(text)}, which pickle.loads would call
    hook = b"\x80\x02}X\x04\0\0\0args" + f"c{module}\nsystem\n".encode()
    hook += b"X" + len(text).to_bytes(4, "little") + text + b"\x85Rs."
    file = saved(tmp_path / "official.pt")
    rewrite(file, hook)
    with pytest.raises(HubError, match=rf"holds more than data: reading it would call {module}\.system"):
        read_official(file, inert=True)
    assert not marker.exists()


def rewrite(file, content):
    """Put another pickle into an archive of torch.save."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else data)


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
    """In a process of its own, where the module could be found."""
    (tmp_path / "surprise.py").write_text("import pathlib; pathlib.Path('imported').touch()\nclass Thing: pass\n")
    make = ("import argparse, torch, surprise; torch.save({'state_dict': {'a': torch.ones(2)}, "
            "'args': argparse.Namespace(thing=surprise.Thing())}, 'official.pt')")  # fmt: skip
    read = ("import sys; from hub.convert.videomamba import read_official; "
            "print(read_official('official.pt', inert=True)['a'].tolist(), 'surprise' in sys.modules)")  # fmt: skip
    path = {"PYTHONPATH": f"{tmp_path}:{':'.join(entry for entry in sys.path if entry)}"}
    run = dict(cwd=tmp_path, env=path, capture_output=True, text=True, timeout=600, check=True)
    subprocess.run([sys.executable, "-c", make], **run)
    (tmp_path / "imported").unlink()
    done = subprocess.run([sys.executable, "-c", read], **run)
    assert done.stdout.strip() == "[1.0, 1.0] False" and not (tmp_path / "imported").exists()


@pytest.mark.parametrize("where", ["in a tensor's place", "in place of all"])
def test_weights_that_are_something_else_are_not_found(tmp_path, where):
    thing = Calls(dict, [("a", 1)])
    weights = {**WEIGHTS, "head.bias": np.ones(3)} if where == "in a tensor's place" else thing
    torch.save({"state_dict": weights}, tmp_path / "official.pt")
    with pytest.raises(HubError, match="holds no weights, neither flat nor under"):
        read_official(tmp_path / "official.pt", inert=True)


def test_what_torch_lets_through_is_as_before(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_official(saved(tmp_path / "official.pt", best_acc1=np.float64(1)), inert=True)
    assert set(torch.serialization.get_safe_globals()) == before
