"""Cards as the Hub and people read them."""

import ast
import os
import re
import subprocess

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub.card import About, Score, about_run, address, make_card
from hub.checkpoint import Checkpoint
from hub.errors import HubError

VIDEO = {
    "class_path": "lightning_modules.VideoClassifier",
    "init_args": {
        "num_classes": 30, "class_names": [f"class {i}" for i in range(30)], "num_frames": 8, "image_size": 32,
        "mean": [0.5, 0.5, 0.5], "sampling": "ssv2", "short_side": None,
        "frame_stride": 4,
    },
}  # fmt: skip
WEIGHTS = {"net.a": torch.zeros(1500, 1000), "net.b": torch.zeros(3)}
SCORES = {"val/loss": 0.4, "val/top1": 0.912347, "val/top5": 1.0, "test/top1": 0.9, "test/mean_iou": 0.25}


def run(model=None, data=None, head="", **more) -> Checkpoint:
    recipe = head + yaml.safe_dump({"model": {**VIDEO, "init_args": model or {}}, "data": data})
    return Checkpoint(VIDEO, WEIGHTS, recipe, scores=SCORES, **more)


def test_the_metadata_says_what_the_hub_shows():
    data = {"class_path": "datamodules.SomethingSomethingV2", "init_args": {"root": "/data/smth"}}
    head = "# lightning.pytorch==2.6.6\n# dataset: Something-Something V2\n"
    checkpoint = run({"init_from": "hf://org/base@v1"}, data, head)
    about = about_run(checkpoint)
    card = ModelCard(make_card(checkpoint, about, "org/name"))
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("video-classification", "video-mamba-zoo")
    assert data.datasets == ["something-something-v2"] and data.base_model == "org/base"
    metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), flags=re.DOTALL)[1])
    assert "license" not in metadata
    (entry,) = metadata["model-index"]
    assert entry["name"] == "name"
    found = {}
    for result in entry["results"]:
        assert result["task"] == {"type": "video-classification"}
        assert result["dataset"]["name"] == "Something-Something V2"
        for metric in result["metrics"]:
            found[result["dataset"]["split"], metric["type"]] = metric["value"]
    assert found == {
        ("validation", "accuracy"): 0.91235, ("validation", "top_5_accuracy"): 1.0, ("test", "accuracy"): 0.9,
        ("test", "mean_iou"): 0.25,
    }  # fmt: skip
    for row in ("| Top-1 accuracy | validation | 91.2 % |", "| mean_iou | test | 0.25 |", "| frames | 8 |"):
        assert row in card.text
    assert "1,500,003 parameters" in card.text and "`class 19` and 10 more" in card.text
    assert (
        "short side" not in card.text
        and "from one to the next" not in card.text
        and "recipe.yaml" in card.text
        and "curves.png" not in card.text
    )


@pytest.mark.parametrize(
    ("data", "name", "slug"),
    [
        ({"class_path": "datamodules.Kinetics", "init_args": {"root": "/data/k600"}}, "k600", "k600"),
        ({"class_path": "datamodules.VideoFolder", "init_args": {"root": "/home/me/My Videos/"}}, "My Videos",
         "my-videos"),
        ({"class_path": "mine.Data", "init_args": None}, "Data", "data"),
        (None, None, None),
        (["x"], None, None),
    ],
)  # fmt: skip
def test_the_data_set_is_the_runs(data, name, slug):
    checkpoint = run(data=data)
    about = about_run(checkpoint)
    assert about.dataset == name
    card = ModelCard(make_card(checkpoint, about, "org/name"))
    assert card.data.datasets == (slug and [slug])
    assert card.data.eval_results[0].dataset_name == (name or "unnamed")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("# dataset: Kinetics-600\n", "Kinetics-600"),
        ("# a note\n# dataset: A: *b*\n# dataset: C\n", "A: *b*"),
        ("trainer: {}\n# dataset: D\n", "k600"),  # a comment further down is the author's
        ("# dataset:\n", "k600"),
    ],
)
def test_the_head_of_the_recipe_names_the_data_set(head, name):
    checkpoint = run(data={"class_path": "datamodules.Kinetics", "init_args": {"root": "/data/k600"}}, head=head)
    about = about_run(checkpoint)
    assert about.dataset == name
    assert ModelCard(make_card(checkpoint, about, "org/name")).data.eval_results[0].dataset_name == name


