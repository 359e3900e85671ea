import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import DataError
from datamodules.video.sampling import clip_indices
from datamodules.video.views import load_views

FORMAT = {"image_size": 48, "short_side": 48, "sampling": "sparse", "frame_stride": 2, "interpolation": "bilinear"}


@pytest.mark.parametrize("sampling", ["sparse", "dense", "ssv2"])
def test_views_are_clip_major_crops_of_the_right_frames(tmp_path, make_video, decode_fully, sampling):
    path = make_video(tmp_path / "v.mp4", 33, width=100, height=48, options={"bf": "2"})
    full = decode_fully(path)
    views = load_views(path, num_frames=4, num_clips=2, num_crops=3, **FORMAT | {"sampling": sampling})
    assert views.video.shape == (6, 3, 4, 48, 48) and views.video.dtype == torch.uint8
    assert views.video.is_contiguous()
    for clip in range(2):
        indices = clip_indices(33, 4, sampling=sampling, mode="test", clip=clip, num_clips=2, frame_stride=2)
        assert views.indices[clip].tolist() == indices.tolist()
        np.testing.assert_allclose(views.seconds[clip], indices / 30, atol=1e-4)
        for crop, left in enumerate((0, 26, 52)):  # int(c (100 - 48) / 2)
            expected = full[indices][..., left : left + 48].transpose(0, 1)
            torch.testing.assert_close(views.video[clip * 3 + crop], expected, rtol=0, atol=0)


def test_single_view_is_the_middle(tmp_path, make_video, decode_fully):
    path = make_video(tmp_path / "v.mp4", 9, width=100, height=48)
    views = load_views(path, num_frames=3, **FORMAT)
    assert views.indices.tolist() == [clip_indices(9, 3, sampling="sparse", mode="val").tolist()]
    torch.testing.assert_close(
        views.video[0], decode_fully(path)[views.indices[0]][..., 26:74].transpose(0, 1), rtol=0, atol=0
    )


def test_squeezed_frames_are_seen_whole(tmp_path, make_video, decode_fully):
    path = make_video(tmp_path / "v.mp4", 9, width=100, height=48)
    views = load_views(path, num_frames=3, **FORMAT | {"resize": "squeeze", "image_size": 32, "short_side": 40})
    frames = decode_fully(path)[views.indices[0]].transpose(0, 1)
    assert views.video.shape == (1, 3, 3, 32, 32)
    # At pixel centres, every 100 / 32 across and 48 / 32 down: the mean of the nearest by their distance.
    y, x = ((torch.arange(32) + 0.5) * side / 32 - 0.5 for side in (48, 100))
    top, left = y.floor().long(), x.floor().long()
    below, right = (y - top)[:, None], x - left
    pixels = frames.float()
    rows = pixels[..., top, :] * (1 - below) + pixels[..., top + 1, :] * below
    expected = rows[..., left] * (1 - right) + rows[..., left + 1] * right
    assert (views.video[0] - expected).abs().max() <= 1
    with pytest.raises(ValueError, match=r"resize has to be one of crop, squeeze, got 'stretch'\."):
        load_views(path, num_frames=3, **FORMAT | {"resize": "stretch"})


def test_short_file_repeats_frames(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 2)
    views = load_views(path, num_frames=8, **FORMAT)
    assert set(views.indices[0].tolist()) <= {0, 1} and views.video.shape == (1, 3, 8, 48, 48)


def test_still_image_resized_and_cropped(tmp_path):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 30:60] = (250, 120, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    views = load_views(
        tmp_path / "a.png", num_frames=1, image_size=20, short_side=40, sampling="sparse", frame_stride=4,
        interpolation="bicubic", num_crops=3,
    )  # fmt: skip
    assert views.video.shape == (3, 3, 1, 20, 20) and views.seconds.tolist() == [[0.0]]
    means = views.video.float().mean((2, 3, 4))
    # After resizing, the coloured third is columns 20 .. 40 of 60; crops start at 0, 20 and 40.
    torch.testing.assert_close(means[1], torch.tensor([250.0, 120.0, 10.0]), rtol=0, atol=5)
    assert means[0].max() < 10 and means[2].max() < 10


def test_real_clip(shared):
    views = load_views(
        shared / "videos" / "arm_wrestling.mp4", num_frames=8, image_size=224, short_side=224, sampling="sparse",
        frame_stride=4, interpolation="bilinear", num_clips=4, num_crops=3,
    )  # fmt: skip
    assert views.video.shape == (12, 3, 8, 224, 224)
    assert (np.diff(views.seconds, axis=1) > 1).all() and views.seconds.max() < 10
    # The second third of the left crop is what the middle crop begins with: 340 x 256 -> 297 x 224, offset 36.
    torch.testing.assert_close(views.video[0, ..., 36:], views.video[1, ..., :188], rtol=0, atol=0)


def test_bad_arguments(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", 2)
    with pytest.raises(ValueError, match=r"cannot crop 48 pixels .* choose image_size <= short_side"):
        load_views(path, num_frames=2, **FORMAT | {"short_side": 40})
    with pytest.raises(ValueError, match="num_crops is 2; it has to be one of 1, 3"):
        load_views(path, num_frames=2, num_crops=2, **FORMAT)
    with pytest.raises(ValueError, match=r"interpolation has to be one of .*, bicubic-plain, got 'nearest'"):
        load_views(path, num_frames=2, **FORMAT | {"interpolation": "nearest"})


@pytest.mark.parametrize(("options", "message"), [
    ({"num_frames": 100_000}, "num_frames is 100000; it has to be a whole number, at least 1 and at most 10000"),
    ({"num_frames": 0}, "num_frames is 0"), ({"num_frames": 8, "num_clips": 10**9}, "num_clips is 1000000000"),
    ({"num_frames": 8, "image_size": 10**6}, "image_size is 1000000"),
    ({"num_frames": 10_000, "num_clips": 10_000, "num_crops": 3}, "30000 views of 10000 frames take .* GB; take fewer"),
    ({"num_frames": 64, "spans": [None] * 10**6}, "1000000 views of 64 frames take"),
])  # fmt: skip
def test_absurd_totals_are_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        load_views(tmp_path / "not-looked-for.mp4", **FORMAT | options)
