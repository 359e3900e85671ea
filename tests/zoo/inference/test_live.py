"""Labels of a stream: the right ones in order, with a model that keeps up and with one that does not; `zoo live`."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import zoo
from datamodules.synthetic import motion as synthetic
from datamodules.synthetic.writing import write_video
from datamodules.video.live import LiveStream
from lightning_modules.tasks.regression import VideoRegressor
from zoo.commands.main import main
from zoo.errors import ZooError
from zoo.inference import live as module

NANO = "videomamba-nano-motion"
FPS = 12
WINDOW = 2.0  # seconds, of 8 samples
SCENES = [("move_left", 8.0), ("grow", 9.0), ("turn_clockwise", 8.0), ("move_up", 9.0)]
BOUNDARIES = [0.0, *np.cumsum([seconds for _, seconds in SCENES])]
HELD_BACK = 4  # frames, see tests/datamodules/video/test_live.py
SERVER = Path(__file__).parents[2] / "stream_server.py"


def server_class():
    spec = importlib.util.spec_from_file_location("stream_server", SERVER)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.StreamServer


@pytest.fixture(scope="module")
def frames():
    """The scenes one after the other, at the speed of the clips that the model knows; it is right all the way."""
    rng, parts = np.random.default_rng(3), []
    for motion, seconds in SCENES:
        spec = synthetic.sample_spec(rng, motion, fps=FPS)
        count, axis = round(seconds * FPS), synthetic.MOTIONS[motion].axis
        travels = [t * count / spec.num_frames if i == axis else t for i, t in enumerate(spec.travels)]
        parts.append(synthetic.render(replace(spec, num_frames=count, travels=tuple(travels), turns=(0, 0, 0, 0))))
    return np.concatenate(parts)


@pytest.mark.parametrize("frames_per_answer", [12, 36])
def test_right_labels_in_order_and_a_bounded_lag(frames, monkeypatch, frames_per_answer):
    """The stream goes on by a second or by one and a half windows while the model works on one of two seconds. Time is
    counted in frames, which come when the model says so."""
    streams = []

    class Seen(LiveStream):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            streams.append(self)

    monkeypatch.setattr(module, "LiveStream", Seen)
    model = zoo.load(NANO)
    at_once = model.forward
    with server_class()(frames, FPS) as server:
        released = 3 * FPS
        server.release(released)

        def slowly(video):
            nonlocal released
            answer = at_once(video)
            released += frames_per_answer
            server.release(frames_per_answer)
            enough = (min(released, len(frames)) - HELD_BACK) * 8 / (FPS * WINDOW) - 1
            with streams[0]._news:
                streams[0]._news.wait_for(lambda: streams[0]._done or streams[0].sampled >= enough)
            return answer

        monkeypatch.setattr(model, "forward", slowly)
        found, behind = [], []
        for moment in zoo.live(model, server.url, reconnect=0):
            found.append(moment)
            behind.append(streams[0].seconds - moment.end)
    assert max(behind[1:]) < 2 * WINDOW  # the first one has all of the opening behind it
    assert all(later.end - moment.end >= WINDOW / 2 for moment, later in pairwise(found[:-1]))
    assert (found[-1].dropped > 0.15) == (frames_per_answer > WINDOW * FPS)
    labels = []
    for (label, _), start, end in zip(SCENES, BOUNDARIES, BOUNDARIES[1:], strict=False):
        inside = [moment for moment in found if start <= moment.start and moment.end <= end]
        assert inside and all(moment.label == label and moment.probability > 0.5 for moment in inside), label
        labels.append(label)
    changes = [moment.label for before, moment in zip([None, *found], found, strict=False)
               if before is None or moment.label != before.label]  # fmt: skip
    in_order = iter(changes)
    assert all(label in in_order for label in labels), changes
    assert all(moment.lag >= 0 for moment in found)


@pytest.mark.slow
def test_a_file_by_command(tmp_path, frames, capsys):
    write_video(tmp_path / "clip.mp4", frames[: 2 * FPS], FPS)
    main(["live", NANO, str(tmp_path / "clip.mp4")])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["0:02.0", "move_left"] and "0% dropped)" in line
    main(["live", NANO, str(tmp_path / "clip.mp4"), "--json", "--step", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    (moment,) = zoo.live(NANO, tmp_path / "clip.mp4", step=2)
    told = json.loads(line)
    assert list(told) == list(moment._fields)
    assert (told["label"], told["index"], told["start"], told["end"]) == ("move_left", 2, 0.0, 2.0)
    assert told["probability"] == pytest.approx(moment.probability, abs=1e-4)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("none.mp4", [], "none.mp4 does not exist"),
        ("rtmp://127.0.0.1/live", [], "has the scheme 'rtmp'"),
        ("/dev/video987", [], "There is no camera /dev/video987"),
        ("clip.mp4", ["--reconnect", "-1"], "--reconnect is -1"),
        ("clip.mp4", ["--window", "1", "--step", "2"], "make the step at most the window"),
    ],
)
def test_the_command_refuses_in_one_sentence(capsys, source, options, words):
    if source.startswith("/dev") and sys.platform != "linux":
        pytest.skip("cameras have other names there")
    with pytest.raises(SystemExit) as ended:
        main(["live", NANO, source, *options])
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.count("\n") == 1 and words in error


def test_a_regressor_has_no_labels():
    sizes = {"embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32}
    with pytest.raises(ZooError, match="predicts a number"):
        zoo.live(VideoRegressor(**sizes), "clip.mp4")


class Reader(threading.Thread):
    """Lines of a process, as they come."""

    def __init__(self, pipe) -> None:
        super().__init__(daemon=True)
        self._pipe, self.lines, self._news = pipe, [], threading.Condition()
        self.start()

    def run(self) -> None:
        for line in self._pipe:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def wait_for(self, found) -> bool:
        with self._news:
            return self._news.wait_for(lambda: found(self.lines), 600)


@pytest.mark.slow
def test_udp_in_real_processes(tmp_path, frames):
    """A sender at a video's speed is killed and started again; then Ctrl-C."""
    write_video(tmp_path / "clip.mp4", frames[: 8 * FPS], FPS)
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"

    def sender() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, SERVER, address, tmp_path / "clip.mp4"])

    command = [sys.executable, "-m", "zoo.commands.main", "live", NANO, address, "--json"]
    sending = sender()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as live:
        try:
            out, errors = Reader(live.stdout), Reader(live.stderr)
            assert out.wait_for(lambda lines: len(lines) >= 3)
            sending.kill()
            sending.wait()
            assert errors.wait_for(lambda lines: any("looking for it for 60 s" in line for line in lines))
            before = len(out.lines)
            sending = sender()
            assert out.wait_for(lambda lines: len(lines) >= before + 3)
            live.send_signal(signal.SIGINT)
            assert live.wait(600) == 130
        finally:
            sending.kill()
            sending.wait()
            live.kill()
    moments = [json.loads(line) for line in out.lines]
    assert [m["end"] for m in moments] == sorted(m["end"] for m in moments)
    assert sum(m["label"] == "move_left" for m in moments) >= len(moments) / 2  # others where the clip starts anew
    errors.join()
    assert errors.lines[-1] == "zoo: interrupted\n" and "Traceback" not in "".join(errors.lines)
