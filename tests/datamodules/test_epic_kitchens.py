"""EPIC-KITCHENS-100 in its real layout: official rows, segments by time, videos, frames, tars, features."""

import inspect
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer, seed_everything
from safetensors.torch import save_file
from torchvision.io import write_jpeg

from datamodules import DataError, EpicKitchens100
from datamodules.annotations.epic_kitchens import Segment, sorted_as_text
from datamodules.annotations.question_files import GENERIC
from datamodules.clips import ClipFormat
from datamodules.segments import SegmentDataset
from datamodules.synthetic.writing import write_video
from zoo.tables.parquet import write_parquet

CLIP = dict(num_frames=4, image_size=32, short_side=32, sampling="sparse", frame_stride=2, interpolation="bilinear",
            num_workers=0, batch_size=4)  # fmt: skip
HEADER = ("narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
          "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes")  # fmt: skip
# The first two rows of the official training list, and made-up ones.
TRAIN = [
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]",
    "P01_11_1,P01,P01_11,00:00:01.700,00:00:01.56,00:00:02.45,93,147,put down plate,put-down,1,plate,2,['plate'],[2]",
    "P02_101_0,P02,P02_101,00:00:02.000,00:00:01.20,00:00:02.80,60,140,take tap from plate,take,0,tap,0,"
    "\"['tap', 'plate']\",\"[0, 2]\"",
]  # fmt: skip
VALIDATION = [
    "P01_12_0,P01,P01_12,,00:00:00.50,00:00:01.00,30,60,take plate,take,0,plate,2,['plate'],[2]",
    "P18_01_0,P18,P18_01,00:00:01.700,00:00:01.60,00:00:02.40,96,144,open spoon,open,2,spoon,1,['spoon'],[1]",
]


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def annotate(root: Path) -> Path:
    folder = root / "annotations"
    write(folder, "EPIC_100_train.csv", "\n".join([HEADER, *TRAIN]))
    write(folder, "EPIC_100_validation.csv", "\n".join([HEADER, *VALIDATION]))
    columns = HEADER.split(",")[:8]
    rows = [",".join(columns), "P33_01_0,P33,P33_01,00:00:00.6,00:00:00.50,00:00:02.00,30,120"]
    write(folder, "EPIC_100_test_timestamps.csv", "\n".join(rows))
    for kind, names in (("verb", ("take", "put-down", "open")), ("noun", ("tap", "spoon", "plate"))):
        lines = [f"{i},{name},\"['{name}']\",x" for i, name in enumerate(names)]
        write(folder, f"EPIC_100_{kind}_classes.csv", "\n".join(["id,key,instances,category", *lines]))
    # Beside it the official repository has this one, whose classes are not those of the lists.
    more = [f"{i},{name},\"['{name}']\",x" for i, name in enumerate(("tap", "spoon", "plate", "hand:left"))]
    write(folder, "EPIC_100_noun_classes_v2.csv", "\n".join(["id,key,instances,category", *more]))
    write(folder, "EPIC_100_tail_verbs.csv", "verb\n2")
    write(folder, "EPIC_100_tail_nouns.csv", "noun\n1")
    write(folder, "EPIC_100_unseen_participant_ids_validation.csv", "participant_id\nP18")
    write(folder, "EPIC_100_unseen_participant_ids_test.csv", "participant_id\nP33")
    return root


