import math

import numpy as np
import pytest
import torch

from datamodules.mixing import MEAN, STD, BatchMixer, random_erasing


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch_of(size, frames=2, side=20, value=lambda i: 10 * i):
    """Sample i is the constant value(i), so that shares can be read off the pixels."""
    video = torch.stack([torch.full((3, frames, side, side), value(i), dtype=torch.uint8) for i in range(size)])
    return {"video": video, "label": torch.arange(size), "index": torch.arange(size), "path": ["x"] * size}


@pytest.mark.parametrize("size", [2, 6, 7])
def test_mixup_blends_with_the_flipped_batch(size):
    batch = batch_of(size)
    shares = []
    for _ in range(20):
        out = BatchMixer(mixup=0.8)(batch, num_classes=9)
        assert out["video"].dtype == torch.float32 and out["target"].shape == (size, 9)
        share = float(out["target"][0, 0])
        shares.append(share)
        for i in range(size):
            partner = size - 1 - i
            expected = (share * 10 * i + (1 - share) * 10 * partner) / 255
            torch.testing.assert_close(out["video"][i], torch.full((3, 2, 20, 20), expected), atol=1e-6, rtol=0)
            target = torch.zeros(9)
            target[i] += share
            target[partner] += 1 - share
            torch.testing.assert_close(out["target"][i], target, atol=1e-6, rtol=0)
    assert len(set(shares)) == 20  # one lambda per batch, a new one each time
    assert batch["video"].dtype == torch.uint8 and "target" not in batch  # the input is left alone


