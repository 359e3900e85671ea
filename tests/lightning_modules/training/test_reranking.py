"""Re-ranking against a brute-force table of all pairs."""

import torch

from lightning_modules.training.metrics import RetrievalRanks, rank_statistics
from lightning_modules.training.reranking import Reranker


def split(num_videos, seed=0):
    """Vectors, tokens and captions of a split, one to three captions a video, of two to five words."""
    generator = torch.Generator().manual_seed(seed)
    counts = [1 + i % 3 for i in range(num_videos)]
    vectors = torch.randn(num_videos, 6, generator=generator)
    tokens = torch.randn(num_videos, 4, 5, generator=generator)
    texts = vectors.repeat_interleave(torch.tensor(counts), dim=0)
    texts = texts + 2 * torch.randn(texts.shape, generator=generator)
    words = [torch.randn(2 + i % 4, 5, generator=generator) for i in range(sum(counts))]
    return counts, vectors, tokens, texts, words


def match(hidden, mask, tokens):
    return ((hidden * mask[..., None]).sum(1) * tokens.mean(1)).sum(1)


def brute_force(counts, vectors, tokens, texts, words, topk):
    owner = [video for video, count in enumerate(counts) for _ in range(count)]
    near = (texts @ vectors.T).tolist()
    score = [[float(word.sum(0) @ token.mean(0)) for token in tokens] for word in words]
    t2v = []
    for i, row in enumerate(near):
        kept = sorted(range(len(row)), key=lambda j: -row[j])[:topk]
        new = [score[i][j] if j in kept else -100.0 for j in range(len(row))]
        t2v.append(sum(value >= new[owner[i]] for value in new))
    v2t = []
    for j in range(len(counts)):
        column = [row[j] for row in near]
        kept = sorted(range(len(column)), key=lambda i: -column[i])[:topk]
        new = [score[i][j] if i in kept else -100.0 for i in range(len(column))]
        best = [max(new[i] for i in range(len(new)) if owner[i] == video) for video in range(len(counts))]
        v2t.append(sum(value >= best[j] for value in best))
    return rank_statistics(torch.tensor(t2v), torch.tensor(v2t))


def test_ranks_are_those_of_a_table_of_all_pairs():
    data = split(9)
    counts, vectors, tokens, texts, words = data
    for topk in (3, 100):
        reranker = Reranker(topk)
        end = 0
        for first in (0, 4):  # in two batches, the second with a video again and one that is not readable
            videos = list(range(first, min(first + 5, 9)))
            number = sum(counts[i] for i in videos)
            start = sum(counts[: videos[0]])
            end = start + number
            own = [counts[i] for i in videos]
            index = torch.tensor([10 * i for i in videos])
            reranker.update(index, vectors[videos], tokens[videos], own, texts[start:end], words[start:end])
        reranker.update(torch.tensor([-1]), vectors[:1], tokens[:1], [1], texts[:1], words[:1])
        found, expected = reranker.compute(match), brute_force(*data, topk)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=f"{topk} {name}")


def test_with_the_cosine_as_the_second_look_and_all_candidates_nothing_changes():
    counts, vectors, _, texts, _ = split(7, seed=1)
    reranker, ranks = Reranker(100), RetrievalRanks()
    index = torch.arange(7)
    reranker.update(index, vectors, vectors[:, None], counts, texts, [text[None] for text in texts])
    ranks.update(vectors, index, texts, torch.tensor(counts))
    found = reranker.compute(lambda hidden, mask, tokens: (hidden[:, 0] * tokens[:, 0]).sum(1))
    expected = ranks.compute()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    reranker.reset()
    assert reranker.compute(match)["t2v_r1"].isnan()
