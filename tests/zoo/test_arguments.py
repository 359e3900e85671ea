"""The rewriting of the ``lightning`` command line, word by word."""

from pathlib import Path

import pytest

import zoo
from zoo.arguments import rewrite
from zoo.errors import ZooError
from zoo.recipe import find_recipe, read_recipe

FOLDER = Path("layers")  # never made: nothing is written
CONFIG = """\
model: {class_path: VideoClassifier, init_args: {num_classes: 2}}
trainer: {max_epochs: 3, callbacks: [{class_path: lightning_modules.callbacks.Curves}, {class_path: my.Own}]}
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG)
    return str(file)


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"], ["-c={}"], ["-c{}"]])
def test_a_config_becomes_a_layer_with_its_includes(config, form):
    given = ["fit", *(word.format(config) for word in form), "--model.optim.lr", "1e-4"]
    before = list(given)
    words, layers, source = rewrite(given, ("fit",), FOLDER)
    (file,) = layers
    assert words[-2:] == ["--model.optim.lr", "1e-4"] and words[1].removeprefix("--config=") in (
        "--config",
        "-c",
        str(file),
    )
    assert str(file) in " ".join(words) and config not in " ".join(words)
    assert layers[file] == read_recipe(Path(config)) and str(source) == config
    assert given == before and not FOLDER.exists()


@pytest.mark.parametrize(("blocks", "activations"), [(0, {}), (12, {"activations": "memory"})])
def test_a_recipe_of_an_earlier_run_is_read_as_it_was_meant(tmp_path, blocks, activations):
    file = tmp_path / "recipe.yaml"
    file.write_text(CONFIG.replace("{num_classes: 2}", f"{{num_classes: 2, checkpoint_blocks: {blocks}}}"))
    (layer,) = rewrite(["fit", "--config", str(file)], ("fit",), FOLDER).layers.values()
    assert layer["model"]["init_args"] == {"num_classes": 2, **activations}


def test_recipes_go_by_name_and_later_layers_stay_apart(config):
    words, layers, source = rewrite(["fit", "--config", "demo", "--config", config], ("fit",), FOLDER)
    assert list(layers.values()) == [read_recipe(find_recipe("demo")), read_recipe(Path(config))]
    assert [Path(word) for word in words[2::2]] == list(layers) and str(source) == config


def test_without_a_config_the_common_trainer_is_used():
    words, layers, source = rewrite(["fit", "--trainer.max_epochs", "1"], ("fit",), FOLDER)
    ((file, layer),) = layers.items()
    assert words == ["fit", f"--config={file}", "--trainer.max_epochs", "1"]
    assert list(layer) == ["trainer"] and source is None
    assert rewrite(["--help"], ("fit",), FOLDER) == (["--help"], {}, None)
    # There is nothing to change without a subcommand; jsonargparse then asks for one.
    assert rewrite(["--trainer.callbacks.Curves", "null"], ("fit",), FOLDER) == ([], {}, None)


@pytest.mark.parametrize("joined", [False, True])
def test_changes_of_callbacks_leave_the_words_for_the_last_layer(config, joined):
    changes = [("--trainer.callbacks.Curves", "null"), ("--trainer.callbacks.Own.init_args.every", "5")]
    flags = ["=".join(change) for change in changes] if joined else [word for change in changes for word in change]
    words, layers, _ = rewrite(["fit", "--config", config, *flags, "--trainer.max_epochs", "1"], ("fit",), FOLDER)
    assert words[3:] == ["--trainer.max_epochs", "1"]
    (layer,) = layers.values()
    assert layer["trainer"] == {"max_epochs": 3, "callbacks": [{"class_path": "my.Own", "init_args": {"every": 5}}]}


def test_classes_of_ours_get_their_packages():
    words = rewrite(["fit", "--trainer.callbacks+=Curves", "--trainer.callbacks+", "Timer"], ("fit",), FOLDER).arguments
    assert words[2:] == ["--trainer.callbacks+=lightning_modules.callbacks.Curves", "--trainer.callbacks+=Timer"]
    words = rewrite(["fit", "--data.help", "VideoFolder", "--model.help=VideoClassifier"], ("fit",), FOLDER).arguments
    assert words[2:] == ["--data.help", "datamodules.VideoFolder", "--model.help=lightning_modules.VideoClassifier"]


def test_the_network_of_a_donor_lies_below_the_configs(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {class_path: lightning_modules.VideoClassifier, init_args: {optim: {lr: 1.0e-4}}}\n")
    given = ["fit", "--config", str(file), "--model.init_from", "videomamba-nano-motion"]
    words, layers, _ = rewrite(given, ("fit",), FOLDER)
    below = layers.pop(FOLDER / "donor.yaml")["model"]
    donor = zoo.info("videomamba-nano-motion")
    assert words[1] == f"--config={FOLDER / 'donor.yaml'}" and below["class_path"] == donor.class_path
    assert below["init_args"]["embed_dim"] == donor.init_args["embed_dim"] and "class_names" not in below["init_args"]
    # A config that says what the network is needs none.
    assert FOLDER / "donor.yaml" not in rewrite([*given, "--model.embed_dim=64"], ("fit",), FOLDER).layers


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit", "--config", "dem"], "no recipe called 'dem': did you mean 'demo'"),
        (["fit", "--trainer.max_epoch", "1"], "trainer.max_epoch: .*did you mean 'max_epochs'"),
        (["fit", "--trainer.callbacks.Curves", "{"], "is not valid YAML"),
        (["fit", "--trainer.callbacks.Curve", "null"], "trainer.callbacks has no Curve"),
    ],
)
def test_mistakes_are_named(words, sentence):
    with pytest.raises(ZooError, match=sentence):
        rewrite(words, ("fit",), FOLDER)