def counting_frames(count: int, size: int = 48) -> np.ndarray:
    """(count, size, size, 3): the number of a frame is its brightness divided by 2."""
    return np.repeat((np.arange(count) * 2)[:, None, None, None], size, 1).repeat(size, 2).repeat(3, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Videos of 3 seconds; P01 as MP4, P02 (50 fps) as a tar, P18 as a folder of frames, P33 as MP4."""
    root = annotate(tmp_path_factory.mktemp("epic"))
    for name in ("P01_11", "P01_12", "P33_01"):
        folder = root / "EPIC-KITCHENS" / name[:3] / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{name}.MP4", counting_frames(90), 30)
    for name in ("P02_101", "P18_01"):
        folder = root / "EPIC-KITCHENS" / name[:3] / "rgb_frames"
        pictures = folder / name if name == "P18_01" else root / "scratch"
        pictures.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(counting_frames(125), start=1):
            picture = torch.from_numpy(frame).permute(2, 0, 1).contiguous()
            write_jpeg(picture, str(pictures / f"frame_{number:010d}.jpg"), quality=98)
        if name == "P02_101":
            with tarfile.open(folder / f"{name}.tar", "w") as archive:
                for picture in sorted(pictures.iterdir(), reverse=True):  # in any order
                    archive.add(picture, arcname=f"./{picture.name}")
            shutil.rmtree(pictures)
        (folder.parent / "flow_frames").mkdir()
        (folder.parent / "flow_frames" / f"{name}.tar").write_bytes(b"not for us")
    return root


def data(root, **kwargs):
    return EpicKitchens100(root, **{**CLIP, **kwargs})


# Annotations ---------------------------------------------------------------------------------------------------------


def test_segments_of_the_official_rows(root):
    module = data(root)
    found = module.listing("train")
    base = root / "EPIC-KITCHENS"
    assert found == [
        Segment(str(base / "P01/videos/P01_11.MP4"), "P01_11_0", (0.0, 1.89), 0, (2,), 1, False, (False, False)),
        Segment(str(base / "P01/videos/P01_11.MP4"), "P01_11_1", (1.56, 2.45), 1, (2,), 2, False, (False, False)),
        Segment(str(base / "P02/rgb_frames/P02_101.tar"), "P02_101_0", (1.2, 2.8), 0, (0, 2), 0, False, (False, False)),
    ]
    (seen, unseen) = module.listing("val")
    assert not seen.unseen and unseen.unseen and unseen.tail == (True, True)
    assert unseen.path == str(base / "P18/rgb_frames/P18_01")
    assert module.listing("test") == [seen, unseen]
    assert module.verb_names == ["take", "put-down", "open"] and module.noun_names == ["tap", "spoon", "plate"]
    # All pairs of training and validation in order.
    assert module.actions == [(0, 0), (0, 2), (1, 2), (2, 1)]
    assert module.class_names == ["take tap", "take plate", "put-down plate", "open spoon"]
    assert module.num_classes == 4
    assert {"take plate", "take tap from plate", "what is the person doing?", "spoon"} <= set(module.captions)


def test_a_list_of_actions_and_the_challenges_test_list(root, tmp_path):
    shutil.copytree(root / "annotations", tmp_path / "other")
    (tmp_path / "other" / "actions.csv").write_text("id,verb,noun,action\n1,0,2,take plate\n0,2,1,open spoon\n")
    module = data(root, annotations=str(tmp_path / "other"), test="EPIC_100_test_timestamps.csv")
    assert module.actions == [(2, 1), (0, 2)]
    assert [segment.action for segment in module.listing("train")] == [1, -1, -1]
    (segment,) = module.listing("test")
    assert (segment.verb, segment.nouns, segment.action) == (-1, (), -1)
    assert segment.unseen and segment.span == (0.5, 2.0)
    (tmp_path / "other" / "EPIC_100_unseen_participant_ids_validation.csv").unlink()
    assert [s.unseen for s in module.listing("val")] == [False, True]  # P18 has no training videos


def test_actions_sorted_as_text_are_numbered_as_released_classifiers_have_them(root, tmp_path, golden):
    known = [tuple(pair) for pair in golden("vim_suite_ek100")[0]["cls.actions"].tolist()]
    assert sorted_as_text(sorted(known)) == known != sorted(known)
    shutil.copytree(root / "annotations", tmp_path / "text")
    names = ("tap", "spoon", "plate", *(f"thing {i}" for i in range(3, 11)))
    lines = [f"{i},{name},x,y" for i, name in enumerate(names)]
    write(tmp_path / "text", "EPIC_100_noun_classes.csv", "\n".join(["id,key,instances,category", *lines]))
    more = "P01_12_1,P01,P01_12,,00:00:01.00,00:00:02.00,60,120,take thing,take,0,thing 10,10,['thing 10'],[10]"
    write(tmp_path / "text", "EPIC_100_validation.csv", "\n".join([HEADER, *VALIDATION, more]))
    module = data(root, annotations=str(tmp_path / "text"), actions="as_text")
    assert module.actions == [(0, 0), (0, 10), (0, 2), (1, 2), (2, 1)]
    assert [segment.action for segment in module.listing("val")] == [2, 4, 1]
    # The order that the models of before were trained with.
    assert data(root, annotations=str(tmp_path / "text")).actions == [(0, 0), (0, 2), (0, 10), (1, 2), (2, 1)]


# Clips ---------------------------------------------------------------------------------------------------------------


def numbers(video: torch.Tensor) -> list[float]:
    """Numbers of the frames of a clip (3, T, H, W) of `counting_frames`."""
    return (video.float().mean(dim=(0, 2, 3)) / 2).round().tolist()


@pytest.mark.parametrize(
    ("split", "row", "rate", "offset"), [("train", 1, 30, 0), ("train", 2, 50, 1), ("val", 1, 60, 1)],
    ids=["video", "tar", "frames"],
)  # fmt: skip
def test_a_clip_is_cut_out_by_time(root, split, row, rate, offset):
    torch.manual_seed(0)  # which frames a training clip has is drawn
    np.random.seed(0)  # noqa: NPY002
    module = data(root)
    module.setup("fit")
    dataset = module.datasets[split]
    start, stop = dataset.samples[row].span
    seen = numbers(dataset[row]["video"])
    low, high = start * rate - offset - 1.5, min(stop * rate - offset + 0.5, 124.5)
    assert len(seen) == 4 and seen == sorted(seen)
    assert all(low <= number <= high for number in seen), (low, seen, high)
    assert seen[-1] - seen[0] > 0.5 * (high - low)


def test_of_an_action_to_come_nothing_is_seen_before_its_time(root):
    module = data(root, task="anticipation", observed_seconds=1.0)
    module.setup("fit")
    spans = [sample.span for sample in module.datasets["train"].samples]
    assert spans == [
        (-2.0, -1.0),
        (pytest.approx(-0.44), pytest.approx(0.56)),
        (pytest.approx(-0.8), pytest.approx(0.2)),
    ]
    assert not module.datasets["train"][0]["video"].any()  # begins with the video: nothing to see
    for row, rate, offset in ((1, 30, 0), (2, 50, 1)):
        for _ in range(5):
            assert max(numbers(module.datasets["train"][row]["video"])) <= spans[row][1] * rate - offset + 0.5


def test_items_and_batches(root):
    seed_everything(0)
    module = data(root, neutral=0.0, test="EPIC_100_test_timestamps.csv", num_clips=2, num_crops=3, batch_size=3)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (3, 3, 4, 32, 32) and batch["video"].dtype == torch.uint8
    order = torch.argsort(batch["index"])
    assert batch["verb"][order].tolist() == [0, 1, 0] and batch["noun"][order].tolist() == [2, 2, 0]
    assert batch["action"][order].tolist() == [1, 2, 0]
    assert all(batch["question"]) and batch["answer"].dtype == torch.int64
    assert batch["tail"].shape == (3, 2) and batch["unseen"].dtype == torch.bool
    evaluated = next(iter(module.val_dataloader()))
    assert "question" not in evaluated and evaluated["narration_id"] == ["P01_12_0", "P18_01_0"]
    unlabelled = next(iter(module.test_dataloader()))
    assert unlabelled["video"].shape == (1, 6, 3, 4, 32, 32)
    assert [unlabelled[key].item() for key in ("verb", "noun", "action", "index")] == [-1, -1, -1, 0]


def test_questions_follow_the_seed_and_not_the_action(root):
    """The same draw asks the same question about every segment, and gives each its own answer."""
    from datamodules.loading import Draw

    module = data(root, neutral=0.3)
    module.setup("fit")
    dataset = module.datasets["train"]
    for seed in range(12):
        items = [dataset[Draw(index, seed)] for index in range(3)]
        assert len({item["question"] for item in items}) == 1
        again = dataset[Draw(1, seed)]
        assert torch.equal(again["video"], items[1]["video"]) and again["answer"] == items[1]["answer"]
    silent = data(root, question_kinds=())
    silent.setup("fit")
    assert {silent.datasets["train"][i]["question"] for i in range(3)} == {""}


def test_broken_videos_are_replaced_or_left_out(root, tmp_path):
    broken = tmp_path / "P09_01.MP4"
    broken.write_bytes(b"not a video")
    good = data(root).listing("train")
    samples = [good[0]._replace(path=str(broken)), *good[1:]]
    clip = ClipFormat(4, 32, 32, "sparse", 2, "bilinear")
    with pytest.warns(UserWarning, match="P09_01"):
        item = SegmentDataset(samples, clip)[0]
    assert item["index"] == -1 and not item["video"].any() and item["narration_id"] == "P01_11_0"


# Questions for the verb and the noun ---------------------------------------------------------------------------------


WRITTEN = """narration_id,verb_question,noun_question
P01_11_0,What reaches the plates?,What is being taken?
P01_11_1,What leaves the plate?,What was it that she put down?
P02_101_0,What is taken with tap water?,What is taken from the sink?
P01_12_0,What is done with plates?,Which of the things is taken?
P18_01_0,Does the spoon gape?,What opens?
"""
MASKED = {
    "P01_11_0": ("What reaches the <mask> ?", "What is being <mask> ?"),
    "P01_11_1": ("What leaves the <mask> ?", "What was it that she <mask> ?"),
    "P02_101_0": ("What is taken with <mask> water ?", "What is <mask> from the sink ?"),
    "P01_12_0": ("What is done with <mask> ?", "Which of the things is <mask> ?"),
    "P18_01_0": ("Does the <mask> gape ?", "What <mask> ?"),
}


@pytest.fixture
def written(tmp_path) -> str:
    (tmp_path / "questions.csv").write_text(WRITTEN)
    return str(tmp_path / "questions.csv")


def read(module) -> dict[str, dict[str, tuple[str, str]]]:
    """What each split's batches read, by narration_id."""
    module.setup()
    found = {}
    for split in ("train", "val", "test"):
        for batch in getattr(module, f"{split}_dataloader")():
            asked = zip(batch["narration_id"], batch["verb_question"], batch["noun_question"], strict=True)
            found.setdefault(split, {}).update({name: (verb, noun) for name, verb, noun in asked})
    return found


def test_generic_questions_are_the_same_for_every_segment(root):
    module = data(root)
    found = read(module)
    assert module.questions == "generic" and {split: len(rows) for split, rows in found.items()} == {
        "train": 3, "val": 2, "test": 2}  # fmt: skip
    assert {pair for rows in found.values() for pair in rows.values()} == {tuple(GENERIC)}


def test_evaluation_reads_generic_questions_unless_asked_otherwise(root, written):
    found = read(data(root, question_files=written))
    assert found["train"] == {name: MASKED[name] for name in ("P01_11_0", "P01_11_1", "P02_101_0")}
    assert {pair for split in ("val", "test") for pair in found[split].values()} == {tuple(GENERIC)}
    published = data(root, question_files=[written], questions="as_published")
    found = read(published)
    assert published.questions == "as_published"
    assert found["val"] == found["test"] == {name: MASKED[name] for name in ("P01_12_0", "P18_01_0")}


def test_questions_of_several_files_beside_the_annotations(root, tmp_path):
    folder = annotate(tmp_path / "other") / "annotations"
    lines = WRITTEN.splitlines(keepends=True)
    write(folder, "train.csv", "".join(lines[:4]))
    write(folder, "validation.csv", "".join(lines[:1] + lines[4:]))
    options = {"annotations": str(folder), "questions": "as_published"}
    found = read(data(root, question_files=["train.csv", "validation.csv"], **options))
    assert {**found["train"], **found["val"]} == MASKED
    with pytest.raises(
        DataError, match=r"2 of the 2 val segments have no questions in train\.csv: P01_12_0, P18_01_0; add"
    ):
        data(root, question_files="train.csv", **options).setup("fit")
    with pytest.raises(DataError, match=r"no none\.csv in .*; give the path in data\.question_files"):
        data(root, question_files="none.csv").setup("fit")
    unlabelled = data(root, question_files=["validation.csv"], test="EPIC_100_test_timestamps.csv", **options)
    with pytest.raises(
        DataError, match=r"no verb or noun to mask in the questions of 1 segments: P33_01_0; set data\.q"
    ):
        unlabelled.setup("test")
    data(root, question_files=["validation.csv"], test="EPIC_100_test_timestamps.csv").setup("test")


def test_the_command_line_takes_both_forms_of_the_new_arguments(root, written):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpicKitchens100, "data")
    given = ["--data.root", str(root), "--data.questions", "as_published", f"--data.question_files={written}"]
    module = parser.instantiate(parser.parse_args(given)).data
    assert (module.questions, module.question_files) == ("as_published", (written,))
    # Runs of before have the kinds of training questions under this name.
    given = ["--data.root", str(root), "--data.questions", '["verb", "noun"]', f"--data.question_files=[{written}]"]
    with pytest.warns(UserWarning, match="name them in question_kinds"):
        module = parser.instantiate(parser.parse_args(given)).data
    assert (module.questions, module.question_kinds) == ("generic", ("verb", "noun"))
    assert module.question_files == (written,)


