import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from datamodules import augment
from datamodules.augment import (
    AUTO_AUGMENT_POLICIES,
    TrainTransform,
    auto_augment,
    multi_scale_crop,
    rand_augment,
    random_resized_crop,
)


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


def coordinates(height, width, frames=3):
    """Red is the column and green the row, so that an output tells which box it came from."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).to(torch.uint8).expand(frames, 3, height, width).clone()


def test_random_resized_crop_boxes():
    height, width = 120, 200
    areas, ratios, centres = [], [], []
    for _ in range(600):
        crop = random_resized_crop(coordinates(height, width), 64)
        assert crop.shape == (3, 3, 64, 64)
        assert torch.equal(crop[0], crop[1]) and torch.equal(crop[0], crop[2])
        crop = crop[0].float()
        # With pixel centres, 64 output columns span box width * 63 / 64.
        box_width = float(crop[0, 0, -1] - crop[0, 0, 0]) * 64 / 63
        box_height = float(crop[1, -1, 0] - crop[1, 0, 0]) * 64 / 63
        areas.append(box_width * box_height / (height * width))
        ratios.append(box_width / box_height)
        centres.append(float(crop[0, 0].mean()))
    areas, ratios = np.array(areas), np.array(ratios)
    assert 0.07 < areas.min() < 0.12 and areas.max() <= 1.01
    assert ratios.min() > 0.70 and ratios.max() < 1.40
    # The ratio is log-uniform (boxes that do not fit are drawn again, which spares the small ones).
    small = np.log(ratios[areas < 0.4])
    assert abs(small.mean()) < 0.05 and abs(small.std() - np.log(16 / 9) / np.sqrt(12)) < 0.03
    assert abs(np.mean(centres) - width / 2) < 6


def test_multi_scale_crop_boxes_are_the_published_ones():
    """Sides of 240, 210, 180 and 158 px of a short side of 240 (158 is 0.66 x 240, cut), neighbours at most, in 13
    places."""
    sides, seen = [240, 210, 180, 158], set()
    expected = {(h, w) for i, h in enumerate(sides) for w in sides[max(i - 1, 0) : i + 2]}
    for _ in range(900):
        box = coordinates(240, 250, frames=1)
        crop = multi_scale_crop(box, 112)[0].float()
        # The columns and the rows of the box, as 112 pixel values: their slope tells its size, their mean its place.
        (width, left), (height, top) = (
            (side := min(sides, key=lambda side: abs(side - (line[60:].mean() - line[:52].mean()) * 112 / 60)),
             line.mean() - (side - 1) / 2)
            for line in (crop[0].mean(0), crop[1].mean(1))
        )  # fmt: skip
        steps = [(250 - width) // 4, (240 - height) // 4]
        places = tuple(round(float(at) / step) if step else -1 for at, step in zip((left, top), steps, strict=True))
        seen.add(((height, width), places))
    assert {pair for pair, _ in seen} == expected
    corners = {(x, y) for x in (0, 2, 4) for y in (0, 2, 4)} | {(x, y) for x in (1, 3) for y in (1, 3)}
    assert {place for (height, _), place in seen if height < 240} == corners


def test_multi_scale_crop_takes_a_side_that_fits_and_resizes_as_pil():
    video = noise(226, 226, frames=1)  # the whole frame is less than 3 px off: cut, not resized
    crops = [multi_scale_crop(video, 224) for _ in range(60)]
    assert any(torch.equal(crop, video[..., :224, :224]) for crop in crops)  # (226 - 224) // 4 = 0
    video = noise(223, 300, frames=1)  # and a frame smaller than that is not cut beyond its edge
    assert all(multi_scale_crop(video, 224).shape[-2:] == (224, 224) for _ in range(20))
    video = smooth(100, 100, frames=1)
    boxes = [(side, x * ((100 - side) // 4), y * ((100 - side) // 4)) for side in (100, 87, 75, 66)
             for x in range(5) for y in range(5)]  # fmt: skip
    found = 0
    for _ in range(30):
        crop = multi_scale_crop(video, 40)[0].permute(1, 2, 0).numpy().astype(int)
        pil = Image.fromarray(video[0].permute(1, 2, 0).numpy())
        candidates = [pil.resize((40, 40), Image.BILINEAR, (x, y, x + side, y + side)) for side, x, y in boxes]
        found += min(np.abs(np.asarray(candidate).astype(int) - crop).max() for candidate in candidates) <= 1
    assert found >= 6  # the square ones among them, 4 of 10


def test_random_resized_crop_falls_back_to_the_middle():
    crop = random_resized_crop(coordinates(20, 250), 30, area=(0.9, 1.0))[0].float()
    middle = float(crop[0].mean())
    assert abs(middle - 124.5) < 1.5 and crop[0].max() - crop[0].min() < 20 * 4 / 3 + 1


def test_train_transform():
    video = coordinates(60, 60)
    flips = 0
    for _ in range(300):
        red = TrainTransform(30)(video)[0, 0, 0].int()
        flips += bool(red[0] > red[-1])
    assert 110 < flips < 190
    for _ in range(30):
        red = TrainTransform(30, flip=0.0)(video)[0, 0, 0].int()
        assert red[0] <= red[-1]
    assert TrainTransform(30, num_ops=4)(video).shape == (3, 3, 30, 30)


@pytest.mark.parametrize("crop_first", [False, True])
def test_order_of_crop_and_rand_augment(crop_first):
    video, moved = smooth(60, 80), 0
    for seed in range(10):
        torch.manual_seed(seed)
        done = TrainTransform(24, num_ops=2, crop_first=crop_first)(video)
        torch.manual_seed(seed)
        wanted = video if crop_first else rand_augment(video, 2, 7.0, 0.5)
        wanted = random_resized_crop(wanted, 24)
        wanted = wanted.flip(-1) if torch.rand(()).item() < 0.5 else wanted
        wanted = rand_augment(wanted, 2, 7.0, 0.5) if crop_first else wanted
        assert torch.equal(done, wanted)
        torch.manual_seed(seed)
        moved += not torch.equal(done, TrainTransform(24, num_ops=2, crop_first=not crop_first)(video))
    assert moved > 5


def test_torch_generator_repeats_the_transform():
    transform = TrainTransform(24, num_ops=4)
    torch.manual_seed(5)
    first = transform(smooth(40, 50))
    torch.manual_seed(5)
    assert torch.equal(transform(smooth(40, 50)), first)
    assert not torch.equal(transform(smooth(40, 50)), first)


# RandAugment, beside PIL, which the recipes were tuned with --------------------------------------------------------


def pil_op(name, image, strength, sign):
    """The operation as PIL programs write it, `strength` in 0..1 and `sign` of the random direction."""
    width, height = image.size
    grey = (128, 128, 128)

    def shift(*coefficients):
        return image.transform(image.size, Image.AFFINE, coefficients, resample=Image.BILINEAR, fillcolor=grey)

    enhancers = {
        "ColorIncreasing": ImageEnhance.Color,
        "ContrastIncreasing": ImageEnhance.Contrast,
        "BrightnessIncreasing": ImageEnhance.Brightness,
        "SharpnessIncreasing": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + sign * 0.9 * strength)
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(sign * 30 * strength, resample=Image.BILINEAR, fillcolor=grey),
        # PIL of today refuses to keep 0 bits, which the recipe can ask for.
        "PosterizeIncreasing": lambda: image.point([i & ~(2 ** (4 + int(4 * strength)) - 1) for i in range(256)] * 3),
        "SolarizeIncreasing": lambda: ImageOps.solarize(image, 256 - int(256 * strength)),
        "SolarizeAdd": lambda: image.point(
            [min(255, i + int(110 * strength)) if i < 128 else i for i in range(256)] * 3
        ),
        "ShearX": lambda: shift(1, sign * 0.3 * strength, 0, 0, 1, 0),
        "ShearY": lambda: shift(1, 0, 0, sign * 0.3 * strength, 1, 0),
        "TranslateXRel": lambda: shift(1, 0, sign * 0.45 * strength * width, 0, 1, 0),
        "TranslateYRel": lambda: shift(1, 0, 0, 0, 1, sign * 0.45 * strength * height),
    }[name]()


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", augment._OPERATIONS)
def test_operation_equals_pil(name, strength):
    video = smooth(60, 80)
    got = augment._OPERATIONS[name](video, strength)
    assert got.shape == video.shape and got.dtype == torch.uint8

    def difference(sign):
        """Share of pixels that differ by more than two levels (edges of the fill may move by a pixel)."""
        far = 0.0
        for frame, original in zip(got, video, strict=True):
            pil = pil_op(name, Image.fromarray(original.permute(1, 2, 0).numpy()), strength, sign)
            gap = np.abs(np.asarray(pil).astype(int) - frame.permute(1, 2, 0).numpy())
            far = max(far, float((gap > 2).mean()))
        return far

    assert min(difference(1), difference(-1)) < 0.03


def test_there_are_fifteen_operations():
    assert len(augment._OPERATIONS) == 15


@pytest.mark.parametrize("name", augment._OPERATIONS)
def test_operation_at_strength_zero(name):
    video = smooth(40, 40)
    got = augment._OPERATIONS[name](video, 0.0)
    if name not in ("AutoContrast", "Equalize", "Invert", "PosterizeIncreasing"):
        assert (got.int() - video.int()).abs().max() <= 1


def test_rand_augment_treats_all_frames_alike():
    frame = smooth(40, 50, frames=1)
    for _ in range(30):
        out = rand_augment(frame.expand(4, -1, -1, -1), num_ops=4)
        assert all(torch.equal(out[0], out[i]) for i in range(1, 4))


def test_rand_augment_counts_and_magnitudes(monkeypatch):
    calls = []
    spies = {
        name: lambda video, strength, name=name: calls.append((name, strength)) or video for name in augment._OPERATIONS
    }
    monkeypatch.setattr(augment, "_OPERATIONS", spies)
    video = noise(8, 8)
    for _ in range(1000):
        rand_augment(video, num_ops=4, magnitude=7, magnitude_std=0.5)
    assert abs(len(calls) - 2000) < 150  # each of the 4 draws is applied with probability 0.5
    names, counts = np.unique([name for name, _ in calls], return_counts=True)
    assert len(names) == 15 and counts.min() > 80
    strengths = np.array([strength for _, strength in calls])
    assert abs(strengths.mean() - 0.7) < 0.01 and abs(strengths.std() - 0.05) < 0.005
    calls.clear()
    rand_augment(video, num_ops=50, magnitude=9.9, magnitude_std=3)
    assert all(0 <= strength <= 1 for _, strength in calls)


# AutoAugment ---------------------------------------------------------------------------------------------------------

# timm's `v0`, one pair a line: operation, probability in tenths, magnitude, twice.
V0 = """
    Equalize 8 1  ShearY 8 4      | Color 4 9  Equalize 6 3         | Color 4 1  Rotate 6 8
    Solarize 8 3  Equalize 4 7    | Solarize 4 2  Solarize 6 2      | Color 2 0  Equalize 8 8
    Equalize 4 8  SolarizeAdd 8 3 | ShearX 2 9  Rotate 6 8          | Color 6 1  Equalize 10 2
    Invert 4 9  Rotate 6 0        | Equalize 10 9  ShearY 6 3       | Color 4 7  Equalize 6 0
    Posterize 4 6  AutoContrast 4 7 | Solarize 6 8  Color 6 9       | Solarize 2 4  Rotate 8 9
    Rotate 10 7  TranslateYRel 8 9 | ShearX 0 0  Solarize 8 4       | ShearY 8 0  Color 6 4
    Color 10 0  Rotate 6 2        | Equalize 8 4  Equalize 0 8      | Equalize 10 4  AutoContrast 6 2
    ShearY 4 7  SolarizeAdd 6 7   | Posterize 8 2  Solarize 6 10    | Solarize 6 8  Equalize 6 1
    Color 8 6  Rotate 4 5
