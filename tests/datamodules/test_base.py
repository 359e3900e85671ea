import os
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.augment import TrainTransform
from datamodules.base import ClipDataset, ClipFormat, DataError, Sample, VideoDataModule
from datamodules.loading import suitable_workers

FORMAT = {
    "num_frames": 4,
    "image_size": 32,
    "short_side": 40,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bilinear",
}
NUM_CLASSES = 5


def grey(label):
    return 20 + 50 * label


@pytest.fixture(scope="session")
def grey_videos(tmp_path_factory, make_video):
    """Fifteen videos whose brightness tells the label; sizes and lengths differ."""
    folder = tmp_path_factory.mktemp("grey")
    samples = []
    for number in range(15):
        label = number % NUM_CLASSES
        width, height = (64, 48) if number % 2 else (48, 80)
        path = make_video(
            folder / f"{number}.mp4", 3 + number, width=width, height=height,
            frame_at=lambda _, label=label, size=(height, width): np.full((*size, 3), grey(label), np.uint8),
        )  # fmt: skip
        samples.append(Sample(str(path), label))
    return samples


class ListData(VideoDataModule):
    """The smallest concrete DataModule: lists given in Python."""

    def __init__(self, train, val=None, **common):
        super().__init__(**common)
        self.lists = {"train": train, "val": val or train, "test": val or train}

    def list_classes(self):
        return [f"class {i}" for i in range(NUM_CLASSES)]

    def list_videos(self, split):
        return self.lists[split]


def break_some(samples, numbers, tmp_path):
    """A copy of the listing in which the given videos are an empty, a missing, a text file, ..."""
    samples = list(samples)
    for count, number in enumerate(numbers):
        path = tmp_path / f"broken{number}.mp4"
        if count % 3 == 0:
            path.touch()
        elif count % 3 == 1:
            path.write_text("not a video " * 50)
        samples[number] = Sample(str(path), samples[number].label)
    return samples


def check_batch(batch, samples, shape, num_views=None):
    video, count = batch["video"], len(batch["label"])
    assert video.shape == ((count, num_views, *shape) if num_views else (count, *shape))
    assert video.dtype == torch.uint8 and video.is_contiguous()
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    for item in range(count):
        sample = samples[batch["index"][item]]
        assert batch["path"][item] == sample.path and batch["label"][item] == sample.label
        assert (video[item].float() - grey(sample.label)).abs().mean() < 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches(grey_videos, num_workers):
    data = ListData(grey_videos, batch_size=4, num_workers=num_workers, **FORMAT)
    data.setup()
    indices = []
    for batch in data.train_dataloader():
        check_batch(batch, grey_videos, (3, 4, 32, 32))
        indices += batch["index"].tolist()
    assert len(indices) == len(set(indices)) == 12  # whole batches only, in random order
    assert indices != sorted(indices)
    for loader, views in ((data.val_dataloader(), None), (data.test_dataloader(), 12), (data.predict_dataloader(), 12)):
        indices = []
        for batch in loader:
            check_batch(batch, grey_videos, (3, 4, 32, 32), views)
            indices += batch["index"].tolist()
        assert indices == list(range(15))


@pytest.mark.slow
def test_spawned_workers(grey_videos, tmp_path):
    samples = break_some(grey_videos, [3], tmp_path)
    data = ListData(samples, batch_size=5, num_workers=1, multiprocessing_context="spawn", **FORMAT)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        check_batch(batch, samples, (3, 4, 32, 32))
    assert data.datasets["train"].tally.flags.nonzero().flatten().tolist() == [3]


def test_set_smaller_than_a_batch_still_trains(grey_videos):
    data = ListData(grey_videos[:3], batch_size=8, num_workers=0, **FORMAT)
    data.setup("fit")
    assert [len(batch["label"]) for batch in data.train_dataloader()] == [3]


def test_test_batches_shrink_with_the_views(grey_videos):
    data = ListData(grey_videos, batch_size=24, num_clips=2, num_crops=3, num_workers=0, **FORMAT)
    data.setup()
    assert data.test_dataloader().batch_size == 4 and data.val_dataloader().batch_size == 24
    data = ListData(grey_videos, batch_size=24, eval_batch_size=5, num_workers=0, **FORMAT)
    data.setup()
    assert data.test_dataloader().batch_size == 5 and data.val_dataloader().batch_size == 5


def test_seed_repeats_the_epoch(grey_videos):
    def epoch(seed):
        torch.manual_seed(seed)
        data = ListData(grey_videos, batch_size=4, num_workers=2, rand_augment_ops=2, **FORMAT)
        data.setup("fit")
        return torch.cat([batch["video"] for batch in data.train_dataloader()])

    first = epoch(0)
    assert torch.equal(first, epoch(0))
    assert not torch.equal(first, epoch(1))


