import shutil

import pytest

from datamodules.errors import DataError
from datamodules.lsmdc import LSMDC

FORMAT = {
    "num_frames": 3,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}
CLIPS = ["0001_American_Beauty_00.00.51.926-00.00.54.129", "0001_American_Beauty_00.01.00.000-00.01.02.000",
         "1012_Unbreakable_00.05.16.065-00.05.21.941"]  # fmt: skip


def row(clip, sentence):
    times = clip.rpartition("_")[2].split("-")
    return "\t".join([clip, *times, *times, sentence]) + "\n"


TRAIN = (
    row(CLIPS[0], "SOMEONE sits.")
    + row(CLIPS[2], 'He says "no, and looks up.')
    + row(CLIPS[0], "She waits, then turns.")
)


@pytest.fixture
def root(captioned_clips, tmp_path):
    for clip, (path, _) in zip(CLIPS, captioned_clips, strict=False):
        film = tmp_path / "videos" / clip.rpartition("_")[0]
        film.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, film / f"{clip}.avi")
    (tmp_path / "LSMDC16_annos_training.csv").write_text(TRAIN)
    (tmp_path / "LSMDC16_annos_val.csv").write_text(row(CLIPS[1], "SOMEONE nods."))
    (tmp_path / "LSMDC16_challenge_1000_publictect.csv").write_text(row(CLIPS[1], "SOMEONE waves."))
    return tmp_path


def test_clips_with_several_rows(root):
    data = LSMDC(root, batch_size=3, num_workers=0, **FORMAT)
    data.setup()
    where = [f"{root}/videos/{clip.rpartition('_')[0]}/{clip}.avi" for clip in CLIPS]
    assert [tuple(video) for video in data.datasets["train"].videos] == [
        (where[0], ("SOMEONE sits.", "She waits, then turns."), None),
        (where[2], ('He says "no, and looks up.',), None),
    ]
    assert [tuple(video)[:2] for video in data.datasets["val"].videos] == [(where[1], ("SOMEONE nods.",))]
    assert [tuple(video)[:2] for video in data.datasets["test"].videos] == [(where[1], ("SOMEONE waves.",))]
    (batch,) = data.train_dataloader()
    pairs = sorted(zip(batch["index"].tolist(), batch["video_index"].tolist(), batch["text"], strict=True))
    assert pairs == [(0, 0, "SOMEONE sits."), (1, 0, "She waits, then turns."), (2, 1, 'He says "no, and looks up.')]


def test_missing_clip(root):
    (root / "LSMDC16_annos_training.csv").write_text(
        TRAIN + row("0002_Film_00.00.00.000-00.00.01.500", "SOMEONE goes.")
    )
    with pytest.warns(UserWarning, match=f"1 of the 3 train videos do not exist: {root}/videos/0002_Film_.*500.avi"):
        LSMDC(root, **FORMAT).setup("fit")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no LSMDC16_annos_training.csv, annotations of LSMDC"),
        ("", "is empty; download it again from https://sites.google.com"),
        (
            TRAIN + "a,b,c,d,e,f\n",
            "LSMDC16_annos_training.csv, line 4 has 1 columns, not clip, four times and sentence",
        ),
        (TRAIN + "a\tb\tc\n", "line 4 has 3 columns"),
    ],
)
def test_wrong_annotations(root, content, message):
    path = root / "LSMDC16_annos_training.csv"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        LSMDC(root, **FORMAT).setup("fit")
    assert message in str(caught.value)
