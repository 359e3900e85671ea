"""`zoo masks`: show which patches of a video masked pretraining keeps visible."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.checks import MASK_TYPES
from zoo.commands.console import print_json, show
from zoo.errors import ZooError
from zoo.files import PICTURES, check_target
from zoo.limits import FRAMES, check_range

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_arguments", "run"]

TEACHER = "openai/clip-vit-base-patch16"
MOST_PIXELS = 512 * 512**2

_EXAMPLES = """\
examples:
  zoo masks clip.mp4 --type tube --plot out.png          the same patches in every frame
  zoo masks clip.mp4 --type attention --plot out.png     more of what CLIP looks at; fetches it on first use
  zoo masks clip.mp4 --type attention --teacher my_clip  a CLIP from a folder that transformers wrote
  zoo masks clip.mp4 --ratio 0.9 --seed 1 --json         which patches, for programs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo masks`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("video", metavar="VIDEO", help="video file")
    parser.add_argument(
        "--type", choices=MASK_TYPES, help="how patches are chosen (default tube, or attention with --teacher)"
    )
    parser.add_argument("--ratio", type=float, default=0.8, metavar="R", help="share that is masked (default 0.8)")
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="frames of the clip (default 8)")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of the square input (default 224)")
    parser.add_argument("--patch", type=int, default=16, metavar="PX", help="side of a patch (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the mask (default 0)")
    parser.add_argument(
        "--teacher",
        metavar="CLIP",
        help=f"CLIP model that gives the attention: name or folder (default {TEACHER})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="PNG", help="save the frames with what stays visible")


def run(args: argparse.Namespace) -> None:
    """Draw one mask of a video."""
    if not Path(args.video).is_file():
        raise ZooError(f"There is no file {args.video}; check the path.")
    check_range("--frames", args.frames, FRAMES)
    check_range("--size", args.size, (1, 4096))
    check_range("--ratio", args.ratio, (0, 1))
    check_range("--seed", args.seed, (0, 2**63 - 1))
    if args.plot is not None:
        check_target(args.plot, PICTURES)
    if args.frames * args.size**2 > MOST_PIXELS:
        raise ZooError(f"--frames {args.frames} of --size {args.size} are too much for one picture; make one smaller.")
    if args.patch < 1 or args.size < args.patch or args.size % args.patch:
        raise ZooError(
            f"--size {args.size} and --patch {args.patch} do not make patches; take a "
            "size that is a multiple of the patch."
        )
    mask_type = args.type or ("tube" if args.teacher is None else "attention")

    import torch

    from datamodules.video.views import load_views
    from lightning_modules.nets.masking import draw_visible, num_visible

    side = args.size // args.patch
    visible_patches = num_visible(mask_type, args.ratio, args.frames, side)
    views = load_views(args.video, num_frames=args.frames, image_size=args.size, short_side=args.size, sampling="ssv2")
    attention = _attention(args.teacher or TEACHER, views.video, side) if mask_type == "attention" else None
    visible = draw_visible(
        mask_type, args.ratio, 1, args.frames, side, attention=attention, generator=torch.manual_seed(args.seed)
    )
    shown = torch.zeros(1 + args.frames * side**2, dtype=torch.bool)
    shown[visible[0]] = True
    shown = shown[1:].view(args.frames, side, side)
    if args.plot is not None:
        from zoo.inference.plot import plot_masks

        plot_masks(views, shown, None if attention is None else attention[0].view_as(shown), args.plot)
    if args.json:
        print_json(
            {
                "video": args.video,
                "type": mask_type,
                "ratio": args.ratio,
                "seed": args.seed,
                "side": side,
                "seconds": [round(float(second), 3) for second in views.seconds[0]],
                "visible": [frame.flatten().nonzero().flatten().tolist() for frame in shown],
            }
        )
        return
    total = args.frames * side**2
    show(
        f"{Path(args.video).name}: {visible_patches} of {total} patches stay visible ({visible_patches / total:.1%}); "
        f"with the class token the student reads {1 + visible_patches} tokens in place of {1 + total}.",
        f"In each frame: {', '.join(str(int(frame.sum())) for frame in shown)}",
        *([] if args.plot is None else [f"Picture: {args.plot}"]),
    )


def _attention(source: str, video: "Tensor", side: int) -> "Tensor":
    """The teacher's attention to the patches of a clip uint8 (1, 3, T, H, W) -> (1, T, side * side)."""
    import torch

    from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD, ClipTeacher

    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    attention: Tensor = ClipTeacher(source)((video / 255 - mean) / std, side).attention
    return attention
