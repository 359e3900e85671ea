"""Class names: counts, duplicates, and indices known from independent sources."""

import pytest
import torchvision

from zoo.registry import class_labels

COUNTS = {"in1k": 1000, "k400": 400, "ssv2": 174, "breakfast": 10, "coin": 180}

# ssv2: the first entries of labels.json; breakfast: rows of the ViS4mer lists; coin: the taxonomy excerpt and the
# COIN.json example that its authors print, and entries of the taxonomy far from them; in1k, k400: common knowledge.
ANCHORS = {
    "in1k": {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"},
    "k400": {0: "abseiling", 1: "air drumming", 6: "arm wrestling", 399: "zumba"},
    "ssv2": {
        0: "Approaching something with your camera",
        1: "Attaching something to something",
        2: "Bending something so that it deforms",
        19: "Holding something next to something",
        93: "Pushing something from left to right",
        94: "Pushing something from right to left",
        173: "Wiping something off of something",
    },
    "breakfast": {0: "cereals", 1: "coffee", 4: "friedegg", 7: "juice", 9: "salat"},
    "coin": {0: "UseAnalyticalBalance", 13: "ChangeCarTire", 131: "ReplaceCDDriveWithSSD", 179: "WrapGiftBox"},
}


@pytest.mark.parametrize("dataset", COUNTS)
def test_every_class_has_one_name_of_its_own(dataset):
    names = class_labels(dataset)
    assert len(names) == len(set(names)) == COUNTS[dataset]
    assert all(name and name == name.strip() for name in names)


@pytest.mark.parametrize("dataset", ANCHORS)
def test_known_indices(dataset):
    assert {index: class_labels(dataset)[index] for index in ANCHORS[dataset]} == ANCHORS[dataset]


def test_image_and_kinetics_names_are_those_of_torchvision():
    image = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    kinetics = torchvision.models.video.MViT_V2_S_Weights.KINETICS400_V1.meta["categories"]
    assert list(class_labels("in1k")) == image
    assert list(class_labels("k400")) == kinetics == sorted(kinetics)


def test_ssv2_templates_are_in_alphabetical_order_without_brackets():
    names = class_labels("ssv2")
    assert list(names) == sorted(names)
    assert not any(sign in name for name in names for sign in "[]")
