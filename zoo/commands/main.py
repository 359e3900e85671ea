"""Entry point of the `zoo` command: parses the command line and hands over to the subcommand's module.

A subcommand is a module of this package, named in `COMMANDS`, with two functions: ``add_arguments(parser)`` and
``run(args)``. Only the chosen one is imported, which keeps `zoo list` and every `--help` fast.

Exit status: 0 success, 1 the request could not be served (one sentence on standard error), 2 the command line is wrong,
130 interrupted. Unexpected errors keep their traceback.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from zoo.printable import printable, printable_warnings

__all__ = ["COMMANDS", "is_foreseen", "main", "report"]

COMMANDS = {
    "list": "list the models, with their scores and sizes",
    "info": "show all there is to know about one model",
    "predict": "say what happens in a video",
    "index": "make an index of your videos, to search them by text",
    "search": "find the moments in indexed videos that fit a text",
    "ask": "ask a question about a video",
    "app": "open a page in the browser: classify clips, search, ask",
    "live": "say what happens in a stream, as it comes",
    "explain": "show which places and times of a video support a class",
    "extract": "write features of long videos, to train on",
    "recipe": "print a training recipe, or list them",
    "convert": "turn a checkpoint into a folder with safe weights and its config",
    "export": "write a model as an ONNX file or a PyTorch program, to run elsewhere",
    "push": "share a trained model on the Hugging Face Hub",
    "pull": "download models ahead of time, for work without a connection",
    "shard": "write a data set as tar shards, to train on from any storage",
    "masks": "show what masked pretraining leaves visible of a video",
}

_EXAMPLES = """\
examples:
  zoo list                                   every model
  zoo list 'videomamba-s*' --dataset k400    some of them
  zoo info videomamba-s-k400                 one of them, and how to load it
  zoo predict videomamba-nano-motion clip.mp4
  zoo push runs/finetune/version_0 me/my-actions
  zoo predict --help                         the options of a command
"""

_PACKAGES = {"zoo", "lightning_modules", "datamodules", "hub"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `zoo` command; exits the process if it fails.

    Args:
        argv: Words of the command line after `zoo`; None: those of this process.
    """
    if hasattr(sys.stdout, "reconfigure"):  # names that the terminal cannot encode must not fail
        sys.stdout.reconfigure(errors="backslashreplace")
    report(lambda: _run(sys.argv[1:] if argv is None else list(argv)), program="zoo")


def report(command: Callable[[], object], *, program: str, usage_errors: tuple[type[Exception], ...] = ()) -> None:
    """Call a command; turn a foreseen error into one sentence on standard error and an exit status.

    Args:
        command: What to run.
        program: Name before the sentence.
        usage_errors: Errors of the command line, with exit status 2 instead of 1.

    Raises:
        SystemExit: The command failed for a foreseen reason; see the head of this module for the statuses.
    """
    try:
        with printable_warnings():
            command()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has left; without this the interpreter complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # whose mistake it is, is decided by its type
        wrong_usage = isinstance(error, usage_errors)
        if not wrong_usage and not is_foreseen(error):
            raise
        print(f"{program}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2 if wrong_usage else 1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Version(argparse.Action):
    """Reads the version only if it is asked for: metadata of packages take longer to find than `zoo list` has."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    @override
    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"{parser.prog} {version('video-mamba-zoo')}")
        parser.exit()


def _run(argv: list[str]) -> None:
    args = _parser(argv).parse_args(argv)
    try:
        importlib.import_module(f"zoo.commands.{args.command}").run(args)
    except RuntimeError as error:
        from hub.errors import UnreachableError

        # None: the command has the option, and it was not used.
        if isinstance(error, UnreachableError) and getattr(args, "checkpoint", "") is None:
            raise UnreachableError(f"{str(error).rstrip('.')}, or name a file you have with --checkpoint.") from error
        raise


def _parser(argv: Sequence[str]) -> _Parser:
    parser = _Parser(
        prog="zoo",
        description="A zoo of Mamba video models: find one, look at it, use it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            importlib.import_module(f"zoo.commands.{name}").add_arguments(subparser)
    return parser


def is_foreseen(error: Exception) -> bool:
    """Whether the message was written for the user: an error type of our packages, or of the system.

    For a caller's mistake our packages raise their own subclasses of ValueError and the like. A builtin one is a bug to
    report, with its traceback.
    """
    types = type(error).__mro__  # a user's own module may raise a subclass of ours
    return isinstance(error, OSError) or any(kind.__module__.partition(".")[0] in _PACKAGES for kind in types)


if __name__ == "__main__":
    main()