# Mixing and augmentation as published --------------------------------------------------------------------------------


class Keeper(LightningModule):
    """Keeps the batches that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_and_both_labels_are_mixed_together(root, tmp_path, written, kind):
    seed_everything(3)
    options = {kind: 0.8, "crop_area": (1.0, 1.0), "horizontal_flip": 0.0, "batch_size": 2, "question_files": written}
    module = data(root, **options)
    model, plain = Keeper(), Keeper()
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    for each, source in ((model, module), (plain, data(root, **{**options, kind: 0.0}))):
        Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(each, datamodule=source)
    assert len(model.seen["train"]) == 2 and all("verb_target" not in batch for batch in model.seen["val"])
    shares = set()
    for mixed, alone in zip(model.seen["train"], plain.seen["train"], strict=True):
        assert torch.equal(mixed["index"], alone["index"]) and mixed["verb_question"] == alone["verb_question"]
        sizes = {"verb": 3, "noun": 3, "action": 4}
        assert {name: mixed[f"{name}_target"].shape for name in sizes} == {n: (2, k) for n, k in sizes.items()}
        # What share the picture's own clip has, from the pixels; the targets have the same.
        own = alone["video"].float() / 255
        other, far = own.flip(0), (own - own.flip(0)).abs() > 0.02
        if kind == "mixup":
            share = ((mixed["video"] - other) / (own - other))[far].mean().item()
        else:
            share = torch.isclose(mixed["video"], own)[far].float().mean().item()
        for name, size in sizes.items():
            one = torch.nn.functional.one_hot(alone[name], size).float()
            expected = share * one + (1 - share) * one.flip(0)
            torch.testing.assert_close(mixed[f"{name}_target"], expected, atol=0.02, rtol=0)
        shares.add(round(share, 3))
    assert len(shares) == 2


def test_the_published_augmentation_and_frames(root):
    """Section 22 of docs/protocol.md: half to all of the frame, no flip, 16 middles of the segment."""
    module = data(root, crop_area=(0.5, 1.0), horizontal_flip=0.0, sampling="middles", num_frames=16)
    module.setup("fit")
    transform = module.datasets["train"].transform
    assert (transform.area, transform.flip, transform.num_ops) == ((0.5, 1.0), 0.0, 0)
    seen = numbers(module.datasets["val"][1]["video"])  # from frame 95 (1.6 s) to the last one: 30 frames
    assert seen == pytest.approx((95 + np.floor((np.arange(16) + 0.5) * 30 / 16)).tolist(), abs=0.5)
    drawn = numbers(module.datasets["train"][0]["video"])  # 0 to 1.89 s at 30 frames a second
    assert all(i * 57 / 16 - 1.5 <= frame <= (i + 1) * 57 / 16 + 0.5 for i, frame in enumerate(drawn))


def test_the_constructor_has_at_most_25_arguments():
    assert len(inspect.signature(EpicKitchens100).parameters) <= 25


# Features ------------------------------------------------------------------------------------------------------------


def write_features(folder: Path, kind: str, names=("P01_11", "P02_101", "P01_12", "P18_01")) -> Path:
    """Windows of 1 s every half second over 4 s; the vector is the number of the window. As a folder of files, or as
    the table of that kind that `zoo extract` writes, in any order, with a row about a broken file."""
    starts = torch.arange(7) / 2
    if kind == "folder":
        (folder / "features").mkdir()
        for name in names:
            save_file({"features": torch.arange(7.0)[:, None].repeat(1, 5),
                       "seconds": torch.stack([starts, starts + 1], dim=1)},
                      folder / "features" / f"{name}.safetensors")  # fmt: skip
        return folder / "features"
    pa = pytest.importorskip("pyarrow")
    rows = [(f"{name[:3]}/videos/{name}.MP4", start, start + 1, [2 * start] * 5, None)
            for start in starts.tolist()[::-1] for name in names]  # fmt: skip
    columns = [*zip(*rows, ("torn/P09_09.MP4", None, None, None, "cannot be read"), strict=True)]
    types = [pa.string(), pa.float64(), pa.float64(), pa.list_(pa.float32(), 5), pa.string()]
    table = pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)],
                     names=["path", "start", "end", "features", "error"])  # fmt: skip
    if kind == "parquet":
        write_parquet(table, folder / "features.parquet")
    else:
        pytest.importorskip("lancedb").connect(folder).create_table("features", table)
    return folder / f"features.{kind}"


@pytest.fixture(params=["folder", "parquet", "lance"])
def features(tmp_path, request) -> Path:
    return write_features(tmp_path, request.param)


def test_features_of_a_segment_are_those_in_its_middle(root, features):
    module = data(root, features=str(features), num_features=3)
    module.setup("fit")
    dataset = module.datasets["train"]
    item = dataset[2]  # 1.2 to 2.8 s: middles 1.5, 2, 2.5
    assert item["features"].shape == (3, 5) and "video" not in item
    assert set(item["features"][:, 0].tolist()) <= {2.0, 3.0, 4.0}
    assert module.datasets["val"][0]["features"][:, 0].tolist() == [0, 1, 1]  # 0.5 to 1.0: middles 0.5, 1
    batch = next(iter(module.train_dataloader()))
    assert batch["features"].shape == (3, 3, 5) and batch["features"].dtype == torch.float32


def test_loader_processes_read_a_table_of_features(root, tmp_path):
    for kind in ("parquet", "lance"):
        module = data(root, features=str(write_features(tmp_path, kind)), num_features=3, num_workers=1)
        module.setup("fit")
        (batch,) = list(module.val_dataloader())
        assert batch["features"][0, :, 0].tolist() == [0, 1, 1] and batch["index"].min() >= 0
        assert batch["path"][0].endswith(f"features.{kind}/P01_11") or "P01_12" in batch["path"][0]


def test_features_seen_before_an_action_end_before_it(root, features):
    module = data(root, features=str(features), num_features=4, task="anticipation", observed_seconds=2.0)
    module.setup("fit")
    late = module.datasets["train"]
    assert not late[0]["features"].any()  # nothing to see
    options = {"features": 4, "ends": True, "table": late.table}
    early = SegmentDataset([late.samples[0]._replace(span=(1.0, 2.6))], None, **options)
    # Window 0 ends at 1.0, window 3 at 2.5, window 4 at 3.0.
    assert early[0]["features"][:, 0].tolist() == [0, 1, 2, 3]
    if features.is_dir() and late.table is None:
        (features / "P01_12.safetensors").write_bytes(b"broken")
        with pytest.warns(UserWarning, match="cannot be read as features"):
            item = module.datasets["val"][0]
        assert item["index"] == -1 and item["features"].shape == (4, 5)


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_videos_that_a_table_of_features_lacks_are_missing(root, tmp_path, kind):
    module = data(root, features=str(write_features(tmp_path, kind, ["P01_11", "P02_101", "P18_01"])), num_features=4)
    with pytest.warns(UserWarning, match=rf"val videos do not exist: .*features\.{kind}/P01_12"):
        module.setup("fit")
    with pytest.warns(UserWarning, match="P01_12 has no rows in the table; extract them"):
        known = module.datasets["val"]  # which warned of the missing one before
        item = SegmentDataset(known.samples, None, features=4, table=known.table)[0]
    assert item["index"] == -1 and item["features"].shape == (4, 5)


def test_other_tables_are_refused_in_one_sentence(root, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    parquet.write_table(pa.table({"path": ["a"], "labels": [["b"]]}), tmp_path / "labels.parquet")
    parquet.write_table(pa.table({"path": ["a"], "start": [0.0], "end": [1.0], "features": [[1.0]]}),
                        tmp_path / "lists.parquet")  # fmt: skip
    (tmp_path / "none.lance").mkdir()
    for name in ("torn.parquet", "labels.parquet", "lists.parquet", "none.lance"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as a table of features; write it with zoo extr"):
            data(root, features=str(tmp_path / name)).setup("fit")
    for name in ("gone.parquet", "gone.lance"):
        with pytest.raises(DataError, match=f"There is no table of features .*{name}; write it with zoo extract"):
            data(root, features=str(tmp_path / name)).setup("fit")
    table = parquet.read_table(write_features(tmp_path, "parquet"))
    again = table.set_column(0, "path", pa.array([f"b/{path.split('/')[-1]}" for path in table["path"].to_pylist()]))
    parquet.write_table(pa.concat_tables([table, again]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet has rows of several files named .*P01_11.*; extract one"):
        data(root, features=str(tmp_path / "twice.parquet")).setup("fit")


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_mistakes_name_the_file(root, tmp_path):
    with pytest.raises(
        DataError, match=r"no EPIC_100_train\.csv in .*annotations; name the folder with data\.annotations"
    ):
        data(tmp_path).setup("fit")
    there = annotate(tmp_path / "bare")
    with pytest.raises(DataError, match="None of the 2 train videos is below"):
        data(there).setup("fit")
    noun_table = there / "annotations" / "EPIC_100_noun_classes.csv"
    noun_table.write_text("id,key,instances,category\n0,tap,['tap'],x\n")
    with pytest.raises(DataError, match=r"3 of the 3 train segments have classes outside the tables of 3 verbs and 1"):
        data(there, videos=str(root)).setup("fit")
    noun_table.write_text("id,name\n0,tap\n")
    with pytest.raises(DataError, match=r"EPIC_100_noun_classes\.csv has no column key"):
        _ = data(there).noun_names
    train = there / "annotations" / "EPIC_100_train.csv"
    train.write_text("\n".join([HEADER, TRAIN[0].replace("00:00:01.89", "1.89")]))
    with pytest.raises(DataError, match=r"P01_11_0: stop_timestamp is '1\.89'"):
        data(there, videos=str(root)).listing("train")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "guess"}, "task is 'guess'; choose one of recognition, anticipation"),
        ({"num_crops": 2}, "num_crops is 2"),
        ({"gap_seconds": -1}, "gap_seconds is -1"),
        ({"neutral": 2.0}, "neutral is 2.0"),
        ({"question_kinds": ["verb", "when"]}, "no questions about 'when'"),
        ({"questions": "published"}, "questions is 'published'; it has to be one of generic, as_published"),
        (
            {"questions": "as_published"},
            "questions is 'as_published' without questions; name their files",
        ),
        ({"features": "f", "mixup": 0.8}, "mixup and cutmix mix clips; leave them at 0 with features"),
    ],
)
def test_mistaken_arguments(root, arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        data(root, **arguments)