# Unreadable videos -----------------------------------------------------------------------------------------------


def test_unreadable_training_video_is_replaced(grey_videos, tmp_path):
    samples = break_some(grey_videos, [2], tmp_path)
    data = ListData(samples, batch_size=5, num_workers=0, **FORMAT)
    data.setup("fit")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            batches = list(data.train_dataloader())
            assert len(batches) == 3
            for batch in batches:
                check_batch(data.on_before_batch_transfer(batch, 0), samples, (3, 4, 32, 32))
                assert 2 not in batch["index"]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1  # one per file, not one per epoch
    assert samples[2].path in messages[0] and "replaced by another video" in messages[0]


def test_replacement_is_random_and_spares_known_broken_ones(grey_videos, tmp_path):
    samples = break_some(grey_videos, [0, 1, 2], tmp_path)
    dataset = ClipDataset(samples, ClipFormat(**FORMAT), transform=TrainTransform(32), max_unreadable=0.5)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = {dataset[0]["index"] for _ in range(60)}
    assert drawn <= set(range(3, 15)) and len(drawn) > 8


def test_unreadable_evaluation_video_becomes_a_placeholder(grey_videos, tmp_path):
    samples = break_some(grey_videos, [4], tmp_path)
    data = ListData(samples, batch_size=5, num_workers=0, num_clips=2, num_crops=1, **FORMAT)
    data.setup()
    with pytest.warns(UserWarning, match="left out of the evaluation") as caught:
        for loader, shape in ((data.val_dataloader(), (3, 4, 32, 32)), (data.test_dataloader(), (2, 3, 4, 32, 32))):
            batches = list(loader)
            indices = torch.cat([batch["index"] for batch in batches])
            assert indices.tolist() == [0, 1, 2, 3, -1, *range(5, 15)]
            videos = torch.cat([batch["video"] for batch in batches])
            assert videos.shape == (15, *shape) and not videos[4].any()
    assert all(samples[4].path in str(warning.message) for warning in caught)


@pytest.mark.parametrize(("broken", "max_unreadable", "stops"), [
    ([1], 0.0, True), ([1], 0.01, False), ([1], 0.1, False), ([1, 5], 0.1, True), ([1, 5, 9], 0.2, False),
    ([1, 5, 9, 11], 0.2, True), (range(15), 1.0, True), (range(14), 1.0, False),
])  # fmt: skip
def test_share_of_unreadable_videos(grey_videos, tmp_path, broken, max_unreadable, stops):
    samples = break_some(grey_videos, broken, tmp_path)
    data = ListData(samples, batch_size=5, num_workers=0, max_unreadable=max_unreadable, **FORMAT)
    data.setup("fit")
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for batch in data.train_dataloader():
                data.on_before_batch_transfer(batch, 0)
        except DataError as caught:
            error = str(caught)
    assert (error is not None) == stops
    if stops:
        assert "of 15 videos cannot be read, more than max_unreadable allows" in error
        assert "broken" in error and "fix or remove them, or raise max_unreadable" in error


class Recorder(L.LightningModule):
    """A module with the house's `preprocessing` that keeps what arrives."""

    preprocessing = FORMAT

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch):
        self.seen["train"].append(batch)
        return self.weight * batch["video"].float().mean()

    def validation_step(self, batch):
        self.seen["val"].append(batch)

    def test_step(self, batch):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **arguments):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **{"max_epochs": 2} | arguments,
    )  # fmt: skip


def test_fit_with_workers_mixing_and_a_broken_video(grey_videos, tmp_path, capfd, monkeypatch):
    # Outside pytest, which collects warnings, they go to the standard error of the worker.
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: os.write(2, f"{message}\n".encode()))
    samples = break_some(grey_videos, [7], tmp_path)
    model = Recorder()
    data = ListData(samples, batch_size=5, num_workers=2, mixup=0.8, cutmix=1.0, random_erasing=0.25)
    trainer(tmp_path, num_sanity_val_steps=0).fit(model, data)
    assert len(model.seen["train"]) == 6 and len(model.seen["val"]) == 6
    for batch in model.seen["train"]:
        assert batch["video"].dtype == torch.float32 and batch["video"].shape == (5, 3, 4, 32, 32)
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(5))
        assert batch["target"].shape == (5, NUM_CLASSES) and (batch["index"] != 7).all()
    for batch in model.seen["val"]:
        assert batch["video"].dtype == torch.uint8 and "target" not in batch
    errors = capfd.readouterr().err  # of two epochs
    assert errors.count(f"{samples[7].path} is empty (0 bytes); copy or download it again. (replaced") == 1
    assert errors.count("left out of the evaluation") == 1


