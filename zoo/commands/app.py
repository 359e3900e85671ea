"""`zoo app`: a page in the browser to classify clips, search an index and ask about a video."""

import argparse
import socket

from zoo.errors import ZooError
from zoo.limits import check_range

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo app                                                the shipped model, no network needed
  zoo app videomamba-ti-k400 runs/mine/version_0         several models, to choose from
  zoo app --index my.index                               search what `zoo index` made
  zoo app my-mambavl                                     ask about a video too
  zoo app --host 0.0.0.0 --max-mb 50 --max-minutes 2     for everybody on your network
"""

PORTS = (1, 65_535)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo app`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="registered names, model folders, runs, .ckpt files, or Hub "
        "repositories (default without --index: videomamba-nano-motion)",
    )  # fmt: skip
    parser.add_argument("--index", metavar="INDEX", help="what `zoo index` made, to search it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.add_argument(
        "--max-mb", type=int, default=200, metavar="MB", help="largest file that may be uploaded (default 200)"
    )
    parser.add_argument("--max-minutes", type=float, default=10.0, metavar="MINUTES", help="longest video (default 10)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    check_range("--port", args.port, PORTS)
    import zoo.app  # noqa: F401  (raises where Gradio is missing)

    _check_address(args.host, args.port)
    from zoo.app.page import web_app

    page = web_app(args.models, args.index, device=args.device, max_megabytes=args.max_mb, max_minutes=args.max_minutes)
    page.launch(server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"Open http://{shown}:{args.port} in a browser; Ctrl-C ends the page.", flush=True)
    try:
        page.server.thread.join()
    finally:
        page.close(verbose=False)


def _check_address(host: str, port: int) -> None:
    """Refuse an address before the models are loaded.

    Raises:
        ZooError: something else listens there, or it is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ZooError(f"The page cannot listen on {host}, port {port} ({reason}); choose another --port or "
                       "--host.") from error  # fmt: skip
