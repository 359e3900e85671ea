"""What masking saves: a pretraining step of the student against the share of tokens that it sees.

    python benchmarks/masked_throughput.py [--models ti m] [--batch 1] [--rounds 2] [--device cpu] [--output FILE.json]

A step is forward, alignment loss and backward of `MaskedVideoMamba` on clips of 8 frames of 224 x 224 px, 1569 tokens,
under attention masks; weights are in float32, on a GPU under bfloat16 autocast. Its time is given as a share of the
step without a mask, beside the share of tokens. The teacher, CLIP ViT-B/16 on all frames, works on the whole clip
whatever is masked, and is timed alone.

On a CPU one thread works and the processor's time for it counts, which other programs disturb little; on a GPU it is
the device's own clock. The cases take turns, 1 + --rounds times; the fastest call of each counts.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from common import REPOSITORY, RESULTS, device_name, device_time, machine, machine_slug, save
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_modules.nets import ClipTeacher, MaskedVideoMamba
from lightning_modules.nets.masked_videomamba import take
from lightning_modules.nets.masking import draw_visible
from lightning_modules.training.losses import alignment_loss

FRAMES, SIZE, GRID = 8, 224, 14
RATIOS = (0.0, 0.5, 0.65, 0.8, 0.9)  # 0 and those of the paper's table 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ti", "m"], choices=["ti", "s", "m", "b"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="default: results/masked_throughput_<device>.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = torch.randn(arguments.batch, 3, FRAMES, SIZE, SIZE, device=device)
    students = {name: build(name).to(device) for name in arguments.models}
    teacher = ClipTeacher(sizes={"vision_config": {"patch_size": 16}}).to(device)
    target = torch.randn(1, arguments.batch, 1 + FRAMES * GRID**2, teacher.output_dim, device=device)
    visible = {ratio: masks(ratio, arguments.batch, device) for ratio in RATIOS}
    times: dict[tuple[str, float], float] = {}
    teaching = float("inf")
    for _ in range(1 + arguments.rounds):
        for name, student in students.items():
            for ratio, tokens in visible.items():
                seconds = timed(lambda s=student, t=tokens: step(s, clip, t, target), device)
                times[name, ratio] = min(seconds, times.get((name, ratio), float("inf")))
        teaching = min(teaching, timed(lambda: teach(teacher, clip), device))
    records = [
        {"model": name, "mask_ratio": ratio, "tokens": tokens, "share_of_tokens": tokens / (1 + FRAMES * GRID**2),
         "seconds": times[name, ratio], "share_of_step": times[name, ratio] / times[name, 0.0]}
        for name in students for ratio in RATIOS for tokens in [visible[ratio].shape[1]]
    ]  # fmt: skip
    about = machine() | {"device": device_name(device)}
    result = {"machine": about, "batch": arguments.batch, "rounds": arguments.rounds, "teacher_seconds": teaching}
    path = arguments.output or RESULTS / f"masked_throughput_{machine_slug(about['device'], about['cores'])}.json"
    save({**result, "records": records}, path)
    shown = Table("student", title=f"Steps of {arguments.batch} clip(s); the teacher takes {teaching:.2f} s")
    for column in ("masked", "tokens", "share of tokens", "seconds", "share of the step"):
        shown.add_column(column, justify="right")
    for r in records:
        shares = (f"{r['share_of_tokens']:.1%}", f"{r['seconds']:.3f}", f"{r['share_of_step']:.1%}")
        shown.add_row(f"videomamba-{r['model']}", f"{r['mask_ratio']:.0%}", str(r["tokens"]), *shares)
    Console().print(shown)


def build(size: str) -> MaskedVideoMamba:
    path = REPOSITORY / "zoo" / "models" / f"videomamba-{size}.yaml"
    return MaskedVideoMamba(**yaml.safe_load(path.read_text(encoding="utf-8"))["init_args"]).train()


def masks(ratio: float, batch: int, device: torch.device) -> Tensor:
    attention = torch.rand(batch, FRAMES, GRID**2, device=device)
    return draw_visible("attention", ratio, batch, FRAMES, GRID, attention=attention)


def timed(function: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        return device_time(function, device)
    start = time.process_time()
    function()
    return time.process_time() - start


def autocast(device: torch.device):
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def step(student: MaskedVideoMamba, clip: Tensor, visible: Tensor, target: Tensor) -> None:
    with autocast(clip.device):
        loss = alignment_loss(student(clip, visible), take(target[0], visible)[None]).mean()
    loss.backward()
    student.zero_grad(set_to_none=True)


def teach(teacher: ClipTeacher, clip: Tensor) -> None:
    with autocast(clip.device):
        teacher(clip, GRID)


if __name__ == "__main__":
    main()