"""


def test_the_policy_is_timms_v0():
    expected = []
    for pair in V0.replace("\n", "|").split("|"):
        if words := pair.split():
            one, two = words[:3], words[3:]
            expected.append(tuple((name, int(tenths) / 10, int(level)) for name, tenths, level in (one, two)))
    assert len(expected) == 25
    assert list(AUTO_AUGMENT_POLICIES["v0"]) == expected


@pytest.mark.parametrize("level", range(11))
def test_level_operations_equal_pil(level):
    """The three whose magnitude is a level; the others are those of RandAugment, compared above."""
    video = smooth(60, 80)
    for original, frame in zip(video, range(len(video)), strict=True):
        image = Image.fromarray(original.permute(1, 2, 0).numpy())
        kept = int(level / 10 * 4)  # bits
        wanted = {
            "Posterize": image.point([i >> (8 - kept) << (8 - kept) for i in range(256)] * 3),
            "Solarize": ImageOps.solarize(image, int(level / 10 * 256)),
            "Color": ImageEnhance.Color(image).enhance(level / 10 * 1.8 + 0.1),
        }
        for name, pil in wanted.items():
            got = augment._LEVEL_OPERATIONS[name](video, level / 10)[frame].permute(1, 2, 0).numpy()
            assert np.abs(np.asarray(pil).astype(int) - got).max() <= (2 if name == "Color" else 0), name


def test_auto_augment_draws_pairs_evenly_and_applies_each_with_its_probability(monkeypatch):
    calls = []
    for table in ("_OPERATIONS", "_LEVEL_OPERATIONS"):
        spies = {
            name: lambda video, strength, name=name: calls.append((name, round(strength * 10))) or video
            for name in getattr(augment, table)
        }
        monkeypatch.setattr(augment, table, spies)
    video, draws = noise(4, 4), 10_000
    expected = {}
    for pair in AUTO_AUGMENT_POLICIES["v0"]:
        for name, probability, level in pair:
            expected[name, level] = expected.get((name, level), 0) + probability / 25
    for _ in range(draws):
        auto_augment(video)
    counts = {key: calls.count(key) / draws for key in {*calls, *expected}}
    assert counts == pytest.approx(expected | {key: 0 for key in counts if key not in expected}, abs=0.01)
    assert counts.get(("ShearX", 0), 0) == 0


def test_auto_augment_treats_all_frames_alike_and_repeats_with_the_generator():
    clip = smooth(40, 50, frames=1).expand(4, -1, -1, -1)
    changed = 0
    for seed in range(40):
        torch.manual_seed(seed)
        done = TrainTransform(24, policy="v0")(clip)
        assert all(torch.equal(done[0], done[i]) for i in range(1, 4))
        torch.manual_seed(seed)
        wanted = random_resized_crop(auto_augment(clip), 24)
        assert torch.equal(done, wanted.flip(-1) if torch.rand(()).item() < 0.5 else wanted)
        torch.manual_seed(seed)
        changed += not torch.equal(auto_augment(clip), clip)
    assert changed > 25
