"""Corpora of pairs: reading, mixing, batches of one kind, going on in the middle of an epoch."""

import collections
import csv
import itertools
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from torchvision.io import write_jpeg

from datamodules import PairCorpora, VideoReader
from datamodules.errors import DataError
from datamodules.loading import Draw
from datamodules.pairs import Pair, PairList, PairSampler, read_pairs
from datamodules.shards.writing import Source, write_shards
from datamodules.synthetic.writing import generate

CLIP = {"num_frames": 4, "image_size": 32, "short_side": 32, "sampling": "sparse", "frame_stride": 4,
        "interpolation": "bicubic"}  # fmt: skip


def test_lists_and_lines(tmp_path):
    entries = [{"video": "a.mp4", "caption": "one"}, {"video": "b.mp4", "caption": ["two", "three"], "id": 7}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    expected = [("video", Pair("a.mp4", "one")), ("video", Pair("b.mp4", "two")), ("video", Pair("b.mp4", "three"))]
    for name in ("a.json", "a.jsonl"):
        assert list(read_pairs(str(tmp_path / name))) == expected
    (tmp_path / "i.ndjson").write_text('{"image": "ü.jpg", "caption": "größer"}')
    assert list(read_pairs(str(tmp_path / "i.ndjson"))) == [("image", Pair("ü.jpg", "größer"))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"video": "a.mp4", "caption": "x"}\n{"video"', "is not JSON .line 2: "),
        ("a.jsonl", '{"picture": "a"}', "without video"),
        ("a.json", '[{"image": "a.jpg", "caption": []}]', "captions of a.jpg are not a list"),
        ("a.json", '[{"image": "a.jpg"}]', "without caption"),
        ("b.json", None, "does not exist"),
    ],
)
def test_mistakes_in_the_files(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_pairs(str(tmp_path / name)))


def test_a_list_of_pairs_is_packed():
    pairs = [Pair("x/ä.mp4", "größer 世界"), Pair("y.mp4", ""), Pair("x/ä.mp4", "second")]
    packed = PairList(iter(pairs))
    assert list(packed) == pairs and len(packed) == 3
    assert packed.media[0] == packed.media[2] != packed.media[1]
    with pytest.raises(IndexError):
        packed[3]
    assert len(PairList([])) == 0


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    return list(sampler)


def test_batches_hold_one_kind_in_all_processes():
    corpora = [(0, 30, 1.0), (30, 50, 1.0), (50, 100, 1.0)]  # two corpora of pictures, one of videos
    options = {"batch_size": 4, "num_replicas": 2, "seed": 3}
    ranks = [PairSampler(50, corpora, rank=rank, **options) for rank in (0, 1)]
    assert [len(sampler) for sampler in ranks] == [48, 48]  # 6 batches of each kind, of 8 pairs in both processes
    first, second = (epoch(sampler) for sampler in ranks)
    kinds = []
    for start in range(0, 48, 4):
        step = [draw.index < 50 for draws in (first, second) for draw in draws[start : start + 4]]
        assert all(step) or not any(step)
        kinds.append(step[0])
    assert sum(kinds) == 6 and kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)  # alternating
    seen = [draw.index for draw in [*first, *second]]
    assert len(set(seen)) == len(seen) == 96
    assert len({draw.seed for draw in [*first, *second]}) == 96
    assert epoch(ranks[0]) == first and epoch(ranks[0], 1) != first


def test_two_processes_share_what_one_would_see():
    corpora = [(0, 20, 1.0), (20, 60, 1.0)]
    one = epoch(PairSampler(20, corpora, 4, seed=5))
    two = [epoch(PairSampler(20, corpora, 2, num_replicas=2, rank=rank, seed=5)) for rank in (0, 1)]
    for step in range(15):
        together = sorted([*two[0][2 * step : 2 * step + 2], *two[1][2 * step : 2 * step + 2]])
        assert together == sorted(one[4 * step : 4 * step + 4])


