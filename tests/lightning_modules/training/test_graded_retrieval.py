"""Graded mAP and nDCG: against the golden tensors, a slow count in plain Python, and in two processes."""

import json
import math
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch

from lightning_modules.training.graded_retrieval import (
    GradedRetrieval,
    RetrievalScores,
    graded_ranking,
    relevance_of,
)
from lightning_modules.training.metrics import RetrievalRanks

NOUNS = 7


# The definition, one query after the other ---------------------------------------------------------------------------


def slow_relevance(one, other):
    """Of two pairs of a verb and a set of nouns."""
    (verb, nouns), (other_verb, other_nouns) = one, other
    return ((verb == other_verb) + len(nouns & other_nouns) / len(nouns | other_nouns)) / 2


def slow_scores(similarities, relevances):
    """Average precision and nDCG of one query; ties count against the model."""
    order = sorted(zip(similarities, relevances, strict=True), key=lambda pair: (-pair[0], pair[1]))
    ranked = [relevance for _, relevance in order]
    precisions = [sum(ranked[: k + 1]) / (k + 1) for k, relevance in enumerate(ranked) if relevance == 1]
    positive = sum(relevance > 0 for relevance in ranked)
    gain, best = (
        sum(relevance / math.log2(k + 2) for k, relevance in enumerate(row[:positive]))
        for row in (ranked, sorted(ranked, reverse=True))
    )
    return (sum(precisions) / len(precisions) if precisions else None), (gain / best if positive else None)


def slow(similarity, video_classes, text_classes):
    """All six numbers of a table (videos, sentences)."""
    relevance = [[slow_relevance(v, t) for t in text_classes] for v in video_classes]
    result = {}
    for direction, scores, right in (
        ("v2t", similarity, relevance),
        ("t2v", [*zip(*similarity, strict=True)], [*zip(*relevance, strict=True)]),
    ):
        found = [slow_scores(*row) for row in zip(scores, right, strict=True)]
        for i, name in enumerate(("map", "ndcg")):
            values = [pair[i] for pair in found if pair[i] is not None]
            result[f"{direction}_{name}"] = sum(values) / len(values)
    for name in ("map", "ndcg"):
        result[name] = (result[f"v2t_{name}"] + result[f"t2v_{name}"]) / 2
    return result


def softmax(row):
    return [math.exp(x) / sum(map(math.exp, row)) for x in row]


def prior(similarity):
    """Softmax over the videos times softmax over the sentences."""
    rows = [softmax(row) for row in similarity]
    columns = [*zip(*[softmax(column) for column in zip(*similarity, strict=True)], strict=True)]
    return [[a * b for a, b in zip(*pair, strict=True)] for pair in zip(rows, columns, strict=True)]


# Against it ----------------------------------------------------------------------------------------------------------


