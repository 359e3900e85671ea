"""Write the notebooks of docs/notebooks as .ipynb files, which Colab opens from the repository.

    python docs/colab.py           writes docs/notebooks/*.ipynb
    python docs/colab.py --check   says which of them are not those of the .md files beside them

The .md files are the source. The .ipynb files have no results, and their links lead to the repository's pages.
"""

import json
import posixpath
import re
import sys
from pathlib import Path

import jupytext

__all__ = ["notebook"]

NOTEBOOKS = Path(__file__).with_name("notebooks")
REPOSITORY = "https://github.com/video-mamba-zoo/video-mamba-zoo"
BADGE = re.compile(r"\[!\[Run in Colab\].*\n?")
RELATIVE = re.compile(r"(\]\()(?![a-z]+:|#)([^)]+)(\))")


def notebook(path: Path) -> str:
    """Return the text of the .ipynb file that belongs to a notebook in Markdown."""
    cells = []
    for number, cell in enumerate(jupytext.read(path).cells):
        source = cell.source
        if cell.cell_type == "markdown":
            source = RELATIVE.sub(_absolute, BADGE.sub("", source))
        kept: dict = {"id": f"cell-{number}", "cell_type": cell.cell_type, "metadata": {}, "source": source}
        if cell.cell_type == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _absolute(found: re.Match) -> str:
    place = posixpath.normpath(posixpath.join("docs/notebooks", found[2]))
    return f"{found[1]}{REPOSITORY}/blob/main/{place}{found[3]}"


def main(check: bool) -> int:
    stale = []
    for path in sorted(NOTEBOOKS.glob("*.md")):
        target, text = path.with_suffix(".ipynb"), notebook(path)
        if check and not (target.exists() and target.read_text(encoding="utf-8") == text):
            stale.append(target.name)
        elif not check:
            target.write_text(text, encoding="utf-8")
    if stale:
        print(f"Not as in the .md files: {', '.join(stale)}; run python docs/colab.py and commit the result.")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
