"""How long a test takes says nothing: machines are busy. Limits only end what hangs, and no test reads a stopwatch."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SOURCES = sorted(path for path in FOLDER.rglob("test_*.py") if path.name != Path(__file__).name)
SECONDS = 600


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_nothing_depends_on_the_machine(path):
    text = path.read_text(encoding="utf-8")
    limits = re.findall(r"\b(?:timeout=|monotonic\(\) \+ |join\()(\d+)\b", text)
    assert min(map(int, limits), default=SECONDS) >= SECONDS, "a process or thread has less than ten minutes"
    assert not re.search(r"time\.(perf_counter|process_time|time)\(|cpu_count\(|getaffinity\(", text)
