"""The table of what `gpu_first_contact.sh` left in a folder.

python benchmarks/first_contact.py FOLDER
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

NUMBERS = ("forward_ms", "graph_ms", "both_ms", "milliseconds", "of_floor", "both_of_floor", "peak_mib")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    console = Console(width=130)
    tables = list(read(folder))
    for table in tables:
        console.print(table)
    status = folder / "status.tsv"
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        name, code = line.split("\t")
        outcome = {"0": "done", "124": "cut off at its limit", "137": "cut off at its limit"}.get(
            code, f"status {code}"
        )
        console.print(f"{name}: {outcome}, see {escape(str(folder / name))}.log", highlight=False)
    if not tables:
        print(f"No step left numbers in {folder}; its .log files say why.", file=sys.stderr)
    return 0 if tables else 1


def read(folder: Path) -> Iterator[Table]:
    """One table for each file that has records."""
    for name, title, keys, ours in (
        ("kernels", "Kernels, ms", ("kernel", "size", "frames", "batch", "backend"), "triton"),
        ("throughput", "Networks, ms", ("model", "frames", "batch", "phase"), None),
        ("sweep", "Divisions of the scan, ms", ("size", "frames", "batch", "change"), None),
    ):
        path = folder / f"{name}.json"
        if path.is_file() and (result := json.loads(path.read_text(encoding="utf-8")))["records"]:
            device = result["machine"]["device"]
            yield drawn(f"{title}, {device}, torch {result['machine']['torch']}", keys, result["records"], ours)


def drawn(title: str, keys: tuple[str, ...], records: list[dict[str, Any]], ours: str | None) -> Table:
    """The records as rows; beside ours, how many times as long the others take."""
    numbers = [key for key in NUMBERS if any(record.get(key) is not None for record in records)]
    table = Table(
        *keys, *numbers, *(["forward / ours", "both / ours"] if ours else []), "left out", title=escape(title)
    )
    best = {place(record, keys): record for record in records if ours and record.get("backend") == ours}
    for record in records:
        row = [str(record[key]) for key in keys]
        row += ["" if record.get(key) is None else f"{record[key]:.3g}" for key in numbers]
        if ours:
            mine = best.get(place(record, keys), {})
            row += [
                f"{record[key] / mine[key]:.2f}" if record.get(key) and mine.get(key) else ""
                for key in ("forward_ms", "both_ms")
            ]
        table.add_row(*map(escape, row), escape(record.get("skipped") or ""))
    return table


def place(record: dict[str, Any], keys: tuple[str, ...]) -> tuple:
    return tuple(str(record[key]) for key in keys if key != "backend")


if __name__ == "__main__":
    sys.exit(main())
