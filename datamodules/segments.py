"""Short actions in long videos: what an item of a listed segment is, as a clip or as extracted features."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from datamodules.annotations.epic_kitchens import Segment
from datamodules.annotations.features import FeatureTable, features_between, width_of
from datamodules.annotations.questions import KINDS, Question, answer_number, draw_question
from datamodules.augment import TrainTransform
from datamodules.clips import ClipFormat
from datamodules.loading import Item
from datamodules.unreadable import ListedItems, UnreadableTally
from datamodules.video.frame_tar import open_frames
from datamodules.video.resize import crop_views, to_clip
from datamodules.video.sampling import range_in

__all__ = ["SegmentDataset", "read_segment"]


@dataclass(eq=False, repr=False)
class SegmentDataset(ListedItems):
    """One item per action: `video` or `features`, labels, what is asked for verb and noun, and in training a question.

    An unreadable one is replaced in evaluation by zeros with index -1. Of an action that begins so early that there is
    nothing to see before it, zeros are seen.

    Args:
        samples: the listing.
        clip: frames and pixels.
        features: take `num_features` vectors out of files of features, in place of clips.
        table: the table of the features, where they are not in files.
        ends: a feature counts where its window ends within the span, and not where its middle lies: nothing of what
            comes behind the span may be seen.
        transform: of training clips; None makes items for evaluation.
        kinds: of questions in training.
        neutral: share of training items with the neutral question.
        num_verbs: size of the vocabulary of verbs.
        num_nouns: of nouns.
        num_clips: clips of a segment in evaluation.
        num_crops: crops of each.
        max_unreadable: see `datamodules.unreadable.UnreadableTally`.
    """

    samples: Sequence[Segment]
    clip: ClipFormat | None
    _: KW_ONLY
    features: int | None = None
    table: FeatureTable | None = None
    ends: bool = False
    training: bool = False
    transform: TrainTransform | None = None
    kinds: Sequence[str] = KINDS
    neutral: float = 0.5
    num_verbs: int = 97
    num_nouns: int = 300
    num_clips: int = 1
    num_crops: int = 1
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        self.views = 1 if self.training else self.num_clips * self.num_crops
        self.tally = UnreadableTally(self.samples, self.max_unreadable)
        self._width: int | None = None

    @override
    def _read(self, number: int) -> Item:
        sample = self.samples[number]
        # First of all, so that the random numbers of a question do not depend on what it is about.
        question = draw_question(self.kinds, self.neutral) if self.training else None
        seen = {"video": self._clips(sample)} if self.features is None else {"features": self._features(sample)}
        return self._labelled(seen, sample, number, question)

    def _labelled(self, seen: Item, sample: Segment, index: int, question: Question | None) -> Item:
        item = {
            **seen,
            "verb": sample.verb,
            "noun": sample.nouns[0] if sample.nouns else -1,
            "action": sample.action,
            "unseen": sample.unseen,
            "tail": torch.tensor(sample.tail),
            "index": index,
            "path": sample.path,
            "narration_id": sample.narration_id,
            "verb_question": sample.verb_question,
            "noun_question": sample.noun_question,
        }
        if question is None:
            return item
        labels = (sample.verb, sample.nouns, sample.action, self.num_verbs, self.num_nouns)
        return {**item, "question": question.text, "answer": answer_number(question.kind, *labels)}

    def _clips(self, sample: Segment) -> Tensor:
        """uint8 (3, T, H, W), or (V, 3, T, H, W) for several views."""
        assert self.clip is not None
        views = {} if self.training else {"num_clips": self.num_clips, "num_crops": self.num_crops}
        found = read_segment(sample.path, sample.span, self.clip, transform=self.transform, **views)
        return self._zeros() if found is None else found

    def _features(self, sample: Segment) -> Tensor:
        """float32 (features, width)."""
        assert self.features is not None
        found = features_between(sample.path, sample.span, ends=self.ends, table=self.table)
        if found is None:
            return self._zeros()
        self._width = found.shape[1]
        # One of each of so many equal parts: at random, or in its middle.
        place = torch.rand(self.features) if self.training else 0.5
        return found[((torch.arange(self.features) + place) / self.features * len(found)).long()]

    def _zeros(self) -> Tensor:
        if self.features is not None:
            return torch.zeros(self.features, self._feature_width())
        assert self.clip is not None
        return self.clip.zeros(self.views)

    def _feature_width(self) -> int:
        """Of the first file that can be read, where no other was read before."""
        if self.table is not None:
            return int(self.table.features.shape[1])
        for path in dict.fromkeys(sample.path for sample in self.samples):
            if self._width is not None:
                break
            self._width = width_of(path)
        return self._width or 1

    @override
    def _placeholder(self, number: int) -> Item:
        kind = "video" if self.features is None else "features"
        question = Question("", "") if self.training else None
        return self._labelled({kind: self._zeros()}, self.samples[number], -1, question)


def read_segment(
    path: str,
    span: tuple[float, float],
    clip: ClipFormat,
    *,
    transform: TrainTransform | None = None,
    num_clips: int = 1,
    num_crops: int = 1,
) -> Tensor | None:
    """Read what is seen between two seconds of a video.

    Args:
        path: a video file, or a folder or tar of its frames.
        span: first and last second, both included.
        clip: frames and pixels.
        transform: makes one clip for training, of frames drawn at random; None makes fixed views.
        num_clips: clips of the fixed views.
        num_crops: crops of each.

    Returns:
        uint8 (3, T, H, W), or (V, 3, T, H, W) for several views; None where the video begins after the span.

    Raises:
        DecodeError: the video cannot be read.
    """
    with open_frames(path, decoder=clip.decoder) as reader:
        seen = range_in(reader.pts_seconds, span)
        if seen is None:
            return None
        mode: Literal["train", "test"] = "test" if transform is None else "train"
        length = seen[1] - seen[0] + 1
        found = [seen[0] + clip.indices(length, mode, clip=number, num_clips=num_clips) for number in range(num_clips)]
        positions = np.concatenate(found)
        frames = clip.read(reader, positions) if transform is None else reader.read(positions)
    if transform is not None:
        return to_clip(transform(frames))
    # (crops, clips, T, 3, H, W)
    crops = crop_views(frames.unflatten(0, (num_clips, clip.num_frames)), clip.image_size, num_crops)
    views = crops.permute(1, 0, 3, 2, 4, 5).flatten(0, 1)
    return views if len(views) > 1 else views[0]
