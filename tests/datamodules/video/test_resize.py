import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video.resize import center_crop, crop_views, resize_short_side, squeeze


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def noise(height, width, frames=2):
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8)


def smooth(height, width, frames=2):
    """Without sharp edges, so that interpolations of different exactness agree."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    waves = [torch.sin(x * (c + 1) + t) * torch.cos(y + c) for t in range(frames) for c in range(3)]
    return (torch.stack(waves).view(frames, 3, height, width) * 120 + 128).to(torch.uint8)


# Resizing and cropping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((256, 340), 224, (224, 297)), ((340, 256), 224, (297, 224)), ((50, 50), 24, (24, 24)), ((48, 64), 96, (96, 128))],
)
def test_resize_truncates_the_long_side(size, short_side, expected):
    for interpolation in ("bilinear", "bicubic"):
        assert resize_short_side(noise(*size), short_side, interpolation).shape == (2, 3, *expected)


def cubic(distance: np.ndarray) -> np.ndarray:
    """Weights of cubic convolution with a = -0.75 (Keys, 1981)."""
    d = np.abs(distance)
    near = 1.25 * d**3 - 2.25 * d**2 + 1
    return np.where(d <= 1, near, np.where(d < 2, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4), 0))


def test_plain_bicubic_looks_at_sixteen_pixels_however_much_it_shrinks():
    video = noise(60, 40) // 2 + 64  # so that nothing is cut off between the two passes

    def along(size, target):  # (target, size), beyond the edge the last pixel counts
        places = (np.arange(target) + 0.5) * size / target - 0.5
        weights = np.zeros((target, size))
        for i, place in enumerate(places):
            for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                weights[i, np.clip(k, 0, size - 1)] += cubic(place - k)
        return weights

    found = squeeze(video, 16, "bicubic-plain")
    expected = np.clip(along(60, 16) @ video.numpy().astype(float) @ along(40, 16).T, 0, 255)
    assert found.shape == (2, 3, 16, 16) and found.dtype == torch.uint8
    assert np.abs(found.numpy() - expected).max() <= 1.5  # rounded twice
    assert (found.int() - squeeze(video, 16, "bicubic").int()).abs().max() > 20  # which averages over the area


def test_bilinear_is_the_plain_four_pixel_rule():
    video = noise(30, 45)
    got = resize_short_side(video, 20)
    source = video.double().numpy()
    for y in range(20):
        for x in range(30):
            # pixel centres at + 0.5, no averaging over the area (as OpenCV's bilinear resize)
            v, u = max((y + 0.5) * 1.5 - 0.5, 0), max((x + 0.5) * 1.5 - 0.5, 0)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, 29), min(x0 + 1, 44)
            dy, dx = v - y0, u - x0
            top = source[..., y0, x0] * (1 - dx) + source[..., y0, x1] * dx
            bottom = source[..., y1, x0] * (1 - dx) + source[..., y1, x1] * dx
            assert np.abs(got[..., y, x].numpy() - (top * (1 - dy) + bottom * dy)).max() <= 1


def test_bicubic_is_that_of_pil():
    video = noise(50, 70)
    got = resize_short_side(video, 25, "bicubic")
    for frame, original in zip(got, video, strict=True):
        pil = Image.fromarray(original.permute(1, 2, 0).numpy()).resize((35, 25), Image.BICUBIC)
        assert np.abs(np.asarray(pil).astype(int) - frame.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(24, 33), (33, 24), (24, 24), (25, 100)])
def test_three_crops_along_the_long_side(height, width):
    video = noise(height, width)
    short, long = min(height, width), max(height, width)
    crops = crop_views(video, short, 3)
    for c in range(3):
        start = int(c * (long - short) / 2)
        expected = video[..., start : start + short] if width >= height else video[:, :, start : start + short]
        assert torch.equal(crops[c], expected)


def test_center_crop():
    video = noise(21, 34)
    assert torch.equal(center_crop(video, 10), video[..., 6:16, 12:22])  # (21 - 10) / 2 = 5.5 rounds to 6
    with pytest.raises(ValueError, match="cannot crop 22 pixels from a video of 34 x 21"):
        center_crop(video, 22)
