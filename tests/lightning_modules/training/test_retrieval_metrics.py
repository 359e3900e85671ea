"""Ranks by hand, against a brute-force count with ties, over blocks and over processes."""

import json
import statistics
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.training.metrics import RetrievalRanks, retrieval_ranks


def brute_force(similarity, owner, dual_softmax=False):
    """Ranks from a whole similarity matrix (captions, videos), entry by entry; ties count against the model."""
    if dual_softmax:
        similarity = similarity.double()
        similarity = similarity.softmax(0) * similarity.softmax(1)
    rows, owner = similarity.tolist(), owner.tolist()
    videos = range(len(rows[0]))
    t2v = [sum(row[v] >= row[own] for v in videos) for row, own in zip(rows, owner, strict=True)]
    best = [[max(row[v] for row, own in zip(rows, owner, strict=True) if own == other) for other in videos]
            for v in videos]  # fmt: skip
    return t2v, [sum(best[v][other] >= best[v][v] for other in videos) for v in videos]


def summary(ranks):
    recalls = {f"r{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return {**recalls, "mdr": statistics.median(ranks), "mnr": statistics.mean(ranks)}


def test_a_table_by_hand():
    """Similarities of four captions (rows) and four videos, one caption each."""
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # right: 1
            [0.8, 0.5, 0.6, 0.1],  # two nearer: 3
            [0.2, 0.7, 0.7, 0.0],  # one as near: 2
            [0.4, 0.3, 0.2, 0.1],  # last: 4
        ]
    )  # columns: 0.9 first: 1; 0.5 behind 0.7: 2; 0.7 first: 1; 0.1 behind 0.3 and beside 0.1: 3
    metric = RetrievalRanks()
    metric.update(torch.eye(4), torch.arange(4), similarity, torch.ones(4, dtype=torch.int64))
    result = {name: value.item() for name, value in metric.compute().items()}
    assert result == pytest.approx({
        "t2v_r1": 0.25, "t2v_r5": 1, "t2v_r10": 1, "t2v_mdr": 2.5, "t2v_mnr": 2.5,
        "v2t_r1": 0.5, "v2t_r5": 1, "v2t_r10": 1, "v2t_mdr": 1.5, "v2t_mnr": 1.75, "videos": 4, "captions": 4,
    })  # fmt: skip


def test_several_captions_by_hand():
    """Two captions of the first video, one of the second and three of the third."""
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.0],  # of 0: 1
            [0.2, 0.8, 0.1],  # of 0: 2
            [0.3, 0.4, 0.5],  # of 1: 2
            [0.1, 0.2, 0.0],  # of 2: 3
            [0.0, 0.1, 0.3],  # of 2: 1
            [0.1, 0.6, 0.2],  # of 2: 2
        ]
    )  # nearest of each set to video 0: .9 .3 .1, to 1: .8 .4 .6, to 2: .1 .5 .3; ranks 1, 3, 2
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    t2v, v2t = retrieval_ranks(similarity, torch.eye(3), owner)
    assert t2v.tolist() == [1, 2, 2, 3, 1, 2]
    assert v2t.tolist() == [1, 3, 2]


