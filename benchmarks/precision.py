"""What bfloat16 products change in the answers of the shipped videomamba-nano-motion about generated clips.

    python benchmarks/precision.py [--videos 320] [--output FILE.json]

The test is the demo's: 3 clips of each video, softmax averaged, in float32 and in bfloat16 (`zoo predict --precision`).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import RESULTS, machine, save

import zoo
from datamodules.synthetic.writing import generate
from zoo.inference.precision import PRECISIONS
from zoo.inference.predict import read_views, score_views

MODEL = "videomamba-nano-motion"
NUM_CLIPS = 3  # as the demo tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=320, help="test clips, of all classes in turn")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    options = parser.parse_args()
    model = zoo.load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        root = generate(Path(folder) / "clips", num_train=0, num_val=0, num_test=options.videos, progress=False)
        files = sorted(root.glob("test/*/*.mp4"))
        views = [read_views(model, file, NUM_CLIPS, 1) for file in files]
    right = torch.tensor([model.class_names.index(file.parent.name) for file in files])
    scores = {name: torch.stack([score_views(model, one, name) for one in views]) for name in PRECISIONS}
    best = {name: of_it.argmax(1) for name, of_it in scores.items()}
    change = (scores["bf16"] - scores["fp32"]).abs()
    result = {
        "machine": machine(), "model": MODEL, "videos": len(files), "views": NUM_CLIPS,
        "top1": {name: (answers == right).double().mean().item() for name, answers in best.items()},
        "other_answers": (best["bf16"] != best["fp32"]).sum().item(),
        "probability_change_mean": change.mean().item(), "probability_change_max": change.max().item(),
    }  # fmt: skip
    save(result, options.output)
    for name, value in result.items():
        print(name, value)


if __name__ == "__main__":
    main()