def data(segments=24, seed=0, whole=False):
    """Batches of segments in no order, some of them twice, and the videos and sentences that they hold once each."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    verb = draw(3, (segments,))
    nouns = torch.zeros(segments, NOUNS, dtype=torch.bool)
    for row in nouns:
        row[draw(4, (int(draw(1, 4, ())),))] = True
    count = draw(3, (segments,))
    owner = torch.arange(segments).repeat_interleave(count)
    numbers = {"size": (segments, 3), "generator": generator}
    video = torch.randint(-2, 3, **numbers).float() if whole else torch.randn(**numbers)
    text = video[owner] if whole else video[owner] + torch.randn(len(owner), 3, generator=generator)
    broken = {2, 5}
    order = [*torch.randperm(segments, generator=generator).tolist(), 3, 0]
    batches = []
    for start in range(0, len(order), 4):
        part = order[start : start + 4]
        rows = torch.tensor(part)
        batches.append({
            "video": torch.stack([torch.full((3,), 99.0) if i in broken else video[i] for i in part]),
            "text": torch.cat([text[owner == i] for i in part]), "count": count[rows], "verb": verb[rows],
            "nouns": nouns[rows], "segment": rows, "index": torch.tensor([-1 if i in broken else i for i in part]),
        })  # fmt: skip
    kept = [i for i in range(segments) if i not in broken]
    classes = [(int(v), frozenset(n.nonzero().flatten().tolist())) for v, n in zip(verb, nouns, strict=True)]
    similarity = (video[kept] @ text.T).tolist()
    return batches, (similarity, [classes[i] for i in kept], [classes[i] for i in owner.tolist()])


@pytest.mark.parametrize(("whole", "dual_softmax"), [(False, False), (True, False), (False, True)],
                         ids=["any", "ties", "dual softmax"])  # fmt: skip
def test_equal_to_a_count_in_plain_python(whole, dual_softmax):
    for seed in range(4):
        batches, table = data(seed=seed, whole=whole)
        metric = GradedRetrieval(dual_softmax)
        for batch in batches:
            metric.update(**batch)
        expected = slow(prior(table[0]) if dual_softmax else table[0], *table[1:])
        found = {name: value.item() for name, value in metric.compute().items()}
        assert (found.pop("videos"), found.pop("captions")) == (len(table[1]), len(table[2]))
        assert found == pytest.approx(expected, abs=1e-6)
        assert all(0.1 < value < 1 for value in found.values()), found


def test_equal_to_the_official_evaluation(golden):
    tensors, _ = golden("vim_suite_ek100")
    verb, nouns = tensors["mir.verb_class"], tensors["mir.noun_sets"].bool()
    owner = tensors["mir.sentence_of_video"]
    relevance = relevance_of(verb, nouns, verb[owner], nouns[owner])
    torch.testing.assert_close(relevance.float(), tensors["mir.relevance"])
    assert torch.equal(relevance == 1, tensors["mir.relevance"] == 1)
    # The batches have a segment's sentences beside it, so the columns come in the order of the segments.
    by_segment = torch.argsort(owner, stable=True)
    count = torch.bincount(owner, minlength=len(verb))
    metric = GradedRetrieval()
    metric.update(
        tensors["mir.video_features"], tensors["mir.text_features"][by_segment], count, verb=verb, nouns=nouns,
        segment=torch.arange(len(verb)), index=torch.arange(len(verb)),
    )  # fmt: skip
    found = metric.compute()
    for name in ("map", "ndcg"):
        for place, direction in enumerate(("v2t_", "t2v_", "")):
            assert found[direction + name].item() == pytest.approx(tensors[f"mir.{name}"][place].item(), abs=1e-6)
    # It is not the usual average precision, which counts only what is right.
    assert (tensors["mir.map"][:2] - tensors["mir.map_binary"]).min() > 0.1


def test_a_table_by_hand():
    """Three sentences of relevance 1, 1/2 and 0 to one video."""
    nouns = torch.eye(2, dtype=torch.bool)
    video, candidates = torch.tensor([0]), torch.tensor([0, 0, 1])
    relevance = relevance_of(video, nouns[:1], candidates, nouns[[0, 1, 1]])
    assert relevance.tolist() == [[1, 0.5, 0]]
    one = (torch.ones(1, 1), video, nouns[:1])
    for similarity, precision, gain in (
        ([3, 2, 1], 1, 1),
        ([2, 3, 1], 1.5 / 2, (0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3))),
        ([1, 2, 3], 1.5 / 3, (0.5 / math.log2(3)) / (1 + 0.5 / math.log2(3))),
        ([1, 1, 1], 1.5 / 3, (0.5 / math.log2(3)) / (1 + 0.5 / math.log2(3))),  # ties: the worst order
    ):
        many = (torch.tensor(similarity).float()[:, None], candidates, nouns[[0, 1, 1]])
        assert [x.item() for x in graded_ranking(one, many)] == pytest.approx([precision, gain])


def test_blocks_give_the_same_and_queries_without_an_answer_do_not_count():
    generator = torch.Generator().manual_seed(0)
    sides = []
    for size in (30, 20):
        nouns = torch.rand(size, 5, generator=generator) < 0.3
        nouns[:, 4] |= ~nouns.any(dim=1)
        sides.append((torch.randn(size, 3, generator=generator), torch.randint(4, (size,), generator=generator), nouns))
    whole, parts = (graded_ranking(*sides, block_elements=size) for size in (2**20, 50))
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(whole, parts, strict=True))
    assert 0 < whole[0].isnan().sum() < 30
    lonely = (torch.ones(1, 3), torch.tensor([9]), torch.zeros(1, 5, dtype=torch.bool).logical_not())
    precision, gain = graded_ranking(lonely, (torch.ones(1, 3), torch.tensor([1]), torch.eye(5).bool()[:1]))
    assert precision.isnan() and gain == 1  # nothing is fully right, something a little


def test_nothing_counted_is_nan_not_zero():
    metric = GradedRetrieval()
    metric.update(torch.ones(1, 3), torch.ones(0, 3), torch.tensor([0]), verb=torch.tensor([1]),
                  nouns=torch.ones(1, 2, dtype=torch.bool), segment=torch.tensor([0]),
                  index=torch.tensor([-1]))  # fmt: skip
    found = metric.compute()
    assert found["map"].isnan() and found["ndcg"].isnan() and found["videos"] == found["captions"] == 0


def test_the_batches_say_which_scores_a_model_gets():
    batches, _ = data()
    scores, alone = RetrievalScores(), GradedRetrieval()
    for batch in batches:
        texts = [["x"] * int(count) for count in batch["count"]]
        known = {name: batch[name] for name in ("verb", "nouns", "segment")}
        scores.update(batch["video"], batch["text"], {"text": texts, "video_index": batch["index"], **known})
        alone.update(**batch)
    assert scores.is_graded
    expected = alone.compute()
    assert scores.compute() == {name: expected[name] for name in expected if name not in ("videos", "captions")}
    assert not scores.is_graded
    ranks = RetrievalRanks()
    plain = torch.randn(4, 3), torch.arange(4), torch.randn(4, 3), torch.ones(4, dtype=torch.int64)
    ranks.update(*plain)
    scores.update(plain[0], plain[2], {"text": [["x"]] * 4, "video_index": plain[1]})
    assert scores.compute()["t2v_mnr"] == ranks.compute()["t2v_mnr"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(f"""
        import importlib.util, json, sys
        from torch import distributed, multiprocessing

        def work(rank):
            spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
            helpers = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(helpers)
            distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
            metric = helpers.GradedRetrieval()
            for batch in helpers.data()[0][rank::2]:
                metric.update(**batch)
            result = {{name: value.item() for name, value in metric.compute().items()}}
            with open(f"{tmp_path}/{{rank}}.json", "w") as file:
                json.dump(result, file)
            distributed.destroy_process_group()

        if __name__ == "__main__":
            multiprocessing.spawn(work, nprocs=2)
    """))  # fmt: skip
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    _, table = data()
    expected = slow(*table) | {"videos": len(table[1]), "captions": len(table[2])}
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, abs=1e-6)
