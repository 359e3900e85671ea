"""The newest window of a stream: what it shows, what is dropped, and what happens when the stream breaks off.

Streams move only when the test lets frames go, so nothing here depends on how fast the machine is.
"""

import importlib.util
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import DataError
from datamodules.synthetic.writing import write_video
from datamodules.video.live import LiveStream, StreamLost
from datamodules.video.opening import DecodeError
from datamodules.video.streaming import FrameStream, stream_windows

FPS = T = 8
SIDE = 48
SIZE = {"num_frames": T, "image_size": SIDE, "short_side": SIDE}
EACH = {**SIZE, "period": 1 / FPS}  # every frame is a sample
HELD_BACK = 4
"""Frames on their way at most: libav waits for the end of a packet and of a picture, and the last one is on display."""
TO_OPEN = 3 * FPS  # libav looks at a second of a stream


def server_class():
    path = Path(__file__).parents[2] / "stream_server.py"
    spec = importlib.util.spec_from_file_location("stream_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StreamServer


StreamServer = server_class()


def picture(number):
    """uint8 (48, 48, 3): eight bars spell the number in binary."""
    bits = np.array([number >> bit & 1 for bit in range(8)], dtype=np.uint8)
    return np.broadcast_to((255 * bits).repeat(SIDE // 8)[None, :, None], (SIDE, SIDE, 3)).copy()


def pictures(start=0):
    return map(picture, range(start, 256))


def numbers(window) -> list[int]:
    """Of the frames that a window shows."""
    assert window.video.shape == (3, T, SIDE, SIDE) and window.video.dtype == torch.uint8
    middles = window.video.float().mean(0)[:, SIDE // 2, SIDE // 16 :: SIDE // 8] > 127
    return [sum(int(on) << bit for bit, on in enumerate(row)) for row in middles]


def until(stream, samples):
    """Wait until the stream has been read so far."""
    while stream.sampled < samples:
        assert not stream._done
        time.sleep(0.002)


def test_a_slow_reader_gets_the_newest_window_each_time():
    """It takes a window and a quarter each time: what it is told is never two windows old, however long it goes on."""
    slow = 10
    with StreamServer(pictures(), FPS) as server:
        server.release(TO_OPEN)
        released, seen = TO_OPEN, set()
        with LiveStream(server.url, reconnect=0) as stream:
            assert stream.fps == FPS and stream.name == server.url
            for window in islice(stream.windows(**EACH, step=4), 12):
                shown = numbers(window)
                assert shown == list(range(shown[0], shown[0] + T))
                assert window.end == pytest.approx((shown[-1] + 1) / FPS)
                assert window.start == pytest.approx(shown[0] / FPS)
                if seen:
                    assert shown[-1] + 1 >= released - HELD_BACK  # all that there was
                seen |= set(shown)
                assert stream.dropped == shown[-1] + 1 - len(seen)
                server.release(slow)
                released += slow
                until(stream, released - HELD_BACK)
                if len(seen) > T:  # the first one has all of the opening behind it
                    assert stream.seconds - window.end < 2 * T / FPS
        assert 0 < stream.dropped_share < 0.5


def test_a_quick_reader_misses_nothing():
    with StreamServer(pictures(), FPS) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        server.release(200)
        with LiveStream(server.url, reconnect=0) as stream:
            windows, seen = stream.windows(**EACH, step=2), []
            first = next(windows)
            released, begin = 200, numbers(first)[0]
            until(stream, released - HELD_BACK)  # and has missed a good deal so far
            numbers(next(windows))
            missed = stream.dropped
            for _ in range(5):
                server.release(5)
                released += 5
                until(stream, released - HELD_BACK)
                seen += numbers(next(windows))
            assert stream.dropped == missed and begin >= 0
            assert sorted(set(seen)) == list(range(min(seen), max(seen) + 1))


def test_samples_are_what_is_on_display_in_the_middle_of_a_period():
    """As in a file: with the same windows."""
    with StreamServer(pictures(), FPS) as server:
        server.release(300)  # ends with number 255
        with LiveStream(server.url, reconnect=0) as stream:
            *_, last = stream.windows(**SIZE, period=0.375, step=8)
    # Sample k is on display at 0.375 (k + 1/2) seconds: frame 3 k + 1.
    shown = numbers(last)
    assert shown == list(range(shown[0], shown[0] + 3 * T, 3)) and shown[0] % 3 == 1
    assert last.end == pytest.approx((shown[-1] + 2) / FPS) and stream.sampled * 3 >= 252


def test_a_stream_that_breaks_off_is_found_again():
    with StreamServer(pictures(), FPS) as server:
        server.release(TO_OPEN)
        with LiveStream(server.url, reconnect=600) as stream:
            windows = stream.windows(**EACH, step=1)
            before = next(windows)
            until(stream, TO_OPEN - HELD_BACK)
            reached = stream.seconds
            server.hang_up()
            server.release(3)  # which are lost, and tell the server
            with pytest.warns(StreamLost, match=r"(has ended|broken off).*looking for it for 600 s"):
                server.release(2 * TO_OPEN)
                found = [next(windows)]
                while numbers(found[-1])[0] < TO_OPEN:
                    found.append(next(windows))
            assert server.connections == 2
    for window in (before, *found):
        assert numbers(window) == list(range(numbers(window)[0], numbers(window)[0] + T)), "a window over the gap"
    assert found[-1].start >= reached


def test_a_sender_that_is_started_anew_is_found_again():
    with StreamServer(pictures(), FPS) as server:
        server.release(TO_OPEN)
        stream = LiveStream(server.url, reconnect=600)
        windows = stream.windows(**EACH, step=1)
        next(windows)
    with stream, pytest.warns(StreamLost), StreamServer(pictures(100), FPS, port=server.port) as again:
        again.release(TO_OPEN)
        while min(numbers(window := next(windows))) < 100:
            pass
        assert window.end > T / FPS


def test_one_that_stays_away_is_given_up():
    """A hundred times as fast as the clock on the wall."""
    with StreamServer(pictures(), FPS) as server:
        server.release(TO_OPEN)
        stream = LiveStream(server.url, reconnect=90, clock=lambda: 100 * time.monotonic())
        windows = stream.windows(**EACH, step=1)
        next(windows)
    with stream, pytest.warns(StreamLost):
        with pytest.raises(DecodeError, match=r"is not back after 90 s; check that it runs\.$"):
            list(windows)
        stream._thread.join()


def test_without_reconnecting_the_end_is_the_end():
    with StreamServer(pictures(250), FPS) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        server.release(10)
        with LiveStream(server.url, reconnect=0) as stream:
            (only,) = stream.windows(**EACH, step=8)
    assert numbers(only) == [250, 251, 251, 252, 253, 254, 254, 255]  # spread over the places


def test_a_file_at_its_own_speed(tmp_path):
    write_video(tmp_path / "a.mp4", np.stack(list(map(picture, range(20)))), FPS)
    before = time.monotonic()
    with LiveStream(tmp_path / "a.mp4") as stream:
        windows = list(stream.windows(**EACH, step=4))
    assert stream.name == str(tmp_path / "a.mp4") and stream.sampled == 20
    assert all(window.arrived - before >= window.end for window in windows)  # not before it is shown
    assert numbers(windows[-1]) == list(range(12, 20)) and windows[-1].end == pytest.approx(20 / FPS)
    starts = [numbers(window)[0] for window in windows]
    assert starts == sorted(set(starts))


def test_a_file_shorter_than_a_window(tmp_path):
    write_video(tmp_path / "a.mp4", np.stack(list(map(picture, range(3)))), FPS)
    with LiveStream(tmp_path / "a.mp4") as stream:
        (found,) = stream.windows(**EACH, step=4)
    with FrameStream(tmp_path / "a.mp4") as file:
        (expected,) = stream_windows(file, **EACH, step=4)
    assert torch.equal(found.video, expected.video) and (found.start, found.end) == (0.0, expected.end)


def test_wrong_sources_and_numbers(tmp_path):
    with pytest.raises(DecodeError, match="does not exist"):
        LiveStream(tmp_path / "none.mp4")
    with pytest.raises(DecodeError, match="has the scheme 'rtmp'"):
        LiveStream("rtmp://127.0.0.1/live")
    write_video(tmp_path / "a.mp4", np.stack(list(map(picture, range(4)))), FPS)
    with LiveStream(tmp_path / "a.mp4") as stream, pytest.raises(DataError, match=r"step 9 in 1 \.\. num_frames = 8"):
        next(stream.windows(**EACH, step=9))


def test_closing_ends_the_thread():
    with StreamServer(pictures(), FPS) as server:
        server.release(TO_OPEN)
        with LiveStream(server.url) as stream:
            next(stream.windows(**EACH, step=1))
        stream._thread.join()
