"""Throughput and memory against frames, from a result of `throughput.py`, as in the paper's Figure 1.

python benchmarks/draw.py benchmarks/results/throughput_<device>.json picture.png --batch 8 --phase infer
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--batch", type=int, help="default: the first in the file")
    parser.add_argument("--phase", default="infer", choices=["infer", "train"])
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    records = [r for r in result["records"] if r["phase"] == options.phase and "milliseconds" in r]
    batch = options.batch or (records[0]["batch"] if records else None)
    curves: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        if record["batch"] == batch:
            curves[record["model"]].append(record)
    if not curves:
        parser.error(
            f"{options.result} has no {options.phase} records of batch {batch}; choose another --batch or --phase"
        )

    figure, (speed, memory) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for model, points in curves.items():
        points.sort(key=lambda record: record["frames"])
        frames = [record["frames"] for record in points]
        style = {"marker": "o", "linestyle": "-" if model.startswith("videomamba") else "--", "label": model}
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
    phase = {"infer": "inference", "train": "training step"}[options.phase]
    figure.suptitle(f"{phase}, batch {batch}, {result['settings']['dtype']}, {result['machine']['device']}")
    figure.savefig(options.picture, dpi=150)
    print(f"Saved to {options.picture}")


if __name__ == "__main__":
    main()