NO_RECIPES = [None, "", "- 1", "model: 3", "a: [", "model: {init_args: {init_from: 3}}", "data: 1"]


@pytest.mark.parametrize("recipe", NO_RECIPES)
def test_a_model_without_a_run_has_a_card_too(recipe):
    image = {**VIDEO, "init_args": {"num_classes": 2, "num_frames": None, "image_size": 32}}
    checkpoint = Checkpoint(image, WEIGHTS, recipe, {"curves.png": b"x"})
    assert about_run(checkpoint) == About()
    scores = (Score("top1", 0.5, note="as published"),)
    about = About("ImageNet-1K", scores, "apache-2.0", "org/base", paper="https://x", note="N.")
    card = ModelCard(make_card(checkpoint, about, "org/name"))
    assert (card.data.pipeline_tag, card.data.license) == ("image-classification", "apache-2.0")
    assert 'zoo.predict(model, "photo.jpg")' in card.text and "![Training curves](curves.png)" in card.text
    assert "Top-1 accuracy (as published)" in card.text and "https://x" in card.text
    assert card.data.base_model == "org/base"
    other = Checkpoint({"class_path": "mine.Thing", "init_args": {}}, WEIGHTS)
    text = make_card(other, About(), "org/name")
    assert "zoo.predict" not in text and 'zoo.load("org/name")' in text and "pipeline_tag" not in text


def test_scores_of_a_model_that_read_the_labels_are_marked():
    checkpoint = run()._replace(
        scores={"val/action_top1": 0.5, "val/questions_from_labels": 1.0, "test/action_top1": 0.4}
    )
    card = make_card(checkpoint, about_run(checkpoint), "org/name")
    marked, plain = (line for line in card.splitlines() if line.startswith("| action_top1"))
    assert "questions written from the labels, which leak the answer" in marked and "validation" in marked
    assert plain == "| action_top1 | test | 0.4 |" and "questions_from_labels" not in card


def test_how_input_is_prepared_may_be_a_group():
    arguments = {"num_frames": 8, "preprocessing": {"mean": [0.5, 0.25, 0.5], "sampling": "dense", "frame_stride": 3}}
    checkpoint = Checkpoint({"class_path": "lightning_modules.ActionRecognition", "init_args": arguments}, WEIGHTS)
    card = make_card(checkpoint, About(), "org/name")
    assert "| frames | 8 |" in card and "| sampling | dense |" in card and "| frames from one to the next | 3 |" in card


def test_a_card_follows_its_folder_to_another_place():
    checkpoint = run()
    card = make_card(checkpoint, about_run(checkpoint), "out/my_model/")
    assert "# my_model\n" in card and 'zoo.load("out/my_model/")' in card
    edited = card.replace("## Input", "Trained with care.\n\n## Input")
    moved = address(edited, checkpoint, "org/name")
    assert "out/my_model" not in moved and "Trained with care." in moved
    assert moved.replace("Trained with care.\n\n", "") == make_card(checkpoint, about_run(checkpoint), "org/name")
    assert address(moved, checkpoint, "org/name") == moved
    licensed = address(edited, checkpoint, "org/name", "mit")
    assert ModelCard(licensed).data.license == "mit" and ModelCard(licensed).text == ModelCard(moved).text


def test_what_says_nothing_is_left_out():
    few = {**VIDEO, "init_args": {"num_classes": 5, "sampling": "dense", "frame_stride": 4}}
    checkpoint = run()._replace(config=few)
    assert "top5" not in {score.metric for score in about_run(checkpoint).scores}
    assert "| frames from one to the next | 4 |" in make_card(checkpoint, About(), "org/name")


def test_a_card_by_hand_is_left_alone():
    for card in ("", "# Mine\n", "---\ntags: [a]\n---\n# Mine\n"):
        assert address(card, run(), "org/name") == card
    assert address("# Mine\n", run(), "org/name", "mit") == "---\nlicense: mit\n---\n\n# Mine\n"
    broken = make_card(run(), About(), "org/name").replace("library_name:", "library_name: [")
    with pytest.raises(HubError, match=r"metadata at the head of README\.md is not valid"):
        address(broken, run(), "org/name")


