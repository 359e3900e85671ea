"""Each rule is compared with its definition written out frame by frame (docs/protocol.md, section 2)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.video.sampling import clip_indices, range_in

LENGTHS = st.integers(1, 400)
CLIPS = st.integers(1, 40)


def half_even(x):
    """Rounding with ties to the even neighbour, in integers (as numpy.round, and Python's own round)."""
    low = int(np.floor(x))
    rest = x - low
    if rest == 0.5:
        return low if low % 2 == 0 else low + 1
    return low if rest < 0.5 else low + 1


def slow_sparse(n, t, offset):
    s = (n - 1) / t
    return [min(half_even(s * i) + int(offset(s)), n - 1) for i in range(t)]


@given(LENGTHS, CLIPS)
def test_sparse_val(n, t):
    got = clip_indices(n, t, sampling="sparse", mode="val")
    assert got.dtype == np.int64 and got.tolist() == slow_sparse(n, t, lambda s: s / 2)


@given(LENGTHS, CLIPS, st.integers(1, 10), st.data())
def test_sparse_test(n, t, num_clips, data):
    k = data.draw(st.integers(0, num_clips - 1))
    got = clip_indices(n, t, sampling="sparse", mode="test", clip=k, num_clips=num_clips)
    assert got.tolist() == slow_sparse(n, t, lambda s: s / (num_clips + 1) * (k + 1))


@given(LENGTHS, CLIPS, st.integers(0, 1000))
def test_intervals_share_out_all_frames(n, t, seed):
    got = clip_indices(n, t, sampling="intervals", mode="test").tolist()
    count = min(t, n)
    edges = [int(value) for value in np.linspace(0, n, count + 1)]
    expected = [(start + end - 1) // 2 for start, end in itertools.pairwise(edges)]
    assert got == expected + expected[-1:] * (t - count)
    assert got == clip_indices(n, t, sampling="intervals", mode="val").tolist()
    drawn = clip_indices(n, t, sampling="intervals", mode="train", generator=torch.Generator().manual_seed(seed))
    assert all(start <= place < end for place, (start, end) in zip(drawn, itertools.pairwise(edges), strict=False))
    for k in range(3):
        one = clip_indices(n, t, sampling="intervals", mode="test", clip=k, num_clips=3)
        assert all(start <= place < end for place, (start, end) in zip(one, itertools.pairwise(edges), strict=False))


def test_intervals_by_hand():
    # n = 21, T = 8: edges 0 2 5 7 10 13 15 18 21
    assert clip_indices(21, 8, sampling="intervals", mode="test").tolist() == [0, 3, 5, 8, 11, 13, 16, 19]
    assert clip_indices(3, 5, sampling="intervals", mode="test").tolist() == [0, 1, 2, 2, 2]


@given(LENGTHS, CLIPS, st.integers(0, 1000), st.integers(0, 500))
def test_middles_are_those_of_the_published_pipeline(n, t, seed, start):
    """AVION samples frames start .. start + n of a whole video (zhaoyue-zephyrus/AVION, avion/data/clip_dataset.py)."""
    published, at_start = (
        np.convolve(np.linspace(first, first + n, t + 1), [0.5, 0.5], mode="valid") for first in (start, 0)
    )
    for mode in ("val", "test"):
        middles = clip_indices(n, t, sampling="middles", mode=mode)
        assert middles.tolist() == at_start.astype(int).tolist()
        apart = np.abs(middles - (published.astype(int) - start))
        assert apart.max() <= 1 and (np.abs(published - published.round())[apart > 0] < 1e-9).all()  # rounded otherwise
    drawn = clip_indices(n, t, sampling="middles", mode="train", generator=torch.Generator().manual_seed(seed))
    uniform = torch.rand(t, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    expected = (published - start + (uniform - 0.5) * (n - 1) / t).astype(int)
    assert abs(drawn - expected).max() <= 1 and (drawn == expected).mean() >= 1 - 1 / t  # a place just below a frame
    assert (np.diff(drawn) >= 0).all() and drawn[0] >= 0 and drawn[-1] < n
    for k in range(3):
        one = clip_indices(n, t, sampling="middles", mode="test", clip=k, num_clips=3)
        assert all(i * n / t - 1 < place < (i + 1) * n / t for i, place in enumerate(one))


def test_middles_by_hand():
    # n = 40, T = 16: parts of 2.5 frames, middles 1.25, 3.75, 6.25, ...
    assert clip_indices(40, 16, sampling="middles", mode="val").tolist() == [
        1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]  # fmt: skip
    assert clip_indices(3, 4, sampling="middles", mode="test").tolist() == [0, 1, 1, 2]
    # n = 160: parts of 10, middles 5, 15, ..; half a part of 159 / 16 either way, and every place in between.
    generator = torch.Generator().manual_seed(0)
    drawn = np.stack([clip_indices(160, 16, sampling="middles", mode="train", generator=generator) for _ in range(400)])
    assert set((drawn[:, 3] - 35).tolist()) == set(range(-5, 5))
    assert abs(drawn.mean(axis=0) - (np.arange(16) * 10 + 4.5)).max() < 0.6


def test_sparse_by_hand():
    # n = 21, T = 8: s = 2.5, edges 0 2.5 5 7.5 10 12.5 15 17.5 -> 0 2 5 8 10 12 15 18 (ties to even)
    assert clip_indices(21, 8, sampling="sparse", mode="val").tolist() == [1, 3, 6, 9, 11, 13, 16, 19]
    assert clip_indices(21, 8, sampling="sparse", mode="test", clip=3, num_clips=4).tolist() == [
        2, 4, 7, 10, 12, 14, 17, 20]  # fmt: skip
    assert clip_indices(3, 8, sampling="sparse", mode="val").tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@given(LENGTHS, CLIPS, st.integers(0, 1000))
def test_sparse_train_stays_in_its_interval(n, t, seed):
    got = clip_indices(n, t, sampling="sparse", mode="train", generator=torch.Generator().manual_seed(seed))
    s = (n - 1) / t
    for i, position in enumerate(got):
        assert half_even(s * i) <= position <= min(half_even(s * (i + 1)), n - 1)


def test_sparse_train_is_uniform_with_both_ends():
    generator = torch.Generator().manual_seed(0)
    draws = np.stack(
        [clip_indices(17, 4, sampling="sparse", mode="train", generator=generator) for _ in range(5000)]
    )  # s = 4: intervals 0..4, 4..8, 8..12, 12..16
    for i in range(4):
        values, counts = np.unique(draws[:, i], return_counts=True)
        assert values.tolist() == list(range(4 * i, 4 * i + 5))
        assert np.abs(counts / 5000 - 0.2).max() < 0.03
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.05


@given(LENGTHS, CLIPS)
def test_ssv2_val_and_test(n, t):
    tick = n / t
    starts, middles = [int(tick * i) for i in range(t)], [int(tick / 2 + tick * i) for i in range(t)]
    assert clip_indices(n, t, sampling="ssv2", mode="val").tolist() == middles
    assert clip_indices(n, t, sampling="ssv2", mode="test").tolist() == middles
    union = sorted(starts + middles)
    for k in range(2):
        got = clip_indices(n, t, sampling="ssv2", mode="test", clip=k, num_clips=2)
        assert got.tolist() == [union[j] for j in range(2 * t) if j % 2 == k]
    if n >= 2 * t:  # then the two alternate
        assert clip_indices(n, t, sampling="ssv2", mode="test", clip=0, num_clips=2).tolist() == starts


@given(LENGTHS, CLIPS, st.integers(0, 1000))
def test_ssv2_train(n, t, seed):
    got = clip_indices(n, t, sampling="ssv2", mode="train", generator=torch.Generator().manual_seed(seed))
    a = n // t
    if a == 0:
        assert got.tolist() == [0] * t
    else:
        assert all(i * a <= position <= i * a + a - 1 for i, position in enumerate(got))


@given(LENGTHS, CLIPS, st.integers(1, 16), st.integers(1, 10), st.integers(0, 1000))
def test_dense(n, t, stride, num_clips, seed):
    span = (t - 1) * stride + 1

    def frames(start):
        return [min(start + i * stride, n - 1) for i in range(t)]

    last = max(n - span, 0)
    got = clip_indices(n, t, sampling="dense", mode="val", frame_stride=stride)
    assert got.tolist() == frames(last // 2)
    starts = []
    for k in range(num_clips):
        got = clip_indices(n, t, sampling="dense", mode="test", frame_stride=stride, clip=k, num_clips=num_clips)
        start = int(k * last / (num_clips - 1)) if num_clips > 1 else last // 2
        assert got.tolist() == frames(start)
        starts.append(start)
    if num_clips > 1:
        assert starts[0] == 0 and starts[-1] == last
    generator = torch.Generator().manual_seed(seed)
    got = clip_indices(n, t, sampling="dense", mode="train", frame_stride=stride, generator=generator)
    assert 0 <= got[0] <= last and got.tolist() == frames(int(got[0]))


def test_dense_train_reaches_every_start():
    starts = {int(clip_indices(12, 3, sampling="dense", mode="train", frame_stride=2)[0]) for _ in range(400)}
    assert starts == set(range(8))


@pytest.mark.parametrize("sampling", ["sparse", "dense", "ssv2"])
@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_one_frame(sampling, mode):
    assert clip_indices(1, 5, sampling=sampling, mode=mode).tolist() == [0] * 5
    assert clip_indices(1, 1, sampling=sampling, mode=mode).tolist() == [0]


def test_torch_seed_repeats_the_draw():
    torch.manual_seed(3)
    first = clip_indices(300, 8, sampling="sparse", mode="train")
    torch.manual_seed(3)
    assert (clip_indices(300, 8, sampling="sparse", mode="train") == first).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_video_frames": 0}, "at least 1, got 0, 8 and 4"),
        ({"num_frames": 0}, "at least 1"),
        ({"frame_stride": 0}, "at least 1"),
        ({"mode": "eval"}, "mode has to be 'train', 'val' or 'test', got 'eval'"),
        ({"sampling": "uniform"}, "sampling has to be one of sparse, dense, ssv2, intervals, middles, got 'uniform'"),
        ({"clip": 2, "num_clips": 2}, r"clip has to be in 0 \.\. num_clips - 1 = 1, got 2"),
        ({"sampling": "ssv2", "mode": "test", "num_clips": 4}, "one or two test clips, got num_clips=4; use 2"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"num_video_frames": 100, "num_frames": 8, "sampling": "sparse", "mode": "test", **change}
    with pytest.raises(ValueError, match=message):
        clip_indices(**arguments)


def test_what_lies_in_a_span():
    shown = np.arange(100) / 10
    for stop in (3.0, 3.04, 3.0999):
        assert range_in(shown, (1.0, stop)) == (10, 30)  # never later than allowed
    assert range_in(shown, (-2.0, 0.25)) == (0, 2)
    assert range_in(shown, (-2.0, -0.1)) is None
    assert range_in(shown, (50, 60)) == (99, 99)
    assert range_in(shown, (1.04, 1.06)) == range_in(shown, (1.04, 1.06), displayed=False) == (10, 10)
    assert range_in(shown, (1.05, 1.3)) == (10, 13)
    assert range_in(shown, (1.05, 1.3), displayed=False) == (11, 13)
