"""What earlier releases wrote still loads: tests/golden/earlier was made by release 0.1, from a run of six steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import zoo
from datamodules.synthetic.writing import generate

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
OPTIM = ("lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "betas", "lr_samples", "scale_all_lr",
         "schedule", "layer_decay", "layer_decay_scope")  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "last.ckpt"])
def test_weights_and_config(source):
    model = zoo.load(EARLIER / source)
    assert model.class_names == ["grow", "move_left"]
    video = (torch.arange(3 * 4 * 32 * 32).view(1, 3, 4, 32, 32) * 37 % 256).to(torch.uint8)
    with torch.no_grad():
        logits = model(video)
    torch.testing.assert_close(logits, torch.tensor([[0.04371256, 0.03404781]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("source", ["mambavl", "mambavl.ckpt"])
def test_a_mambavl_of_one_family(source):
    """It was called "shared", and what is in groups now were arguments of their own."""
    with pytest.warns(UserWarning, match='"shared" is called "joint" now'):
        model = zoo.load(EARLIER / source)
    assert model.hparams.fusion == "joint" and model.class_names == ["open door", "close tap"]
    assert model.preprocessing["num_frames"] == 2 and model.mean.flatten().tolist() == [0.5] * 3
    video = (torch.arange(3 * 2 * 32 * 32).view(1, 3, 2, 32, 32) * 37 % 256).to(torch.uint8)
    with torch.no_grad():
        logits = model(video, ["what is opened?"])
    torch.testing.assert_close(logits, torch.tensor([[-0.9178561, -0.0790612]]), rtol=1e-4, atol=1e-5)
    first, second = model.answer(video, "which one?", 2)
    assert (first.text, second.text) == ("open", "tap") and first.probability == pytest.approx(0.275921, rel=1e-4)


@pytest.mark.slow
def test_a_run_continues_from_its_checkpoint(tmp_path):
    generate(tmp_path / "data", num_train=12, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    lightning = Path(sys.executable).with_name("lightning")

    def fit(config):
        command = [lightning, "fit", "--config", config, "--ckpt_path", EARLIER / "last.ckpt",
                   "--trainer.max_epochs", "3", "--trainer.default_root_dir", "runs"]  # fmt: skip
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    recipe = EARLIER / "folder" / "recipe.yaml"
    result = fit(recipe)
    assert result.returncode == 1 and "write --model.optim.lr" in result.stderr.splitlines()[-1]
    # As the sentence says: the optimiser's arguments in one group.
    config = yaml.safe_load(recipe.read_text())
    arguments = config["model"]["init_args"]
    assert arguments.pop("decay_state_matrix") is False
    arguments["optim"] = {name: arguments.pop(name) for name in OPTIM if name in arguments}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = fit("config.yaml")
    assert result.returncode == 0, result.stderr[-3000:]
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 9