def test_the_number_of_workers_suits_the_machine_unless_it_is_given(grey_videos, tmp_path):
    data = ListData(grey_videos, batch_size=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=1).fit(Recorder(), data)
    assert not [str(w.message) for w in caught if "worker" in str(w.message)]
    assert data.train_dataloader().num_workers == data.num_workers == suitable_workers()
    given = ListData(grey_videos, batch_size=5, num_workers=7)
    assert given.num_workers == 7


def test_too_many_broken_videos_stop_a_fit_with_workers(grey_videos, tmp_path):
    samples = break_some(grey_videos, [1, 4, 6], tmp_path)
    data = ListData(samples, grey_videos, batch_size=5, num_workers=2)
    with pytest.raises(DataError, match=r"^[23] of 15 videos cannot be read") as caught:
        trainer(tmp_path, max_epochs=5).fit(Recorder(), data)
    assert "Traceback" not in str(caught.value)  # raised in the main process, as one sentence


# Repeated augmentation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_repeats_are_decoded_once_and_augmented_apart(grey_videos, num_workers):
    data = ListData(grey_videos, batch_size=3, repeats=3, num_workers=num_workers, **FORMAT)
    data.setup()
    assert data.clips_per_batch == 9
    seen = []
    for batch in data.train_dataloader():
        check_batch(batch, grey_videos, (3, 4, 32, 32))
        assert len(batch["path"]) == 9
        assert batch["index"].tolist() == [i for i in batch["index"].tolist()[::3] for _ in range(3)]
        seen += batch["index"].tolist()[::3]
    assert sorted(seen) == list(range(15))
    assert next(iter(data.val_dataloader()))["index"].tolist() == [0, 1, 2]


def test_repeats_have_the_same_frames(tmp_path, make_video):
    """Brightness tells the frame and a bright left half the side: the same frames, but some mirrored."""

    def frame(number):
        picture = np.full((48, 64, 3), 10 + 10 * number, np.uint8)
        picture[:, :32] += 60
        return picture

    path = make_video(tmp_path / "steps.mp4", 12, width=64, height=48, frame_at=frame)
    data = ListData([Sample(str(path), 0)], repeats=4, num_workers=0, batch_size=1, crop_area=(1.0, 1.0),
                    crop_ratio=(4 / 3, 4 / 3), **FORMAT)  # fmt: skip
    data.setup("fit")
    torch.manual_seed(0)
    mirrored, drawn, loader = set(), set(), data.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        video = next(iter(loader))["video"].float()
        brightness = video.mean(dim=(1, 3, 4))  # (4 repeats, 4 frames)
        assert (brightness - brightness[0]).abs().max() < 2
        mirrored.add(tuple((video[..., :10].mean(dim=(1, 2, 3, 4)) < video[..., -10:].mean(dim=(1, 2, 3, 4))).tolist()))
        drawn.add(tuple((brightness[0] / 5).round().int().tolist()))
    assert len(mirrored) > 1 and any(len(set(flips)) == 2 for flips in mirrored)
    assert len(drawn) > 1  # another epoch, other frames


def test_broken_video_is_replaced_with_all_its_repeats(grey_videos, tmp_path):
    samples = break_some(grey_videos, [2], tmp_path)
    data = ListData(samples, batch_size=5, repeats=2, num_workers=0, **FORMAT)
    data.setup("fit")
    with pytest.warns(UserWarning, match="replaced by another video"):
        for batch in data.train_dataloader():
            check_batch(batch, samples, (3, 4, 32, 32))
            assert len(batch["label"]) == 10 and batch["index"][::2].equal(batch["index"][1::2])


# Arguments -------------------------------------------------------------------------------------------------------


def test_clip_arguments_come_from_the_model_unless_given(grey_videos, tmp_path):
    model = Recorder()
    data = ListData(grey_videos, num_frames=2, num_workers=0, batch_size=5, num_clips=1, num_crops=1)
    trainer(tmp_path).test(model, data, verbose=False)
    assert model.seen["test"][0]["video"].shape == (5, 3, 2, 32, 32)
    assert data.clip == ClipFormat(**FORMAT | {"num_frames": 2})