def test_lambda_is_beta_distributed():
    batch = batch_of(2, frames=1, side=2)
    shares = np.array([float(BatchMixer(mixup=0.8)(batch, 2)["target"][0, 0]) for _ in range(3000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert abs(shares.mean() - 0.5) < 0.02 and abs(shares.var() - 1 / (4 * 2.6)) < 0.006


@pytest.mark.parametrize("size", [4, 5])
def test_cutmix_pastes_one_box_and_counts_it(size):
    batch = batch_of(size, frames=3, side=24)
    mixed_shares = []
    for _ in range(60):
        out = BatchMixer(cutmix=1.0)(batch, num_classes=size)
        video = (out["video"] * 255).round()
        foreign = video[0] != 0  # sample 0 is black, its partner is not
        assert torch.equal(foreign, foreign[:1, :1].expand_as(foreign))  # the same for all channels and frames
        rows, columns = foreign[0, 0].any(1), foreign[0, 0].any(0)
        assert int(foreign[0, 0].sum()) == int(rows.sum() * columns.sum())  # a rectangle
        for i in range(size):
            partner = size - 1 - i
            expected = torch.where(foreign, 10.0 * partner, 10.0 * i)
            torch.testing.assert_close(video[i], expected)
            share = 1 - float(foreign[0, 0].float().mean())
            target = torch.zeros(size)
            target[i] += share
            target[partner] += 1 - share
            torch.testing.assert_close(out["target"][i], target, atol=1e-6, rtol=0)
        mixed_shares.append(float(foreign[0, 0].float().mean()))
    assert min(mixed_shares) < 0.1 and max(mixed_shares) > 0.5


def test_two_labels_are_mixed_with_the_picture(golden, monkeypatch):
    """Targets of MambaVL's official training step, which leaves the clips as they are; here these are mixed too."""
    tensors, _ = golden("mambavl_fusion")
    share, classes = float(tensors["mixed.lam"]), {"verb": 7, "noun": 11}
    monkeypatch.setattr("datamodules.mixing._beta", lambda alpha: share)
    batch = batch_of(3) | {name: tensors[f"input.{name}"] for name in classes}
    out = BatchMixer(mixup=0.8)(batch, classes)
    assert "target" not in out
    for name, count in classes.items():
        smoothed = 0.9 * out[f"{name}_target"] + 0.1 / count  # what cross_entropy(label_smoothing=0.1) does
        torch.testing.assert_close(smoothed, tensors[f"mixed.target.{name}"], atol=1e-6, rtol=0)
    expected = torch.tensor([20 * (1 - share), 10, 20 * share]) / 255
    torch.testing.assert_close(out["video"][:, 0, 0, 0, 0], expected)


def test_cutmix_of_two_labels_counts_the_box_that_is_pasted():
    batch = batch_of(4) | {"verb": torch.tensor([0, 1, 2, 3]), "noun": torch.tensor([4, -1, 0, 1])}
    for _ in range(10):
        out = BatchMixer(cutmix=1.0)(batch, {"verb": 4, "noun": 5})
        foreign = float((out["video"][0] != 0).float().mean())
        verb, noun = out["verb_target"], out["noun_target"]
        torch.testing.assert_close(verb[0], torch.tensor([1 - foreign, 0, 0, foreign]), atol=1e-6, rtol=0)
        torch.testing.assert_close(noun[0], torch.tensor([0, foreign, 0, 0, 1 - foreign]), atol=1e-6, rtol=0)
        torch.testing.assert_close(noun[1], torch.tensor([foreign, 0, 0, 0, 0]), atol=1e-6, rtol=0)  # unknown


def test_switch_between_mixup_and_cutmix():
    batch = batch_of(2, frames=1, side=16, value=lambda i: 200 * i)
    mixer = BatchMixer(mixup=0.8, cutmix=1.0)
    cut = 0
    for _ in range(400):
        values = mixer(batch, 2)["video"][0].unique()
        cut += bool(len(values) == 2 or values[0] in (0.0, 200 / 255))
    assert 160 < cut < 240


def test_nothing_to_do_leaves_the_batch_as_it_is():
    batch = batch_of(3)
    assert BatchMixer()(batch, 5) is batch


def test_float_video_is_not_scaled_again():
    batch = batch_of(2) | {"video": torch.rand(2, 3, 2, 8, 8)}
    out = BatchMixer(mixup=0.8)(batch, 2)
    share = float(out["target"][0, 0])
    torch.testing.assert_close(out["video"][0], share * batch["video"][0] + (1 - share) * batch["video"][1])


def erased_boxes(count, frames=4, height=40, width=56, probability=0.25):
    original = torch.full((count, 3, frames, height, width), 7.0)  # far from what the noise can reach
    video = random_erasing(original.clone(), probability)
    return video, video != original


def test_random_erasing_boxes():
    _, changed = erased_boxes(2000, frames=2)
    hit = changed.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    areas, ratios = [], []
    for mask in changed[hit]:
        assert torch.equal(mask, mask[:1, :1].expand_as(mask))  # same box in all channels and frames
        height, width = int(mask[0, 0].any(1).sum()), int(mask[0, 0].any(0).sum())
        assert int(mask[0, 0].sum()) == height * width
        areas.append(height * width / (40 * 56))
        ratios.append(height / width)
    areas, ratios = np.array(areas), np.log(ratios)
    assert 0.015 < areas.min() < 0.04 and 0.30 < areas.max() < 0.35
    assert np.abs(ratios).max() < math.log(3.3) + 0.35  # box sides are rounded to pixels
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 0.02


def test_random_erasing_noise_has_unit_variance_after_normalisation():
    video, changed = erased_boxes(60, probability=1.0)
    normalised = (video - torch.tensor(MEAN).view(-1, 1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1, 1)
    for channel in range(3):
        values = normalised[:, channel][changed[:, channel]]
        assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02
    one = next(i for i in range(60) if changed[i].any())
    frames = video[one][changed[one]].view(3, 4, -1)
    assert abs(float(torch.corrcoef(frames[0])[0, 1])) < 0.3  # drawn anew for each frame


def test_erasing_goes_before_mixing():
    batch = batch_of(2, side=24)
    out = BatchMixer(mixup=0.8, erasing=1.0)(batch, 2)
    # Each sample's noise shows in both, weighted by lambda: two boxes per sample, not one.
    share = float(out["target"][0, 0])
    plain = torch.tensor([(1 - share) * 10 / 255, share * 10 / 255])
    changed = (out["video"] - plain.view(2, 1, 1, 1, 1)).abs() > 1e-5
    assert torch.equal(changed[0], changed[1]) and changed[0].any()


def test_same_seed_same_batch():
    batch = batch_of(4)
    mixer = BatchMixer(mixup=0.8, cutmix=1.0, erasing=0.5)
    torch.manual_seed(1)
    first = mixer(batch, 4)
    torch.manual_seed(1)
    again = mixer(batch, 4)
    assert torch.equal(first["video"], again["video"]) and torch.equal(first["target"], again["target"])