def test_ratios_say_how_often_a_pair_comes():
    corpora = [(0, 40, 0.25), (40, 60, 2.5), (60, 100, 1.0)]
    sampler = PairSampler(60, corpora, 1)
    counts = collections.Counter(draw.index for draw in epoch(sampler))
    assert sum(counts[i] for i in range(40)) == 10 and max(counts[i] for i in range(40)) == 1
    assert sum(counts[i] for i in range(40, 60)) == 50 and {counts[i] for i in range(40, 60)} == {2, 3}
    assert all(counts[i] == 1 for i in range(60, 100))
    other = collections.Counter(draw.index for draw in epoch(sampler, 1))
    assert {i for i in range(40) if counts[i]} != {i for i in range(40) if other[i]}
    with pytest.raises(DataError, match=r"take a smaller data\.batch_size"):
        PairSampler(60, corpora, 200)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Generated videos with captions, and their first frames as pictures."""
    root = generate(tmp_path_factory.mktemp("pairs") / "data", num_train=8, num_val=2, num_test=0, size=(48, 40),
                    num_frames=6, num_workers=0, progress=False)  # fmt: skip
    captions = collections.defaultdict(list)
    with (root / "captions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions[row["video"]].append(row["caption"])
    train = [path for path in captions if path.startswith("train")]
    (root / "videos.jsonl").write_text("\n".join(json.dumps({"video": p, "caption": captions[p]}) for p in train))
    (root / "pictures").mkdir()
    pictures = []
    for number, path in enumerate(train):
        with VideoReader(root / path) as reader:
            write_jpeg(reader.read([0])[0], str(root / "pictures" / f"{number}.jpg"))
        pictures.append({"image": f"{number}.jpg", "caption": f"picture {number}"})
    (root / "pictures.json").write_text(json.dumps(pictures))
    (root / "val.json").write_text(
        json.dumps([{"video": p, "caption": captions[p]} for p in captions if p not in train])
    )
    return root


def module(root, **kwargs):
    corpora = [{"annotations": "videos.jsonl", "ratio": 1}, {"annotations": "pictures.json", "media": "pictures"}]
    defaults = dict(corpora=corpora, val="val.json", videos=".", batch_size=2, num_workers=0, **CLIP)
    return PairCorpora(root, **{**defaults, **kwargs})


def test_batches_alternate_between_clips_and_pictures(root):
    data = module(root, horizontal_flip=0.5)
    data.setup("fit")
    batches = list(data.train_dataloader())
    shapes = collections.Counter(tuple(batch["video"].shape) for batch in batches)
    number = len(data.captions)
    assert shapes == {(2, 3, 1, 32, 32): 4, (2, 3, 4, 32, 32): (number - 8) // 2}
    pairs = data.datasets["train"].pairs
    for batch in batches:
        assert batch["video"].dtype == torch.uint8 and batch["index"].dtype == batch["video_index"].dtype == torch.int64
        for index, text, path in zip(batch["index"].tolist(), batch["text"], batch["path"], strict=True):
            assert pairs[index] == (path, text) and (index < 8) == path.endswith(".jpg")
    # Captions of one video share its number, pictures have others.
    numbers = collections.defaultdict(set)
    for index in range(len(pairs)):
        numbers[pairs[index].path].add(int(pairs.media[index]))
    assert all(len(found) == 1 for found in numbers.values())
    assert len(set().union(*numbers.values())) == len(numbers) == 16
    (evaluated,) = data.val_dataloader()
    assert evaluated["video"].shape == (2, 3, 4, 32, 32) and all(isinstance(texts, list) for texts in evaluated["text"])
    test = module(root)
    test.setup("test")
    assert len(test.datasets["test"]) == 2


def test_an_interrupted_epoch_goes_on(root):
    whole = module(root)
    whole.setup("fit")
    torch.manual_seed(3)
    expected = list(whole.train_dataloader())
    torch.manual_seed(3)
    first = module(root)
    first.setup("fit")
    loader = iter(first.train_dataloader())
    start = [next(loader) for _ in range(3)]
    state = first.state_dict()
    torch.manual_seed(3)
    second = module(root)
    second.load_state_dict(state)
    second.setup("fit")
    found = [*start, *second.train_dataloader()]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["video"], b["video"]) and a["text"] == b["text"] and torch.equal(a["index"], b["index"])


def test_what_cannot_be_read_is_replaced_by_its_like(root, tmp_path):
    broken = [{"image": f"{i}.jpg" if i != 2 else "nowhere.jpg", "caption": f"picture {i}"} for i in range(8)]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    corpora = [{"annotations": "videos.jsonl"},
               {"annotations": str(tmp_path / "broken.json"), "media": str(root / "pictures")}]  # fmt: skip
    data = module(root, corpora=corpora, check_files=False)
    data.setup("fit")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        item = data.datasets["train"][2]
    assert any("nowhere.jpg" in str(warning.message) for warning in caught)
    assert item["video"].shape == (3, 1, 32, 32) and item["index"] != 2
    assert item["text"] == f"picture {np.char.partition(item['path'], '/pictures/')[2].item()[:-4]}"
    data.datasets["train"].tally.check()
    with pytest.warns(UserWarning, match="1 of the 8 train videos do not exist"):
        module(root, corpora=corpora).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpora": []}, "corpora is empty"),
        ({"corpora": [{"media": "x"}]}, "is no corpus"),
        ({"corpora": [{"annotations": "x", "weight": 2}]}, "is no corpus"),
        ({"corpora": [{"annotations": "x", "ratio": 0}]}, "ratio is 0; it has to be above 0"),
        ({"corpora": [5]}, "5 is no corpus"),
        ({"val": None}, "data.val is not set"),
        ({"corpora": [{"annotations": "mixed.json"}]}, "both pictures and videos"),
        ({"batch_size": 500}, "take a smaller data.batch_size"),
    ],
)
def test_mistakes_are_named(root, arguments, message):
    (root / "mixed.json").write_text(
        json.dumps([{"image": "0.jpg", "caption": "x"}, {"video": "a.mp4", "caption": "x"}])
    )
    with pytest.raises(DataError, match=message):
        data = module(root, **arguments)
        data.setup("fit")
        data.train_dataloader()


# Shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(root):
    """The same corpora as tar shards, a few samples each: folders videos and pictures."""
    for name, media in (("videos.jsonl", ""), ("pictures.json", "pictures")):
        captions = collections.defaultdict(list)
        for _, pair in read_pairs(str(root / name)):
            captions[pair.path].append(pair.caption)
        kind = "video" if name == "videos.jsonl" else "image"
        sources = [Source(str(root / media / path), path, {"captions": texts}) for path, texts in captions.items()]
        write_shards(sources, root / "shards" / kind, "train", about={"media": kind}, max_bytes=4000)
    return root / "shards"


def of_shards(root, **kwargs):
    return module(root, corpora=[{"shards": "shards/video"}, {"shards": "shards/image"}], **kwargs)


def said(batch):
    return collections.Counter(zip([path.rpartition("/")[2].rpartition("!")[2] for path in batch["path"]],
                                   batch["text"], strict=True))  # fmt: skip


def test_pairs_in_shards_are_those_of_the_lists(root, shards):
    plain, tarred = module(root), of_shards(root)
    for data in (plain, tarred):
        data.setup("fit")
    assert tarred.captions == plain.captions
    a, b = (data.datasets["train"] for data in (plain, tarred))
    for number in (0, 7, 8, len(a) - 1):
        one, other = a[Draw(number, 5)], b[Draw(number, 5)]
        assert torch.equal(one["video"], other["video"])
        assert all(one[key] == other[key] for key in ("text", "index", "seed"))
    assert [np.flatnonzero(a.media == m).tolist() for m in a.media] == [
        np.flatnonzero(b.media == m).tolist() for m in b.media
    ]
    assert sum(map(len, tarred._shards)) > 4 and sum(map(sum, tarred._shards)) == len(b)
    batches = list(tarred.train_dataloader())
    assert {batch["video"].shape[2] for batch in batches} == {1, 4}
    everything = {(path.rpartition("/")[2].rpartition("!")[2], text) for path, text in a.pairs}
    assert {pair for batch in batches for pair in said(batch)} <= everything
    pictures = [batch["video"].shape[2] == 1 for batch in batches]
    assert pictures != sorted(pictures) and pictures != sorted(pictures, reverse=True)  # alternating


def test_an_interrupted_epoch_of_shards_goes_on(root, shards, shard_server):
    with shard_server(shards) as server:
        remote = [{"shards": f"{server.url}/video"}, {"shards": f"{server.url}/image", "ratio": 0.5}]
        local = [{"shards": "shards/video"}, {"shards": "shards/image", "ratio": 0.5}]
        expected = batches_of(module(root, corpora=local, num_workers=2))
        first = module(root, corpora=remote, num_workers=2)
        start = batches_of(first, 3)
        second = module(root, corpora=remote, num_workers=2)
        second.load_state_dict(first.state_dict())
        found = [*start, *batches_of(second)]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["video"], b["video"]) and a["text"] == b["text"] and torch.equal(a["index"], b["index"])
    other = module(root, corpora=local, num_workers=2, shuffle_buffer=1)
    other.load_state_dict(first.state_dict())
    with pytest.raises(DataError, match="read in another order"):
        batches_of(other)


def batches_of(data, count=None):
    data.setup("fit")
    torch.manual_seed(3)
    return list(itertools.islice(data.train_dataloader(), count))


def test_shards_of_pairs_stay_together():
    """With the buffer off, a corpus's shards are read one after the other, in every process, whatever is mixed in."""
    corpora, shards = [(0, 40, 1.0), (40, 100, 1.0), (100, 140, 0.5)], [[10] * 4, [20] * 3, None]
    options = {"num_replicas": 2, "seed": 1, "shards": shards}
    ranks = [epoch(PairSampler(100, corpora, 5, rank=rank, **options)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 60
    dealt = [draw.index for step in zip(*ranks, strict=True) for draw in step]
    for start, end, size in ((0, 40, 10), (40, 100, 20)):
        corpus = [index for index in dealt if start <= index < end]
        assert len(corpus) == end - start
        runs = [number for number, _ in itertools.groupby((index - start) // size for index in corpus)]
        assert sorted(runs) == list(range((end - start) // size))
    # Both corpora of pictures are spread over the whole epoch.
    pictures = [index < 40 for index in dealt if index < 100]
    assert all(3 <= sum(pictures[i : i + 20]) <= 13 for i in range(0, 100, 20))
    assert [draw.index < 100 for draw in ranks[0]] == [draw.index < 100 for draw in ranks[1]]
    assert epoch(PairSampler(100, corpora, 5, **options), 1) != epoch(PairSampler(100, corpora, 5, **options))


def test_missing_and_wrong_shards_of_pairs(root, shards, tmp_path):
    copy = shutil.copytree(shards / "image", tmp_path / "image")
    (copy / "train-000000.tar").unlink()
    data = module(root, corpora=[{"shards": str(copy)}, {"annotations": "videos.jsonl"}], max_unreadable=0.8)
    with pytest.warns(UserWarning, match=r"of the 8 train videos do not exist: .*image/train-000000\.tar!"):
        data.setup("fit")
    for arguments, message in [
        ({"corpora": [{"shards": str(tmp_path)}]}, "no index of shards"),
        ({"corpora": [{"shards": "shards/image", "media": "x"}]}, "is no corpus"),
        ({"shards": "shards/image"}, "name the shards of each corpus in data.corpora"),
    ]:
        with pytest.raises(DataError, match=message):
            module(root, **arguments).setup("fit")
