import json
import math
import shutil
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.annotations.captions import Captions
from datamodules.clips import ClipFormat
from datamodules.errors import DataError
from datamodules.loading import Draw
from datamodules.retrieval import RetrievalDataModule, frame_positions
from datamodules.video.opening import DecodeError
from datamodules.video.sampling import clip_indices
from datamodules.video.views import load_views

REPOSITORY = Path(__file__).resolve().parents[2]
FORMAT = {
    "num_frames": 4,
    "image_size": 32,
    "short_side": 40,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}


class Own(RetrievalDataModule):
    """The smallest concrete DataModule: names and captions given in Python."""

    title, source = "My own set", "https://example.org"

    def __init__(self, root, given, **common):
        super().__init__(root, **common)
        self.given = given

    def entries(self, split):
        return self.given[split] if isinstance(self.given, dict) else self.given


@pytest.fixture
def root(captioned_clips, tmp_path):
    for path, _ in captioned_clips:
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def entries(captioned_clips):
    """Video k has 1 + k % 3 captions: 15 pairs of 8 videos."""
    return [Captions(path.stem, captions[: 1 + k % 3]) for k, (path, captions) in enumerate(captioned_clips)]


@pytest.fixture(autouse=True)
def without_leak_warnings():
    """Most tests train and evaluate on the same videos."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are trained on too")
        yield


def module(root, given, stage="fit", **arguments):
    data = Own(root, given, **{"num_workers": 0, "batch_size": 3} | FORMAT | arguments)
    data.setup(stage)
    return data


def pairs_of(entries):
    return [(number, caption) for number, entry in enumerate(entries) for caption in entry.captions]


# Frames ----------------------------------------------------------------------------------------------------------


def clip4clip(num_frames, fps, most, start, end):
    """Reference muse.md, section 4, literally: one frame per second until a read fails, then equal steps."""
    kept = []
    for second in range(start, end + 1):
        if second * fps >= num_frames:
            break
        kept.append(second * fps)
    return [kept[i] for i in np.linspace(0, len(kept) - 1, num=most, dtype=int)] if len(kept) > most else kept


@pytest.mark.parametrize(
    ("num_frames", "fps"), [(1, 25), (24, 25), (25, 25), (26, 25), (449, 30), (900, 25), (3601, 24)]
)
@pytest.mark.parametrize("most", [12, 64])
@pytest.mark.parametrize("span", [None, (0, 31), (3, 7)])
def test_one_frame_a_second(num_frames, fps, most, span):
    start, end = span or (0, math.ceil(num_frames / fps))
    if start * fps >= num_frames:
        return
    seconds = np.arange(num_frames) * 512 / (512 * fps)
    got = frame_positions(seconds, ClipFormat(**FORMAT | {"num_frames": most}), span=span, fps=1)
    assert got.tolist() == clip4clip(num_frames, fps, most, start, end)


def test_frames_of_uneven_times():
    """The frame shown at each half second is the last one that has begun."""
    seconds = np.array([0, 0.1, 0.45, 0.55, 0.9, 2.0, 2.05])
    got = frame_positions(seconds, ClipFormat(**FORMAT | {"num_frames": 9}), fps=2)
    assert got.tolist() == [0, 2, 4, 5]  # at 0, 0.5, 1 and 1.5, 2


@pytest.mark.parametrize("sampling", ["sparse", "dense", "ssv2"])
def test_frames_of_a_span(sampling):
    clip = ClipFormat(**FORMAT | {"sampling": sampling})
    seconds = np.arange(100) / 10
    got = frame_positions(seconds, clip, span=(2.0, 5.9))
    assert got.tolist() == [20 + i for i in clip_indices(40, 4, sampling=sampling, mode="val", frame_stride=2)]
    assert frame_positions(seconds, clip, span=(50, 60)).tolist() == [99] * 4
    assert frame_positions(seconds, clip, span=(2.01, 2.02)).tolist() == [21] * 4
    with torch.random.fork_rng():
        drawn = {tuple(frame_positions(seconds, clip, span=(2, 5.9), mode="train").tolist()) for _ in range(20)}
    assert len(drawn) > 5 and all(20 <= i <= 59 for clip in drawn for i in clip)


def test_random_frames_at_a_rate():
    clip = ClipFormat(**FORMAT)
    drawn = [frame_positions(np.arange(1000) / 10, clip, mode="train", fps=1).tolist() for _ in range(30)]
    assert all(i % 10 == 0 for clip in drawn for i in clip) and len(set(map(tuple, drawn))) > 10


# Training --------------------------------------------------------------------------------------------------------


def test_training_pairs(root, entries):
    data = module(root, entries, batch_size=4)
    pairs, seen = pairs_of(entries), []
    loader = data.train_dataloader()
    for batch in loader:
        assert batch["video"].shape == (4, 3, 4, 32, 32) and batch["video"].dtype == torch.uint8
        assert batch["index"].dtype == batch["video_index"].dtype == torch.int64
        assert set(batch) == {"video", "text", "index", "video_index", "path", "seed"}
        for k, index in enumerate(batch["index"].tolist()):
            number, caption = pairs[index]
            assert (batch["video_index"][k], batch["text"][k]) == (number, caption)
            assert batch["path"][k] == f"{root}/{number}.mp4"
            # Without options the clip is that of the evaluation.
            assert torch.equal(batch["video"][k], load_views(root / f"{number}.mp4", **FORMAT).video[0])
            seen.append(index)
    assert len(seen) == len(set(seen)) == 12 and seen != sorted(seen)  # 15 pairs in whole batches
    assert data.captions == [caption for _, caption in pairs] and len(loader.dataset) == 15


def test_one_caption_per_video(root, entries):
    data = module(root, entries, every_caption=False, batch_size=8)
    loader, pairs, heard = data.train_dataloader(), pairs_of(entries), set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        assert sorted(batch["video_index"].tolist()) == list(range(8))
        for k, index in enumerate(batch["index"].tolist()):
            assert pairs[index] == (batch["video_index"][k], batch["text"][k])
            heard.add(index)
    assert heard == set(range(15))


def test_a_draw_is_the_same_item_everywhere(root, entries):
    options = {"random_frames": True, "crop_area": (0.3, 1.0), "every_caption": False, "batch_size": 4}
    epochs = []
    for workers in (0, 2):
        loader = module(root, entries, num_workers=workers, **options).train_dataloader()
        loader.sampler.set_epoch(2)
        epochs.append(list(loader))
    for batch, other in zip(*epochs, strict=True):
        assert torch.equal(batch["video"], other["video"]) and batch["text"] == other["text"]
    batch, dataset = epochs[0][0], loader.dataset
    again = dataset[Draw(int(batch["video_index"][0]), int(batch["seed"][0]))]
    assert torch.equal(again["video"], batch["video"][0]) and again["text"] == batch["text"][0]
    clips = [dataset[Draw(7, seed)]["video"] for seed in range(6)]
    assert all(clip.shape == (3, 4, 32, 32) for clip in clips)
    assert not any(torch.equal(one, two) for one, two in pairwise(clips))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on(root, entries, workers):
    loader = module(root, entries, num_workers=workers, random_frames=True).train_dataloader()
    loader.sampler.set_epoch(1)
    whole = list(loader)
    batches = iter(loader)
    next(batches), next(batches)
    data = module(root, entries, num_workers=workers, random_frames=True)
    data.load_state_dict({"train_loader": loader.state_dict()})
    other = data.train_dataloader()
    other.sampler.set_epoch(1)
    rest = list(other)
    assert len(rest) == len(whole) - 2 == 3
    for batch, expected in zip(rest, whole[2:], strict=True):
        assert torch.equal(batch["video"], expected["video"]) and batch["text"] == expected["text"]


# Evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_has_every_video_with_all_captions(root, entries, workers):
    data = module(root, entries, None, num_workers=workers, eval_batch_size=3)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        number = 0
        for batch in loader:
            assert set(batch) == {"video", "text", "index", "video_index", "path"}
            assert batch["index"].equal(batch["video_index"])
            for k, video in enumerate(batch["video"]):
                assert batch["video_index"][k] == number
                assert batch["text"][k] == list(entries[number].captions)
                assert torch.equal(video, load_views(root / f"{number}.mp4", **FORMAT).video[0])
                number += 1
        assert number == 8


def test_every_index_is_there_whatever_the_number_of_processes(root, entries):
    dataset = module(root, entries, "validate").datasets["val"]
    for world in (2, 3, 5):
        found = []
        for rank in range(world):
            sampler = DistributedSampler(dataset, world, rank, shuffle=False)
            for batch in DataLoader(dataset, 2, sampler=sampler, collate_fn=Own.collate):
                found += zip(batch["index"].tolist(), map(tuple, batch["text"]), strict=True)
        assert dict(found) == {number: entry.captions for number, entry in enumerate(entries)}


def test_a_rate_pads_short_videos(root, entries):
    """Video k has 8 + k frames at 4 a second; one a second makes 2 of 8 and 4 of 15."""
    data = module(root, entries, None, fps=1.0, batch_size=8, random_frames=True)
    (batch,) = data.val_dataloader()
    lengths = [math.ceil((8 + k) / 4) for k in range(8)]
    assert batch["frame_mask"].dtype == torch.bool and batch["frame_mask"].sum(1).tolist() == lengths
    for k, length in enumerate(lengths):
        assert batch["frame_mask"][k, :length].all() and not batch["video"][k, :, length:].any()
        whole = load_views(root / f"{k}.mp4", **FORMAT | {"num_frames": 8 + k, "sampling": "ssv2"}).video[0]
        assert torch.equal(batch["video"][k, :, :length], whole[:, ::4])
    assert next(iter(data.train_dataloader()))["frame_mask"].shape == (8, 4)


def test_span(root, entries):
    given = [entry._replace(span=(1.0, 1.5)) for entry in entries]  # frames 4, 5 and 6
    (batch,) = module(root, given, "test", eval_batch_size=8).test_dataloader()
    for k, video in enumerate(batch["video"]):
        whole = load_views(root / f"{k}.mp4", **FORMAT | {"num_frames": 8 + k, "sampling": "ssv2"}).video[0]
        assert torch.equal(video, whole[:, 4 + clip_indices(3, 4, sampling="sparse", mode="test")])


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("videos", [None, "films", "absolute"])
def test_where_videos_are(captioned_clips, tmp_path, videos):
    """At any of three depths, with any suffix, as folders of frames, with or without the suffix in the name."""
    top = tmp_path / ("videos" if videos is None else "films")
    places = ["0.mp4", "sub/1.MKV", "a/b/c/2.mp4", "x.y.3.mp4"]
    for place, (path, _) in zip(places, captioned_clips, strict=False):
        (top / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, top / place)
    frames = top / "a" / "4.of.them"
    frames.mkdir()
    (frames / "img_00001.jpg").touch()
    (top / "a" / ".hidden").mkdir()
    shutil.copy(captioned_clips[5][0], top / "a" / ".hidden" / "5.mp4")
    (top / "a" / "6.txt").touch()
    names = ["0", "1", "2.mp4", "x.y.3", "4.of.them", "5", "6", "sub/1.MKV"]
    given = [Captions(name, ("text",)) for name in names]
    videos = str(top) if videos == "absolute" else videos
    data = Own(tmp_path, given, videos=videos, **FORMAT)
    found = [Path(video.path).relative_to(top).as_posix() for video in data.listing("train")]
    assert found == ["0.mp4", "sub/1.MKV", "a/b/c/2.mp4", "x.y.3.mp4", "a/4.of.them", "5.mp4", "6.mp4", "sub/1.MKV"]
    data = Own(tmp_path, given, videos=videos, check_files=False, **FORMAT)
    assert [video.path for video in data.listing("train")][1] == f"{tmp_path}/{'films/' if videos else ''}1.mp4"


def test_missing_videos_are_counted(root, entries):
    given = [*entries, *(Captions(f"gone{number}", ("text",)) for number in range(4))]
    with pytest.warns(UserWarning, match=f"4 of the 12 val videos do not exist: {root}/gone0.mp4, .* and 1 more"):
        data = module(root, {"train": entries, "val": given}, max_unreadable=0.5)
    batches = list(data.val_dataloader())
    assert [index for batch in batches for index in batch["video_index"].tolist()] == [*range(8), -1, -1, -1, -1]
    assert batches[-1]["text"] == [["text"]] * 3 and not batches[-1]["video"].any()
    with pytest.raises(DataError, match="4 of 12 videos cannot be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module(root, {"train": entries, "val": given})


def test_no_video_is_found(root, entries, tmp_path):
    with pytest.raises(DataError) as caught:
        module(root, entries, videos="nowhere")
    text = str(caught.value)
    assert text.startswith(f"None of the 8 train videos of My own set is in {root}/nowhere or up to 3 folders below it")
    assert f"({root}/nowhere/0.mp4, " in text and "name their folder with data.videos, or get them from https:" in text


def test_videos_in_several_places(root, entries):
    for name in ("copies/0.mp4", "1.webm"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / "0.mp4", root / name)
    with pytest.warns(UserWarning) as caught:
        data = module(root, entries, "test")
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith("2 of the 8 test videos of My own set are in several places, of which the first is taken: ")
    assert f"{root}/0.mp4 and {root}/copies/0.mp4, {root}/1.mp4 and {root}/1.webm; name the right folder" in text
    assert [video.path for video in data.datasets["test"].videos[:2]] == [f"{root}/0.mp4", f"{root}/1.mp4"]


def test_doubles_leaks_and_empty_captions_are_reported(root, entries):
    given = {"train": [*entries[:4], entries[1]], "val": [entries[3], entries[5], Captions("6", ("", "x"))]}
    with pytest.warns(UserWarning) as caught:
        warnings.simplefilter("always")
        module(root, given)
    texts = sorted(str(warning.message) for warning in caught)
    assert len(texts) == 3
    assert texts[0] == f"1 of the 3 val videos are trained on too: {root}/3.mp4."
    assert texts[1] == f"1 of the 3 val videos have an empty caption: {root}/6.mp4."
    assert texts[2].startswith(f"1 of the 5 train videos are listed again: {root}/1.mp4; in the evaluation")


def test_own_lists_in_place_of_the_official_files(root, entries):
    (root / "mine.json").write_text(json.dumps([{"video": "2.mp4", "caption": ["a", "b"]}]))
    (root / "mine.csv").write_text("video,caption\n5,c\n")
    data = Own(root, entries, train="mine.json", val=f"{root}/mine.csv", **FORMAT)
    assert [tuple(video) for video in data.listing("train")] == [(f"{root}/2.mp4", ("a", "b"), None)]
    assert [tuple(video) for video in data.listing("val")] == [(f"{root}/5.mp4", ("c",), None)]
    assert len(data.listing("test")) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_everything_behind_a_url(captioned_clips, entries, workers):
    store = MemoryFileSystem()
    for number, (path, _) in enumerate(captioned_clips):
        store.pipe_file(f"/set/videos/{'more/' * (number % 2)}{number}.mp4", path.read_bytes())
    given = [*entries, Captions("gone", ("text",))]
    with pytest.warns(UserWarning, match="1 of the 9 val videos do not exist: memory://set/videos/gone.mp4"):
        data = module("memory://set/", {"train": entries, "val": given}, num_workers=workers, batch_size=9)
    (batch,) = data.val_dataloader()
    assert batch["index"].tolist() == [*range(8), -1]
    assert batch["path"][:2] == ["memory://set/videos/0.mp4", "memory://set/videos/more/1.mp4"]
    assert torch.equal(batch["video"][3], load_views(captioned_clips[3][0], **FORMAT).video[0])
    (batch,) = data.train_dataloader()
    assert sorted(batch["index"].tolist()) == sorted(set(batch["index"].tolist()))
    store.rm("/set", recursive=True)


# Unreadable videos -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_caption", [True, False])
def test_broken_training_video_is_replaced_with_its_caption(root, entries, every_caption):
    (root / "2.mp4").write_text("not a video " * 50)
    (root / "5.mp4").write_bytes(b"")
    pairs = pairs_of(entries)
    data = module(root, entries, max_unreadable=0.5, every_caption=every_caption, batch_size=8)
    with pytest.warns(UserWarning, match="replaced by another video"):
        batches = list(data.train_dataloader())
    for batch in batches:
        for index, number, text, path in zip(
            *(batch[key] for key in ("index", "video_index", "text", "path")), strict=True
        ):
            assert pairs[index] == (number, text) and path == f"{root}/{number}.mp4" and number not in (2, 5)
        assert data.on_before_batch_transfer(batch, 0) is batch


def test_broken_video_is_left_out_of_the_evaluation(root, entries):
    (root / "2.mp4").write_text("not a video " * 50)
    data = module(root, entries, "test", eval_batch_size=8, fps=1)
    with pytest.warns(UserWarning, match="left out of the evaluation"):
        (batch,) = data.test_dataloader()
    assert batch["index"].tolist() == batch["video_index"].tolist() == [0, 1, -1, 3, 4, 5, 6, 7]
    assert batch["text"][2] == list(entries[2].captions) and batch["frame_mask"][2].all()


def test_too_many_broken_videos_stop_the_run(root, entries):
    for number in (1, 2, 3, 6):
        (root / f"{number}.mp4").write_text("not a video " * 50)
    data = module(root, entries, max_unreadable=0.25, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (batch,) = data.train_dataloader()
        assert -1 in batch["index"] and batch["index"].eq(-1).equal(batch["video_index"].eq(-1))
    with pytest.raises(DataError, match=r"3 of 8 videos cannot be read, more than max_unreadable allows \(2\)"):
        data.on_before_batch_transfer(batch, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "fps is 0; it has to be above 0 and at most 1000, or null"),
        ({"num_frames": None}, "num_frames not set and no model attached"),
        ({"batch_size": 0}, "batch_size is 0; it has to be a whole number, at least 1"),
        ({"max_unreadable": 5}, "max_unreadable is 5"),
    ],
)
def test_bad_arguments(root, entries, change, message):
    with pytest.raises(DataError, match=message):
        module(root, entries, **change)


def test_base_is_abstract(root):
    with pytest.raises(TypeError, match="abstract"):
        RetrievalDataModule(root)


# Processes -------------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import lightning as L, torch
from datamodules.caption_csv import CaptionCSV

class Recorder(L.LightningModule):
    preprocessing = dict(num_frames=2, image_size=32, short_side=32, sampling="sparse", frame_stride=1,
                         interpolation="bicubic")
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), {"train": [], "val": []}
    def note(self, split, batch):
        self.seen[split] += zip(batch["index"].tolist(), batch["video_index"].tolist(), batch["text"])
    def training_step(self, batch):
        self.note("train", batch)
        return self.weight * batch["video"].float().mean()
    def validation_step(self, batch):
        self.note("val", batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def on_train_end(self):
        with open(f"{out}/{self.global_rank}.json", "w") as file:
            json.dump(self.seen, file)

root, out = sys.argv[1:]
L.seed_everything(5)
data = CaptionCSV(root, train="all.csv", val="all.csv", batch_size=2, num_workers=0)
L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False, num_sanity_val_steps=0,
          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(Recorder(), data)
"""


