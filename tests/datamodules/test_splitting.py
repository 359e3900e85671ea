"""Videos set aside for validation: by class, in whole groups, the same for a seed."""

from collections import Counter

import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.splitting import check_groups, group_pattern, groups_of, set_aside


def random_groups(seed):
    """300 videos in films of 1 to 20, each film in one to three of five classes."""
    generator = np.random.default_rng(seed)
    labels, groups = [], []
    for film in range(30):
        of_film = generator.choice(5, size=generator.integers(1, 4), replace=False)
        for _ in range(generator.integers(1, 21)):
            labels.append(int(generator.choice(of_film)))
            groups.append(f"film {film}")
    return labels, groups


@pytest.mark.parametrize("seed", range(20))
def test_a_group_is_on_one_side_and_every_class_on_both(seed):
    labels, groups = random_groups(seed)
    chosen = set_aside(labels, 0.2, seed, groups)
    sides = {(group, held) for group, held in zip(groups, chosen, strict=True)}
    assert len(sides) == len(set(groups))
    for held in (True, False):
        assert {label for label, side in zip(labels, chosen, strict=True) if side == held} == set(range(5))
    assert 0.1 < np.mean(chosen) < 0.35
    assert set_aside(labels, 0.2, seed, groups) == chosen
    assert any(set_aside(labels, 0.2, other, groups) != chosen for other in range(seed + 1, seed + 4))


def test_every_video_a_group_of_its_own_is_nearly_the_plain_split():
    labels = [0] * 20 + [1] * 5 + [2]
    plain = set_aside(labels, 0.2, 3)
    assert Counter(label for label, held in zip(labels, plain, strict=True) if held) == {0: 4, 1: 1}
    alone = set_aside(labels, 0.2, 3, range(len(labels)))
    assert Counter(label for label, held in zip(labels, alone, strict=True) if held) == {0: 4, 1: 1}


def test_a_class_of_a_single_group_is_trained_on():
    chosen = set_aside([0, 0, 0, 1, 1, 1], 0.5, 0, ["a", "a", "a", "b", "c", "d"])
    assert not any(chosen[:3]) and any(chosen[3:])
    with pytest.raises(DataError, match="All 2 videos are of one group, 'a', so none can be set aside"):
        set_aside([0, 1], 0.5, 0, ["a", "a"])


def test_patterns():
    pattern = group_pattern(r"([^/]+)_\d+\.mp4$")
    assert groups_of(["run/film 1_003.mp4", "sit/film 1_004.mp4"], pattern) == ["film 1"] * 2
    assert groups_of(["a/b_1.mp4"], group_pattern(r"^(\w)/(\w)")) == ["a/b"]
    with pytest.raises(DataError, match=r"does not fit 2 of the 3 videos: b\.mp4, c\.mp4; change the pattern"):
        groups_of(["a_1.mp4", "b.mp4", "c.mp4"], pattern)
    with pytest.raises(DataError, match="has no capture group; put the part of a path that names the film into"):
        group_pattern("film")
    with pytest.raises(DataError, match="is not a regular expression"):
        group_pattern("(film")


def test_groups_on_both_sides():
    check_groups(["a", "b"], ["c"], "here")
    with pytest.raises(DataError, match="1 groups have videos both for training and for validation in here: b; move"):
        check_groups(["a", "b"], ["b", "c"], "here")