def test_image_size_given_alone_moves_the_short_side(grey_videos, tmp_path):
    assert ListData([], **FORMAT | {"short_side": None}).clip.short_side == 32
    data = ListData(grey_videos, image_size=48, num_workers=0, num_clips=1, num_crops=1)
    trainer(tmp_path).test(Recorder(), data, verbose=False)  # whose model has 40 for 32
    assert (data.clip.image_size, data.clip.short_side) == (48, 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": None}, "num_frames not set and no model attached"),
        ({"num_frames": 0}, "num_frames is 0; it has to be a whole number, at least 1 and"),
        ({"sampling": "random"}, "sampling is 'random'; it has to be one of sparse, dense, ssv2"),
        ({"interpolation": "area"}, "interpolation is 'area'; it has to be one of bilinear, bicubic"),
        ({"short_side": 20}, "short_side is 20, too small to crop image_size 32 from"),
        ({"num_crops": 2}, "num_crops is 2; it has to be one of 1, 3"),
        ({"num_clips": 0}, "num_clips is 0; it has to be a whole number, at least 1 and"),
        ({"sampling": "ssv2", "num_clips": 4}, "sampling 'ssv2' defines one or two; set it to 2"),
        ({"batch_size": 0}, "batch_size is 0; it has to be a whole number, at least 1 and"),
        ({"repeats": 0}, "repeats is 0; it has to be a whole number, at least 1 and"),
        ({"repeat_mode": "loader"}, "repeat_mode is 'loader'; it has to be one of views, sampler"),
        ({"max_unreadable": 5}, "max_unreadable is 5; it has to be at least 0 and at most 1"),
        ({"auto_augment": "original"}, "auto_augment is 'original'; it has to be one of v0, or null"),
        ({"auto_augment": "v0", "rand_augment_ops": 2}, "'v0' and rand_augment_ops 2; set one of them"),
    ],
)
def test_bad_arguments(grey_videos, change, message):
    with pytest.raises(DataError, match=message):
        ListData(grey_videos, **FORMAT | change).setup()


def test_ssv2_is_tested_with_two_clips(grey_videos):
    data = ListData(grey_videos, num_workers=0, **FORMAT | {"sampling": "ssv2"})
    data.setup("test")
    assert next(iter(data.test_dataloader()))["video"].shape[1] == 6


def test_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        VideoDataModule()


def test_loader_made_by_hand(grey_videos):
    """A ClipDataset is an ordinary map-style data set."""
    dataset = ClipDataset(grey_videos, ClipFormat(**FORMAT), num_crops=3)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert len(dataset) == 15
    check_batch(batch, grey_videos, (3, 4, 32, 32), 3)


# What a run reads ------------------------------------------------------------------------------------------------


class Named(ListData):
    """Tells where its lists come from."""

    def list_videos(self, split):
        self.origins[split] = f"the {split} list \x1b[31m"
        return super().list_videos(split)


def test_a_fit_begins_with_a_table_of_its_data(grey_videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    train = [*grey_videos[:12], Sample(str(tmp_path / "gone.mp4"), 1)]
    data = Named(train, grey_videos[12:], batch_size=4, repeats=2, num_workers=0, max_unreadable=0.5)
    with pytest.warns(UserWarning, match="1 of the 13 train videos do not exist"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), data)
    assert data.describe() == [
        ("train", 13, 26, 5, 5, "the train list \x1b[31m", [str(tmp_path / "gone.mp4")]),
        ("val", 3, 3, 3, 5, "the val list \x1b[31m", []),
    ]
    shown = capsys.readouterr().out
    assert shown.count("Data of Named") == 1 and "\x1b" not in shown
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in shown.splitlines() if "list" in line]
    assert rows == [["train", "13", "5", "26", "1", r"the train list \x1b[31m"],
                    ["val", "3", "3 of 5", "3", "0", r"the val list \x1b[31m"]]  # fmt: skip
    assert f"\nLeft out of train: {tmp_path}/gone.mp4\n" in shown
    Named(train, **FORMAT, max_unreadable=0.5).setup("fit")  # without a run there is nothing to announce
    data.setup("validate")
    assert "Data of" not in capsys.readouterr().out


@pytest.mark.parametrize("own", [False, True])
def test_a_test_without_a_split_of_its_own_says_so(grey_videos, tmp_path, capsys, own):
    data = ListData(grey_videos[:10], grey_videos[10:], num_workers=0, num_clips=1, num_crops=1)
    if own:
        data.lists["test"] = grey_videos[:3]
    trainer(tmp_path).test(Recorder(), data)
    sentence = "Scored on the 5 validation videos: the data has no other test split"
    assert (sentence in capsys.readouterr().out) != own
    assert set(data.origins) == set()