@pytest.mark.slow
def test_two_processes(root, entries):
    """15 pairs of 8 videos, of which one is missing for an even split: 7 videos are evaluated by two processes."""
    del entries[-1]
    pairs = pairs_of(entries)
    rows = "".join(f'{number}.mp4,"{caption}"\n' for number, caption in pairs)
    (root / "all.csv").write_text(f"video,caption\n{rows}")
    command = [sys.executable, "-c", SCRIPT, str(root), str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads((root / f"{rank}.json").read_text()) for rank in range(2)]
    trained = [item for rank in seen for item in rank["train"]]
    assert len(trained) == 12 and all(pairs[index] == (number, text) for index, number, text in trained)
    assert len({index for index, *_ in trained}) == 12  # 13 pairs in two processes' batches of 2, each once
    evaluated = [item for rank in seen for item in rank["val"]]
    assert len(evaluated) == 8  # the first one twice
    texts = {index: tuple(text) for index, number, text in evaluated if index == number}
    assert texts == {number: entry.captions for number, entry in enumerate(entries)}


def test_times_without_end_are_refused():
    with pytest.raises(DecodeError, match=r"v\.mp4 claims to last 1e\+15 seconds"):
        frame_positions(np.array([0.0, 1e15]), None, fps=1.0, path="v.mp4")