NASTY = [
    'a b/my model\'s "best"',
    "x`y``z/```\n# Heading\n<script>alert(1)</script>",
    "--help",
    "$(touch evil)/`id`;\\n",
    "a\\'b/<!-- /usage -->",
    "t\x1b[31m\u202e\udc80/|cell|[link](http://x)![i](y)*b*",
    "---\nlicense: evil\n---\n",
]


def tokens(text: str) -> list:
    found = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    return [*found, *(child for token in found for child in token.children or ())]


@pytest.mark.parametrize("nasty", NASTY)
def test_names_from_outside_stay_names(nasty, tmp_path):
    """In a shell, in Python, in Markdown and in YAML."""
    model = {"init_from": nasty, "teacher": nasty}
    config = {"class_path": nasty, "init_args": {**VIDEO["init_args"], "class_names": [nasty] * 30, "sampling": nasty}}
    about = About(nasty, (Score(nasty, 0.5, nasty, nasty),), nasty, nasty, None, nasty, nasty)
    card = make_card(run(model)._replace(config=config), about, nasty)
    card.encode()  # it is written as UTF-8
    plain = {**VIDEO, "init_args": {**VIDEO["init_args"], "class_names": ["a"] * 30}}
    honest = make_card(run({"init_from": "n", "teacher": "n"})._replace(config=plain),
                       About("n", (Score("n", 0.5, "n", "n"),), "n", "n", None, "n", "n"), "n")  # fmt: skip

    def structure(text: str) -> list[str]:
        kinds = [token.type for token in tokens(ModelCard(text).text)]
        return [kind for kind in kinds if kind not in ("text", "text_special", "code_inline")]

    assert structure(card) == structure(honest)
    data, honest_data = (
        yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)[1]) for text in (card, honest)
    )
    assert set(data) == set(honest_data) and (data["license"], data["base_model"]) == (nasty, nasty)
    python, shell = (token.content for token in tokens(ModelCard(card).text) if token.type == "fence")
    call = ast.parse(python).body[1].value
    assert call.args[0].value == nasty
    (tmp_path / "zoo").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (tmp_path / "zoo").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    said = subprocess.run(["bash", "-c", shell], capture_output=True, cwd=tmp_path, timeout=600, env=env)
    words = said.stdout.split(b"\0")
    assert words[0] == b"predict" and words[2] == b"clip.mp4" and len(words) == 4 and said.stderr == b""
    if "\udc80" not in nasty:
        assert words[1].decode() == (f"./{nasty}" if nasty.startswith("-") else nasty)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo"]
    moved = address(card, run(model)._replace(config=config), "org/name")
    assert 'zoo.load("org/name")' in moved and moved.count("\n<!-- /usage -->\n") == 1


def test_figures_of_a_test():
    """Interval and calibration beside the scores, and the picture below them."""
    scores = {"val/top1": 0.5, "test/top1": 0.9, "test/top1_low": 0.85, "test/top1_high": 0.95,
              "test/calibration_error": 0.04, "test/mean_recall": 0.875, "test/its_low": 1.0}  # fmt: skip
    checkpoint = run(extras={"confusion.png": b"picture"})._replace(scores=scores)
    card = make_card(checkpoint, about_run(checkpoint), "org/name")
    for row in ("| Top-1 accuracy | validation | 50.0 % |",
                "| Top-1 accuracy (95 % interval 85.0 to 95.0 %) | test | 90.0 % |",
                "| Expected calibration error | test | 4.0 % |", "| Mean recall of the classes | test | 87.5 % |",
                "| its_low | test | 1 |"):  # fmt: skip
        assert row in card
    assert card.count("| test |") == 4 and "_high" not in card
    assert card.index("| test |") < card.index("](confusion.png)") < card.index("## Input")
    assert "](ranks.png)" not in card and "confusion.png" not in make_card(run(), about_run(run()), "org/name")
