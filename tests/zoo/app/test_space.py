"""docs/app.md: the two files of a Space are what they say, and app.py serves the page."""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "docs/app.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_space_serves_the_page(tmp_path):
    script = next(block for block in BLOCKS if "import zoo" in block)
    assert len(script.split("\n")) <= 4
    (tmp_path / "app.py").write_text(script)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-u", "app.py"], cwd=tmp_path, env=env, text=True, stdout=-1, stderr=-1)
    try:
        assert str(port) in process.stdout.readline()
        assert any("public link" in line for line in process.stdout)  # the last line of the start
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=600) as answer:
            assert b"Video Mamba Zoo" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["app.py"]


def test_its_requirements_are_an_extra_of_this_package():
    requirement = next(block for block in BLOCKS if block.startswith("video-mamba-zoo")).strip()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, extra = re.fullmatch(r"([\w-]+)\[(\w+)\]", requirement).groups()
    assert name == project["name"] and extra in project["optional-dependencies"]
