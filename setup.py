"""Turn links of README.md into addresses, since a package index shows that page alone; pyproject.toml has the rest."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def address(link: re.Match) -> str:
    """Point to the files of the tag that this version has in the repository."""
    kind = "raw" if link[2].endswith((".gif", ".jpg", ".png", ".svg", ".webp")) else "blob"
    return f"{link[1]}{PROJECT['urls']['Repository']}/{kind}/v{PROJECT['version']}/{link[2]}"


README = (HERE / "README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"(\]\(|href=\"|src=\")(?![a-z]+:|#)([^)\"\s]+)", address, README),
    long_description_content_type="text/markdown",
)