@pytest.mark.parametrize("dual_softmax", [False, True])
@pytest.mark.parametrize("counts", [[1] * 23, [3, 1, 1, 7, 2, 1, 5, 1, 1, 4]], ids=["one caption", "several"])
@pytest.mark.parametrize("block_elements", [1, 50, 2**24])
def test_equals_brute_force_with_ties(counts, dual_softmax, block_elements):
    """Small whole numbers have exact products, many of them equal."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        text = torch.randint(-2, 3, (len(owner), 3), generator=generator).double()
        video = torch.randint(-2, 3, (len(counts), 3), generator=generator).double()
        if dual_softmax:  # whose sums round, so ties are no matter of counting
            text += torch.rand(text.shape, generator=generator)
            video += torch.rand(video.shape, generator=generator)
        expected = brute_force(text @ video.T, owner, dual_softmax)
        found = retrieval_ranks(text, video, owner, dual_softmax=dual_softmax, block_elements=block_elements)
        assert [ranks.tolist() for ranks in found] == list(expected)
        if not dual_softmax:
            similarity = text @ video.T
            right = similarity.gather(1, owner[:, None])
            assert ((similarity == right).sum(1) > 1).any()  # ties there are


def test_dual_softmax_helps_a_hub():
    """A video that is near to every caption loses to the one that is nearest to this caption only."""
    similarity = torch.tensor([[2.0, 2.1, 0.0], [0.0, 2.5, 0.0], [0.0, 2.1, 2.0]])
    owner = torch.arange(3)
    assert retrieval_ranks(similarity, torch.eye(3), owner)[0].tolist() == [2, 1, 2]
    assert retrieval_ranks(similarity, torch.eye(3), owner, dual_softmax=True)[0].tolist() == [1, 1, 1]


def test_a_model_that_tells_nothing_apart_comes_last():
    t2v, v2t = retrieval_ranks(torch.ones(6, 2), torch.ones(3, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert t2v.tolist() == [3] * 6 and v2t.tolist() == [3] * 3


def data(videos=13, seed=0):
    """Batches (video, index, text, count) in no order, with videos twice and placeholders, and what they hold."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(videos, 6, generator=generator)
    count = torch.randint(1, 5, (videos,), generator=generator)
    owner = torch.arange(videos).repeat_interleave(count)
    text = video[owner] + 2 * torch.randn(len(owner), 6, generator=generator)
    order = [*torch.randperm(videos, generator=generator).tolist(), -1, 3, 5, -1]
    batches = []
    for start in range(0, len(order), 3):
        part = order[start : start + 3]
        rows = [torch.where(owner == i)[0] if i >= 0 else torch.arange(2) for i in part]
        batches.append((
            torch.stack([video[i] if i >= 0 else torch.full((6,), 99.0) for i in part]),
            torch.tensor([10 * i if i >= 0 else -1 for i in part]),  # any numbers, not positions
            text[torch.cat(rows)],
            torch.tensor([len(r) for r in rows]),
        ))  # fmt: skip
    return batches, text @ video.T, owner


def test_videos_count_once_with_their_captions_and_placeholders_not_at_all():
    batches, similarity, owner = data()
    metric = RetrievalRanks()
    for batch in batches:
        metric.update(*batch)
    result = metric.compute()
    t2v, v2t = brute_force(similarity, owner)
    expected = {f"t2v_{k}": v for k, v in summary(t2v).items()} | {f"v2t_{k}": v for k, v in summary(v2t).items()}
    expected |= {"videos": 13, "captions": len(owner)}
    assert {k: v.item() for k, v in result.items()} == pytest.approx(expected)
    assert 0 < expected["t2v_r1"] < expected["t2v_r5"] < 1


def test_nothing_counted_is_nan_not_zero():
    metric = RetrievalRanks()
    metric.update(torch.rand(1, 4), torch.tensor([-1]), torch.rand(2, 4), torch.tensor([2]))
    result = metric.compute()
    assert result["videos"] == 0 and result["t2v_r1"].isnan() and result["v2t_mdr"].isnan()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(f"""
        import importlib.util, json, sys
        import torch
        from torch import distributed, multiprocessing

        def work(rank):
            spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
            helpers = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(helpers)
            distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
            metric = helpers.RetrievalRanks()
            for batch in helpers.data()[0][rank::2]:
                metric.update(*batch)
            result = {{name: value.item() for name, value in metric.compute().items()}}
            with open(f"{tmp_path}/{{rank}}.json", "w") as file:
                json.dump(result, file)
            distributed.destroy_process_group()

        if __name__ == "__main__":
            multiprocessing.spawn(work, nprocs=2)
    """))  # fmt: skip
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    metric = RetrievalRanks()
    for batch in data()[0]:
        metric.update(*batch)
    alone = {name: value.item() for name, value in metric.compute().items()}
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_the_matrix_is_never_held_as_a_whole():
    """No tensor that any operation makes is larger than a block."""
    text, video, owner = torch.randn(3000, 4), torch.randn(1000, 4), torch.arange(3000) // 3
    for dual_softmax in (False, True):
        with Largest() as largest:
            blocks = retrieval_ranks(text, video, owner, dual_softmax=dual_softmax, block_elements=2**16)
        assert 2**15 < largest.elements <= 2**16
        with Largest() as largest:
            whole = retrieval_ranks(text, video, owner, dual_softmax=dual_softmax)
        assert largest.elements == 3000 * 1000
        assert all(map(torch.equal, blocks, whole))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation returns; of one that is expanded, those that lie in memory."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out
