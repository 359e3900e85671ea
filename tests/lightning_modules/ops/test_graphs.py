"""Replayed forward passes: on a GPU the graphs themselves; here what they are kept by, and what is refused.

Without a GPU `capture` is replaced by one whose graph calls the function again and writes over the same result.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

import zoo
from lightning_modules.errors import ModelError
from lightning_modules.ops import graphs
from zoo.errors import ZooError

NANO = "videomamba-nano-motion"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are a matter of GPUs")


class Recorded:
    """Stands in for a graph on the CPU."""

    def __init__(self, function):
        self.function, self.result = function, function()

    def replay(self):
        for old, new in zip(self.result, self.function(), strict=True):
            old.copy_(new)


class Net(nn.Module):
    """Gives a tuple, a part of which is no tensor of its own type."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype)), x.sum()


@pytest.fixture
def captured(monkeypatch):
    made = []

    def capture(function, device):
        made.append(Recorded(function))
        return made[-1], made[-1].result

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "_DEVICE", "cpu")
    return made


@torch.no_grad()
def test_one_recording_serves_all_inputs_of_a_shape(captured):
    torch.manual_seed(0)
    net = Net().eval()
    replayed = graphs.Replayed(net)
    inputs = [torch.randn(4, 3) for _ in range(3)]
    results = [replayed(x) for x in inputs]
    assert len(captured) == 1
    for x, (y, total) in zip(inputs, results, strict=True):  # results are copies: later calls leave them alone
        assert torch.equal(y, net(x)[0]) and torch.equal(total, x.sum())
        assert not y.is_inference()
    net.layer.weight.add_(1)  # in place: the recording reads the new values
    assert torch.equal(replayed(inputs[0])[0], net(inputs[0])[0]) and len(captured) == 1
    for x in (torch.randn(5, 3), torch.ones(4, 3, dtype=torch.int64), torch.randn(3, 4).t()):
        assert torch.equal(replayed(x)[0], net(x)[0])
    assert len(captured) == 3  # another shape and another dtype; other strides are copied
    with torch.autocast("cpu", torch.bfloat16):
        assert replayed(inputs[0])[0].dtype == torch.bfloat16
    assert len(captured) == 4 and replayed(inputs[0])[0].dtype == torch.float32


@torch.inference_mode()
def test_moved_weights_are_recorded_again(captured):
    net = Net().eval()
    replayed = graphs.Replayed(net)
    x = torch.randn(4, 3)
    replayed(x)
    net.double()
    assert replayed(x)[0].dtype == torch.float64 and len(captured) == 2
    replayed(x)
    assert len(captured) == 2


@torch.inference_mode()
def test_the_recording_not_used_longest_goes(captured, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    replayed = graphs.Replayed(Net().eval())
    for rows, recordings in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4), (1, 4), (3, 5)):
        replayed(torch.ones(rows, 3))
        assert len(captured) == recordings


@torch.inference_mode()
def test_copies_record_for_themselves(captured):
    net = Net().eval()
    net.forward = graphs.Replayed(net)
    x = torch.randn(4, 3)
    expected = net(x)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.forward.module is other
        other.layer.weight.mul_(2)
        assert not torch.equal(other(x)[0], expected)
    assert torch.equal(net(x)[0], expected) and len(captured) == 3


def test_training_gradients_and_cpus_are_refused(captured, monkeypatch):
    net = Net()
    replayed, x = graphs.Replayed(net), torch.randn(4, 3)
    with torch.no_grad(), pytest.raises(ModelError, match=r"^Net replays a CUDA graph, which has no gradients; call"):
        replayed(x)
    net.eval()
    with pytest.raises(ModelError, match="which has no gradients"):
        replayed(x)
    monkeypatch.setattr(graphs, "_DEVICE", "cuda")
    with torch.no_grad(), pytest.raises(ModelError, match="is on cpu; move it to a GPU, or load it"):
        replayed(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_before_anything_is_read():
    with pytest.raises(ZooError, match=r"^graph=True replays a CUDA graph and there is no NVIDIA GPU here; omit it\.$"):
        zoo.load("gone/", graph=True)


@gpu
def test_a_replayed_model_gives_what_it_gives_without():
    plain, replayed = zoo.load(NANO).cuda(), zoo.load(NANO, graph=True)
    video = torch.randint(256, (2, 3, *(plain.preprocessing[k] for k in ("num_frames", "image_size", "image_size"))))
    with torch.inference_mode():
        for seed in range(3):
            clip = video.roll(seed, -1).to(torch.uint8)
            torch.testing.assert_close(replayed(clip.cuda()), plain(clip.cuda()))
            torch.testing.assert_close(replayed(clip[:1]), plain(clip[:1].cuda()))
        with torch.autocast("cuda", torch.bfloat16):
            torch.testing.assert_close(replayed(clip), plain(clip.cuda()))


@gpu
def test_a_recording_is_what_was_started():
    x = torch.ones(4, device="cuda")
    graph, result = graphs.capture(lambda: x * 2, torch.device("cuda"))
    x.fill_(3)
    graph.replay()
    assert result.tolist() == [6] * 4
