import os
import pickle
import shutil

import pytest

from datamodules.errors import DataError
from datamodules.msvd import MSVD

FORMAT = {
    "num_frames": 3,
    "image_size": 32,
    "short_side": 32,
    "sampling": "sparse",
    "frame_stride": 2,
    "interpolation": "bicubic",
}
IDS = ["eyhzDC936uk_15_27", "XXXXXXXXXXX_0_10", "YYYYYYYYYYY_33_45", "-ZZZZZZZZZZ_1_2"]


@pytest.fixture
def root(captioned_clips, tmp_path):
    """Video k has 1 + k % 3 captions."""
    (tmp_path / "videos").mkdir()
    captions = {}
    for k, (name, (path, texts)) in enumerate(zip(IDS, captioned_clips, strict=False)):
        shutil.copy(path, tmp_path / "videos" / f"{name}.avi")
        captions[name] = [text.split() for text in texts[: 1 + k % 3]]
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, 2))
    (tmp_path / "train_list.txt").write_text(f"{IDS[1]}\n{IDS[0]}\n")
    (tmp_path / "val_list.txt").write_text(f"{IDS[3]}\n")
    (tmp_path / "test_list.txt").write_text(f"{IDS[2]}\n{IDS[3]}\n")
    return tmp_path


def test_many_captions(root, captioned_clips):
    data = MSVD(root, batch_size=3, num_workers=0, **FORMAT)
    data.setup()
    texts = [captions for _, captions in captioned_clips]
    (batch,) = data.train_dataloader()
    pairs = sorted(zip(batch["index"].tolist(), batch["video_index"].tolist(), batch["text"], strict=True))
    assert pairs == [(0, 0, texts[1][0]), (1, 0, texts[1][1]), (2, 1, texts[0][0])]
    assert [batch["text"] for batch in data.val_dataloader()] == [[[texts[3][0]]]]
    (batch,) = data.test_dataloader()
    assert batch["text"] == [list(texts[2]), [texts[3][0]]]
    assert batch["path"] == [f"{root}/videos/{IDS[2]}.avi", f"{root}/videos/{IDS[3]}.avi"]


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_exploit(root, tmp_path):
    content = {name: [["a"]] for name in IDS} | {"more": Exploit(f"touch {tmp_path}/was_here")}
    (root / "raw-captions.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"raw-captions.pkl holds \w+\.system, but only lists, strings, dicts and"):
        MSVD(root, **FORMAT).setup()
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("raw-captions.pkl", None, "There is no raw-captions.pkl, annotations of MSVD"),
        ("test_list.txt", None, "There is no test_list.txt, annotations of MSVD"),
        ("train_list.txt", "\n", "train_list.txt is empty"),
        ("raw-captions.pkl", {IDS[0]: [["a"]]}, "1 of the 2 videos of {root}/train_list.txt have no caption in"),
        ("raw-captions.pkl", [["a"]], "is not a dict of lists of lists of words"),
        ("raw-captions.pkl", {IDS[0]: [[1, 2]]}, "is not a dict of lists of lists of words"),
        ("raw-captions.pkl", {IDS[0]: 3}, "is not a dict of lists of lists of words"),
        ("raw-captions.pkl", {IDS[0]: ["a man"]}, "is not a dict of lists of lists of words"),
    ],
)
def test_wrong_annotations(root, name, content, message):
    (root / name).unlink()
    if isinstance(content, str):
        (root / name).write_text(content)
    elif content is not None:
        (root / name).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as caught:
        MSVD(root, **FORMAT).setup()
    text = str(caught.value)
    assert message.replace("{root}", str(root)) in text and "\n" not in text
