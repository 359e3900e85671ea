"""docs/own_videos.md: its commands run one after the other, on generated videos and with the shipped model."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.synthetic.writing import generate

PAGE = Path(__file__).parents[1] / "docs" / "own_videos.md"
# One epoch; what is read in this process needs no other one.
QUICK = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]


def commands() -> list[list[str]]:
    """Words of the page's commands, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(lightning|zoo) ", line)]


def test_the_page_shows_the_whole_way():
    assert [words[:2] for words in commands()] == [
        ["lightning", "fit"], ["lightning", "test"], ["zoo", "predict"], ["lightning", "fit"], ["lightning", "fit"],
        ["zoo", "predict"], ["zoo", "predict"], ["lightning", "predict"], ["zoo", "convert"],
    ]  # fmt: skip


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    data = generate(tmp_path / "my_videos", num_train=4, num_val=2, num_test=2, classes=("grow", "move_left"),
                    size=(48, 40), num_frames=8, num_workers=0, progress=False)  # fmt: skip
    for video in data.rglob("*.mp4"):
        video.rename(video.with_name(f"{video.parents[1].name}{video.stem}_0.mp4"))  # a recording and its piece
    for split in ("train", "val", "test"):
        rows = [(str(path.relative_to(data)), path.parent.name) for path in sorted((data / split).rglob("*.mp4"))]
        (data / f"{split}.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    (tmp_path / "clip.mp4").write_bytes(next(data.rglob("*.mp4")).read_bytes())
    for words in commands():
        words = ["videomamba-nano-motion" if word == "videomamba-ti-k400" else word for word in words]
        more = QUICK if words[0] == "lightning" else ["--device", "cpu"] if words[1] == "predict" else []
        command = [str(Path(sys.executable).parent / words[0]), *words[1:], *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{words}\n{done.stderr}"

    runs = tmp_path / "runs" / "finetune"
    assert {"report.html", "report.json", "per_class.csv", "mistakes.csv", "confusion.png"} <= {
        path.name for path in (runs / "test_0").iterdir()
    }
    with (runs / "predict_0" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["truth"] for row in rows] == [Path(row["path"]).parent.name for row in rows] != []
    assert (tmp_path / "out.png").stat().st_size > 10_000 and "-->" in (tmp_path / "clip.srt").read_text()
    # The report is of the file that is converted: its figures and its picture are on the card.
    card = (tmp_path / "my_model" / "README.md").read_text()
    assert "95 % interval" in card and "](confusion.png)" in card and "Expected calibration error" in card
    assert (tmp_path / "my_model" / "confusion.png").read_bytes() == (runs / "test_0" / "confusion.png").read_bytes()
