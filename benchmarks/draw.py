"""Throughput and memory against frames, from a result of `throughput.py` or `long_video.py`; the paper's Figure 1.

python benchmarks/draw.py benchmarks/results/throughput_<device>.json picture.png --batch 8 --phase infer
python benchmarks/draw.py benchmarks/results/long_video_<device>.json picture.png --phase infer train
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PHASES = {"infer": "inference", "train": "training step"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--batch", type=int, help="default: the first in the file")
    parser.add_argument("--phase", nargs="+", default=["infer"], choices=list(PHASES), help="a row of curves for each")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    measured = [record for record in result["records"] if "milliseconds" in record]
    batch = options.batch or (measured[0]["batch"] if measured else None)

    names = sorted({record["model"] for record in measured})
    colours = {name: f"C{place}" for place, name in enumerate(names)}  # a model has the same one everywhere
    rows = len(options.phase)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 0.5 + 4 * rows), layout="constrained", squeeze=False)
    for phase, (speed, memory) in zip(options.phase, axes, strict=True):
        curves: dict[str, list[dict]] = defaultdict(list)
        for record in measured:
            if (record["phase"], record["batch"]) == (phase, batch):
                curves[record["model"]].append(record)
        if not curves:
            parser.error(f"{options.result} has no {phase} records of batch {batch}; choose another --batch or --phase")
        draw(curves, colours, speed, memory)
        speed.set_title(PHASES[phase], loc="left", fontsize="medium")
    figure.suptitle(f"batch {batch}, {result['settings']['dtype']}, {result['machine']['device']}")
    figure.savefig(options.picture, dpi=150)
    print(f"Saved to {options.picture}")


def draw(curves: dict[str, list[dict]], colours: dict[str, str], speed: Axes, memory: Axes) -> None:
    for model, points in sorted(curves.items()):
        points.sort(key=lambda record: record["frames"])
        frames = [record["frames"] for record in points]
        style = {
            "color": colours[model],
            "marker": "o",
            "linestyle": "-" if model.startswith("videomamba") else "--",
            "label": model,
        }
        speed.plot(frames, [record["videos_per_second"] for record in points], **style)
        if all(record["peak_mib"] for record in points):
            memory.plot(frames, [record["peak_mib"] / 1024 for record in points], **style)
    for axes, what in ((speed, "videos per second"), (memory, "peak memory beyond weights, GiB")):
        axes.set(xscale="log", yscale="log", xlabel="frames", ylabel=what)
        ticks = sorted({record["frames"] for points in curves.values() for record in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    speed.legend(fontsize="small")


if __name__ == "__main__":
    main()
