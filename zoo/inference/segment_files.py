"""Segments of timelines as files that players, spreadsheets and annotation tools open."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.files import check_target, written
from zoo.printable import printable

if TYPE_CHECKING:
    from zoo.inference.long_videos import Timeline

__all__ = ["SEGMENTS", "check_segments", "write_segments"]


def write_segments(timelines: "Sequence[Timeline]", out: str | os.PathLike[str]) -> Path:
    """Write the segments of timelines; the ending of `out` chooses the format.

    - ``.csv``: a row per segment with ``video`` (path), ``start``, ``end`` (seconds), ``label``, ``index`` and
      ``probability``.
    - ``.json``: as ActivityNet's evaluation of localisation takes it: ``{"version", "results": {name: [{"label",
      "score", "segment": [start, end]}]}, "external_data"}``, in seconds. A name is that of the file without its
      ending, or the whole path where two files share it.
    - ``.srt``: subtitles, each the label and its probability. Players show them with one video, so this takes one
      timeline.

    Raises:
        ZooError: see `check_segments`; or the file cannot be written.
    """
    check_segments(out, len(timelines))
    content = SEGMENTS[Path(out).suffix.lower()](timelines)
    with written(out) as beside:
        # Names of files are bytes; those that are not valid UTF-8 stay as they are.
        beside.write_bytes(content.encode("utf-8", "surrogateescape"))
    return Path(out)


def check_segments(out: str | os.PathLike[str], videos: int) -> None:
    """Compare a file's ending with the number of videos whose segments it will hold.

    Raises:
        ZooError: the ending is none of `SEGMENTS`; it is ``.srt`` and there are several videos; or the file cannot be
            written.
    """
    check_target(out, tuple(SEGMENTS))
    if videos > 1 and Path(out).suffix.lower() == ".srt":
        raise ZooError(f"{out} would hold subtitles of {videos} videos, and players take those of one; name a .csv or "
                       ".json file, or pass one video at a time.")  # fmt: skip


def _csv(timelines: "Sequence[Timeline]") -> str:
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerow(["video", "start", "end", "label", "index", "probability"])
    for timeline in timelines:
        for start, end, label, probability, index in timeline.segments():
            rows.writerow([timeline.path, f"{start:.3f}", f"{end:.3f}", label, index, f"{probability:.6f}"])
    return file.getvalue()


def _activitynet(timelines: "Sequence[Timeline]") -> str:
    stems = Counter(Path(timeline.path).stem for timeline in timelines)
    results = {}
    for timeline in timelines:
        stem = Path(timeline.path).stem
        results[stem if stems[stem] == 1 else timeline.path] = [
            {"label": s.label, "score": round(s.probability, 6), "segment": [round(s.start, 3), round(s.end, 3)]}
            for s in timeline.segments()
        ]
    # External data is what the challenge asks about; it says nothing here.
    content = {"version": "VERSION 1.3", "results": results, "external_data": {"used": False, "details": ""}}
    return json.dumps(content, indent=1) + "\n"


def _srt(timelines: "Sequence[Timeline]") -> str:
    cues = []
    for timeline in timelines:
        for number, (start, end, label, probability, _) in enumerate(timeline.segments(), start=1):
            times = f"{_subtitle_time(start)} --> {_subtitle_time(end)}"
            cues.append(f"{number}\n{times}\n{printable(label)} ({probability:.0%})\n")
    return "\n".join(cues)


def _subtitle_time(seconds: float) -> str:
    """01:02:03,450."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{thousandths:03}"


SEGMENTS = {".csv": _csv, ".json": _activitynet, ".srt": _srt}
"""How each ending is written."""
