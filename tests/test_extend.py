"""docs/extend.md: its module is short, and trains, is saved, pushed to a Hub on loopback, and loaded."""

import re
import subprocess
import sys
from pathlib import Path

from datamodules.synthetic.writing import generate

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
TOKEN = "hf_" + "Zq7" * 11
# Runs the page's script, then its command.
CHECK = """
import pathlib, sys, torch
from train import again, model
import zoo, zoo.cli
video = torch.randint(256, (2, 3, 8, 64, 64), dtype=torch.uint8)
with torch.inference_mode():
    expected = model.eval()(video)
    for loaded in (again, zoo.load("me/tiny-trained")):
        assert torch.equal(loaded(video), expected) and not loaded.training
assert zoo.create("tiny-3d", num_classes=5)(video).shape == (2, 5)
sys.argv = "lightning fit --config tiny.yaml".split()
zoo.cli.main()
(checkpoint,) = pathlib.Path("runs").rglob("*.ckpt")
assert zoo.load(checkpoint)(video).shape == (2, 2)
print("all done")
"""


def test_the_module_of_the_page_works(hub_server, tmp_path):
    blocks = re.findall(
        r"^```(python|yaml)\n# (\S+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert [name for _, name, _ in blocks] == ["tiny.py", "train.py", "tiny.yaml"]
    assert sum(text.count("\n") + 1 for language, _, text in blocks if language == "python") <= 30
    for _, name, text in blocks:
        (tmp_path / name).write_text(text)
    (tmp_path / "check.py").write_text(CHECK)
    generate(tmp_path / "my_videos", num_train=4, num_val=2, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    hub_server.tokens[TOKEN] = {"me"}
    done = subprocess.run(
        [sys.executable, "check.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**hub_server.environment(tmp_path / "home", HF_TOKEN=TOKEN), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all done"
