"""Docstrings of this project as reStructuredText, which autodoc expects.

They are Google style with what Markdown brings: tables, code in single backticks, and indented blocks for layouts of
files and drawings.
"""

import re
from typing import Any

from sphinx.application import Sphinx

__all__ = ["to_rest"]

_SECTION = re.compile(r"(Args|Attributes|Example|Examples|Note|Raises|Returns|Yields):\s*$")
_CODE = re.compile(r"(``.*?``|`[^`]*`)")


def to_rest(lines: list[str]) -> list[str]:
    """Return the lines of a docstring with its Markdown as reStructuredText.

    Args:
        lines: those of one docstring, without its common indentation.
    """
    out: list[str] = []
    i = 0
    inside = False  # one of Google's sections, whose content is indented
    while i < len(lines):
        line = lines[i]
        if line and not line[0].isspace():
            inside = bool(_SECTION.match(line))
        indented = line.startswith("    ") and (not out or not out[-1].strip())
        if indented and not inside:
            if not _last(out).endswith("::"):
                out += ["::", ""]
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                out.append(lines[i])
                i += 1
            out.append("")
        elif line.lstrip().startswith("|"):
            rows = []
            while i < len(lines) and lines[i].lstrip().startswith("|"):
                rows.append(lines[i])
                i += 1
            out += ["", *_table(rows), ""]
        else:
            out.append(_escape(line))
            i += 1
    return out


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")


def _table(rows: list[str]) -> list[str]:
    """A Markdown table as a list-table; its second row is the line below the header."""
    indent = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [cells[0], *cells[2:]]:
        for i, cell in enumerate(row):
            lines.append(f"   {'  ' if i else '* '}- {_escape(cell)}".rstrip())
    return [indent + line if line else line for line in lines]


def _escape(text: str) -> str:
    """Stars and trailing underscores of plain text mean themselves."""
    parts = _CODE.split(text)
    return "".join(p if i % 2 else re.sub(r"(?<!\\)(\*|_(?!\w))", r"\\\1", p) for i, p in enumerate(parts))


def _on_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rest(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _on_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
