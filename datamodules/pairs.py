"""Corpora of pictures and videos with a caption each, mixed: what models of videos and language are pretrained on."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from datamodules.annotations.captions import Captions, are_texts, captions_in, read_json
from datamodules.annotations.lists import parse_json
from datamodules.augment import TrainTransform
from datamodules.checks import SHARE, Number, check
from datamodules.clips import ClipFormat
from datamodules.errors import DataError
from datamodules.loading import Item, TrainSampler
from datamodules.retrieval import CaptionDataset, CaptionedVideo, RetrievalDataModule, frame_positions
from datamodules.shards.reading import open_shards, shard_order
from datamodules.storage.files import join, read_text
from datamodules.unreadable import ListedItems, UnreadableTally
from datamodules.video.resize import to_clip

__all__ = ["Pair", "PairCorpora", "PairDataset", "PairList", "PairSampler", "read_pairs"]

_KINDS = ("image", "video")
_LINES = (".jsonl", ".ndjson")


class Pair(NamedTuple):
    """A picture or video and its caption.

    Attributes:
        path: the file.
        caption: one sentence or more.
    """

    path: str
    caption: str


def read_pairs(path: str) -> Iterator[tuple[str, Pair]]:
    """Read a corpus: yield ("image" or "video", `Pair`) in the order of the file.

    The file has one of these forms:

        {"video": "a.mp4", "caption": "..."}           .jsonl, .ndjson: an object on each line
        [{"image": "a.jpg", "caption": "..."}, ...]    anything else: a list of them

    A list of captions makes as many pairs.

    Raises:
        DataError: the file is missing or has another form.
    """
    entries: Iterable[Any] = _lines(path) if path.lower().endswith(_LINES) else read_json(path, list)
    for entry in entries:
        kind = next((kind for kind in _KINDS if isinstance(entry, dict) and kind in entry), "video")
        name, captions = captions_in(entry, kind, path)
        yield from ((kind, Pair(name, caption)) for caption in captions)


def _lines(path: str) -> Iterator[Any]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield parse_json(line, path, number, remedy="write an object on each line")


class PairList(Sequence[Pair]):
    """Millions of pairs in a few arrays, which loader processes share: about the bytes of their paths and captions.

    Args:
        pairs: what it holds.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        text, ends, keys = bytearray(), array("q", [0]), array("q")
        for pair in pairs:
            path = _encoded(pair.path)
            # 64 bits: among 25 million files two share a number with a probability of 1 in 50,000.
            keys.append(int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big", signed=True))
            for part in (path, _encoded(pair.caption)):
                text += part
                ends.append(len(text))
        self._text, self._ends, self._keys = bytes(text), np.array(ends), np.array(keys)

    @cached_property
    def media(self) -> NDArray[np.int64]:
        """int64 (n,), which file; two captions of a file have the same number."""
        return np.unique(self._keys, return_inverse=True)[1].astype(np.int64)

    @override
    def __len__(self) -> int:
        return len(self._keys)

    @override
    def __getitem__(self, number: int) -> Pair:  # type: ignore[override]  # no slices, and no numbers from the end
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, middle, end = self._ends[2 * number : 2 * number + 3].tolist()
        return Pair(self._text[start:middle].decode(), self._text[middle:end].decode())


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{text[:80]!r} is not Unicode text (half of a pair of characters); correct it.") from error


@dataclass(eq=False, repr=False)
class PairDataset(ListedItems):
    """Items for training: a picture or video and its caption.

    They have `video` uint8 (3, T, H, W), of a picture (3, 1, H, W), `text`, `index`, `video_index`, `path` and `seed`,
    see docs/batches.md. What cannot be read is replaced, together with its caption, by something else of its kind.

    Args:
        pairs: pictures first.
        num_images: how many.
        clip: frames and pixels.
        transform: of clips and pictures.
        random_frames: draw the frames of clips at random.
        max_unreadable: see `datamodules.unreadable.UnreadableTally`.
    """

    pairs: PairList
    num_images: int
    clip: ClipFormat
    transform: TrainTransform
    _: KW_ONLY
    random_frames: bool = True
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        self.training = True
        self.mode: Literal["train", "test"] = "train" if self.random_frames else "test"
        kinds = [range(self.num_images), range(self.num_images, len(self.pairs))]
        self.tally = UnreadableTally(self.pairs, self.max_unreadable, [kind for kind in kinds if kind])
        self.media = self.pairs.media  # counted once, before loader processes are forked

    @override
    def _read(self, number: int) -> Item:
        with self.clip.open(self.pairs[number].path) as reader:
            is_image = number < self.num_images
            positions = np.zeros(1, int) if is_image else frame_positions(reader.pts_seconds, self.clip, mode=self.mode)
            frames = self.transform(reader.read(positions))
        return self._item(number, to_clip(frames))

    @override
    def _placeholder(self, number: int) -> Item:
        zeros = self.clip.zeros()
        zeros = zeros[:, :1] if number < self.num_images else zeros
        return {**self._item(number, zeros), "index": -1, "video_index": -1}

    def _item(self, number: int, video: Tensor) -> Item:
        path, caption = self.pairs[number]
        media = int(self.media[number])
        return {"video": video, "text": caption, "index": number, "video_index": media, "path": path}


class PairSampler(TrainSampler):
    """Deals pairs out so that a batch, the same one in all processes, holds pictures or videos alone.

    Batches of both kinds follow each other at random, in proportion to their numbers. Pairs at the end that fill no
    batch are left out, others in each epoch:

        step               1          2          3          4
        process 0 of 2     v3 v7      i2 i0      v1 v4      i5 i8
        process 1 of 2     v0 v6      i9 i1      v2 v5      i3 i6

    Args:
        num_images: how many pairs are pictures, which come first.
        corpora: first pair, end, and ratio of each: 1 gives every pair once an epoch, 0.25 a random quarter, 2 each
            twice.
        batch_size: pairs per batch and process.
        num_replicas: number of processes.
        rank: this process, from 0.
        seed: an epoch depends on seed + epoch (`set_epoch`) and nothing else.
        shards: for each corpus, the number of pairs of each shard; None for a corpus of files. Pairs of a shard then
            stay near each other, see `datamodules.shards.reading.shard_order`.
        buffer: see there.

    Raises:
        DataError: there are not enough pairs for one batch.
    """

    def __init__(
        self,
        num_images: int,
        corpora: Sequence[tuple[int, int, float]],
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        shards: Sequence[Sequence[int] | None] | None = None,
        buffer: int = 0,
    ) -> None:
        sharded = list(zip(corpora, shards or [None] * len(corpora), strict=True))
        kinds = [[c for c in sharded if (c[0][0] < num_images) == is_image] for is_image in (True, False)]
        self.kinds, self.buffer = [kind for kind in kinds if kind], buffer
        self.step_size = batch_size * num_replicas
        self.num_steps = [sum(_count(*corpus) for corpus, _ in kind) // self.step_size for kind in self.kinds]
        if not sum(self.num_steps):
            raise DataError(f"{batch_size} pairs in each of {num_replicas} processes are more than there are pictures "
                            "or videos; take a smaller data.batch_size.")  # fmt: skip
        epoch = range(sum(self.num_steps) * self.step_size)
        super().__init__(epoch, num_replicas=num_replicas, rank=rank, seed=seed, order=self._order)

    def _order(self, generator: torch.Generator) -> Tensor:
        steps = []
        for kind, count in zip(self.kinds, self.num_steps, strict=True):
            drawn = [_drawn(*corpus, generator, shards, self.buffer) for corpus, shards in kind]
            lengths = [len(part) for part in drawn]
            order = (
                _merged(lengths, generator) if _in_shards(kind) else torch.randperm(sum(lengths), generator=generator)
            )
            steps.append(torch.cat(drawn)[order[: count * self.step_size]].view(count, self.step_size))
        turns = torch.randperm(sum(self.num_steps), generator=generator)
        for start, end, kind in zip(*_ranges(self.num_steps), self.kinds, strict=True):
            if _in_shards(kind):
                own = (turns >= start) & (turns < end)
                turns[own] = torch.arange(start, end)  # the kinds still take turns at random
        return torch.cat(steps)[turns].flatten()


def _count(start: int, end: int, ratio: float) -> int:
    return round((end - start) * ratio)


def _drawn(
    start: int, end: int, ratio: float, generator: torch.Generator, shards: Sequence[int] | None, buffer: int
) -> Tensor:
    """Pairs of a corpus in an epoch: all of them as often as the ratio says, the rest of it at random."""
    size, count = end - start, _count(start, end, ratio)
    rounds = [
        torch.randperm(size, generator=generator) if shards is None else shard_order(shards, buffer, generator)
        for _ in range(-(-count // size))
    ]
    return start + torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[:count]


def _in_shards(kind: Sequence[tuple[tuple[int, int, float], Sequence[int] | None]]) -> bool:
    return any(shards is not None for _, shards in kind)


def _merged(lengths: Sequence[int], generator: torch.Generator) -> Tensor:
    """Interleave sequences that are put end to end: positions, each sequence in its order and spread evenly."""
    places = [torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths]
    return torch.cat([place / len(place) for place in places]).argsort(stable=True)


def _ranges(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Starts and ends of parts of these lengths, put end to end."""
    ends = np.cumsum(counts).tolist()
    return [0, *ends[:-1]], ends


class PairCorpora(RetrievalDataModule):
    """Trains on several corpora of pairs, and evaluates on captioned videos.

    | file | where |
    |---|---|
    | lists of pairs (JSON, .jsonl), see `read_pairs` | root, by the corpora's ``annotations`` |
    | pictures and videos | root, or the corpora's ``media`` |
    | tar shards | root, by the corpora's ``shards`` |
    | captioned videos to evaluate | `val` and `test`, and `videos` |

    A batch holds pictures, as clips of one frame, or videos; both follow each other at random, in proportion to their
    numbers. Processes have the same kind in each step.

    Args:
        root: folder that the other paths start from, a path or a URL.
        corpora: each with ``annotations`` (a file, see `read_pairs`) and ``media`` (folder of the pictures or videos,
            default root); or with ``shards`` (a folder of tar shards, or shards by name, or a list of these, see
            docs/shards.md); and with ``ratio`` (how often each pair comes in an epoch, default 1).
        videos: folder of the evaluated videos; None is root/videos, or root without such a folder.
        val: captions of the videos to validate on, see `datamodules.annotations.captions.read_captions`.
        test: the same for testing; None tests on those of validation.
        random_frames: draw the frames of training clips at random.
        crop_area: range of the share of the frame that a training crop covers.
        horizontal_flip: probability that a training clip is mirrored, as published (0.5); captions that say left and
            right then lie.
        common: see `datamodules.clips.ClipDataModule`. With `check_files` every file is looked for before the run.

    Raises:
        DataError: from `setup`: a list is missing or has another form.
    """

    title = "The corpus"
    source = "those who made it"
    shard_listings = None  # each corpus names its own shards

    def __init__(
        self,
        root: str | Path,
        *,
        corpora: list[dict[str, Any]],
        videos: str | None = None,
        val: str | None = None,
        test: str | None = None,
        random_frames: bool = True,
        crop_area: tuple[float, float] = (0.5, 1.0),
        horizontal_flip: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(
            root, videos=videos, train=None, val=val, test=test or val, every_caption=True, fps=None,
            random_frames=random_frames, crop_area=crop_area, **common,
        )  # fmt: skip
        if not corpora:
            raise DataError("corpora is empty; name at least one file of pairs: [{annotations: pairs.jsonl}].")
        for corpus in corpora:
            is_object = isinstance(corpus, dict)
            known = {"shards", "ratio"} if is_object and "shards" in corpus else {"annotations", "ratio", "media"}
            if not is_object or set(corpus) - known or not {"annotations", "shards"} & set(corpus):
                raise DataError(f"{corpus} is no corpus; give it annotations (and media if wanted) or shards, and a "
                                "ratio above 0 if wanted.")  # fmt: skip
            check(ratio=(corpus.get("ratio", 1), Number(0, 1000, above=True)))
        check(horizontal_flip=(horizontal_flip, SHARE))
        if self.shards is not None:
            raise DataError("data.shards is set; name the shards of each corpus in data.corpora: [{shards: cc3m/}].")
        self.corpora = corpora
        self.horizontal_flip = horizontal_flip
        self._ranges: list[tuple[int, int, float]] = []
        self._shards: list[list[int] | None] = []
        self._lost: list[int] = []
        self._digests: list[str] = []
        self._num_images = 0

    @override
    def entries(self, split: str) -> list[Captions]:
        raise DataError(f"data.{split} is not set; name a list of captioned videos (JSON or a table).")

    @property
    def captions(self) -> list[str]:
        """All captions of the corpora."""
        trained = self.datasets.get("train")
        pairs = trained.pairs if isinstance(trained, PairDataset) else self._pairs()
        return [pair.caption for pair in pairs]

    @override
    def list_videos(self, split: str) -> Sequence[Any]:
        return self._pairs() if split == "train" else super().list_videos(split)

    def _pairs(self) -> PairList:
        """All pairs, those of pictures first."""
        self._digests = []
        sources = [corpus.get("annotations", corpus.get("shards")) for corpus in self.corpora]
        self.origins["train"] = ", ".join(str(source) for source in sources)
        read = [(*self._corpus(corpus), corpus.get("ratio", 1)) for corpus in self.corpora]
        read.sort(key=lambda found: _KINDS.index(found[0]))
        starts, ends = _ranges([len(pairs) for _, pairs, *_ in read])
        self._ranges = [(starts[i], ends[i], ratio) for i, (*_, ratio) in enumerate(read)]
        self._shards = [shards for _, _, shards, _, _ in read]
        self._lost = [start + number for start, (_, _, _, lost, _) in zip(starts, read, strict=True) for number in lost]
        self._num_images = sum(len(pairs) for kind, pairs, *_ in read if kind == "image")
        return PairList(pair for _, pairs, *_ in read for pair in pairs)

    def _corpus(self, corpus: dict[str, Any]) -> tuple[str, PairList, list[int] | None, list[int]]:
        """Either "image" or "video", the pairs, how many each shard has, and those whose shards are missing."""
        if "shards" in corpus:
            return self._sharded(corpus["shards"])
        path, media = join(self.root, corpus["annotations"]), join(self.root, corpus.get("media", ""))
        kinds: set[str] = set()

        def located() -> Iterator[Pair]:
            for kind, pair in read_pairs(path):
                kinds.add(kind)
                yield pair._replace(path=join(media, pair.path))

        pairs = PairList(located())
        if len(kinds) != 1:
            found = "both pictures and videos; make two corpora of it" if kinds else "no pairs; leave the corpus out"
            raise DataError(f"{path} holds {found}.")
        return kinds.pop(), pairs, None, []

    def _sharded(self, sources: str | list[str]) -> tuple[str, PairList, list[int], list[int]]:
        places = [join(self.root, source) for source in ([sources] if isinstance(sources, str) else sources)]
        folders = open_shards(places, "train")
        header = folders[0].header if folders else {"fields": []}
        if header.get("media") not in _KINDS or "captions" not in header["fields"]:
            raise DataError(f"{' and '.join(places)} holds no captioned pictures or videos to train on; write them "
                            "with zoo shard pairs.jsonl.")  # fmt: skip
        counts: list[int] = []

        def pairs() -> Iterator[Pair]:
            for folder in folders:
                for size in folder.sizes:
                    counts.append(0)
                    for path, values in islice(folder.samples, size):
                        if not are_texts(values["captions"]):
                            raise DataError(f"{folder.index}: {path.rpartition('!')[2]} has no list of texts as "
                                            "captions; write the index again.")  # fmt: skip
                        counts[-1] += len(values["captions"])
                        yield from (Pair(path, caption) for caption in values["captions"])

        found = PairList(pairs())
        missing = np.repeat([is_missing for folder in folders for is_missing in folder.missing], counts)
        self._digests += [digest for folder in folders for digest in folder.digests]
        return header["media"], found, counts, missing.nonzero()[0].tolist()

    @property
    @override
    def _order_of_shards(self) -> str | None:
        if not self._digests:
            return None
        return f"{hashlib.sha256(json.dumps(self._digests).encode()).hexdigest()} {self.shuffle_buffer}"

    @override
    def _missing(self, split: str, samples: Sequence[Any]) -> list[int]:
        if split != "train":
            return super()._missing(split, samples)
        in_files = [range(a, b) for (a, b, _), shards in zip(self._ranges, self._shards, strict=True) if shards is None]
        return [*(i for part in in_files for i in part if not self.folders.has(samples[i].path)), *self._lost]

    @override
    def videos_in(self, dataset: CaptionDataset | PairDataset) -> int:
        return int(dataset.media.max()) + 1 if isinstance(dataset, PairDataset) else super().videos_in(dataset)

    @override
    def check_listings(self, listings: Mapping[str, Sequence[CaptionedVideo]]) -> None:
        super().check_listings({split: videos for split, videos in listings.items() if split != "train"})

    @override
    def make_dataset(  # type: ignore[override]  # of pairs for training, of captioned videos for evaluation
        self, split: str, samples: Sequence[Any], clip: ClipFormat
    ) -> PairDataset | CaptionDataset:
        if split != "train":
            return super().make_dataset(split, samples, clip)
        assert self.crop_area is not None
        transform = TrainTransform(
            clip.image_size, self.crop_area, interpolation=clip.interpolation, flip=self.horizontal_flip
        )
        assert isinstance(samples, PairList)
        return PairDataset(samples, self._num_images, clip, transform, random_frames=self.random_frames,
                           max_unreadable=self.max_unreadable)  # fmt: skip

    @override
    def _train_sampler(self) -> TrainSampler:
        plain = super()._train_sampler()
        return PairSampler(
            self._num_images, self._ranges, self.batch_size, num_replicas=plain.num_replicas, rank=plain.rank,
            seed=plain.seed, shards=self._shards, buffer=self.shuffle_buffer,
        )  # fmt: skip
