"""`zoo live`: what happens in a stream, as it comes."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.commands.console import show
from zoo.limits import check_range, check_window_and_step
from zoo.printable import clock, printable

if TYPE_CHECKING:
    from zoo.inference.live import Moment

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo live videomamba-nano-motion clip.mp4               a file, at its own speed
  zoo live my-model 0                                    the first camera
  zoo live my-model rtsp://user:password@camera/stream   a network camera
  zoo live my-model udp://:5000 --json                   MPEG-TS that is sent here; a JSON line per window

A line is printed when the label changes. Ctrl-C ends it, with status 130.
"""
_RECONNECT_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo live`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", help="classifier: registered name, model folder, run, .ckpt, or Hub repository")
    parser.add_argument("source", help="camera (0, /dev/video0), address (rtsp://, udp://, http://, https://), or file")
    parser.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="length of a clip (default: as of zoo predict)")
    parser.add_argument("--step", type=float, metavar="SECONDS",
                        help="from one clip to the next at least (default: half a window)")  # fmt: skip
    parser.add_argument("--reconnect", type=float, default=_RECONNECT_SECONDS, metavar="SECONDS",
                        help="how long to look for a stream that breaks off (default 60; 0: end with it)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per window")


def run(args: argparse.Namespace) -> None:
    """Print labels until the stream ends, or Ctrl-C."""
    check_window_and_step(args.window, args.step, prefix="--")

    from zoo.build import load
    from zoo.inference.live import RECONNECT, live
    from zoo.inference.predict import to_device

    check_range("--reconnect", args.reconnect, RECONNECT)
    model = to_device(load(args.model, checkpoint=args.checkpoint), args.device)
    before = None
    moments = live(model, args.source, window=args.window, step=args.step, reconnect=args.reconnect)
    with _warnings_on_stderr():
        for moment in moments:
            if args.json:
                line = {name: round(v, 4) if isinstance(v, float) else v for name, v in moment._asdict().items()}
                print(json.dumps(line), flush=True)
            elif moment.label != before:
                show(_line(moment))
                sys.stdout.flush()
            before = moment.label


def _line(moment: "Moment") -> str:
    late = f"lag {moment.lag:.1f} s, {moment.dropped:.0%} dropped"
    return f"{clock(moment.end):>9}  {printable(moment.label)}  {moment.probability:.1%}  ({late})"


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Each as a sentence, as often as it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(f"zoo: {printable(str(message))}", file=sys.stderr, flush=True)
        yield
