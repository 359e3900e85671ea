"""The page of a report: one HTML file that needs no network."""

import base64
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from lightning_modules.report.figures import Both

__all__ = ["Bar", "Picture", "Section", "Shown", "Table", "Tile", "render"]


class Tile(NamedTuple):
    """A number at the head of a page: what it is, the number, and a remark below it."""

    title: str
    value: str
    remark: str = ""


class Bar(NamedTuple):
    """A cell with a share (0..1, nan for none) as a bar and in per cent."""

    share: float


class Table(NamedTuple):
    """Rows of texts, whole numbers and `Bar`s below their headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | Bar]]


class Picture(NamedTuple):
    """A figure, with what it shows for those who do not see it; `wide` ones scroll on a narrow screen."""

    images: Both
    alt: str
    wide: bool = False


class Shown(NamedTuple):
    """A clip: an animated WebP, or None where it cannot be read, its path, and lines about it as (title, text)."""

    webp: bytes | None
    path: str
    lines: Sequence[tuple[str, str]]


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        text: a paragraph below it.
        tiles: numbers.
        pictures: figures, side by side where there is room.
        tables: tables, side by side where there is room.
        clips: clips.
    """

    title: str
    text: str = ""
    tiles: Sequence[Tile] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    clips: Sequence[Shown] = ()


def render(title: str, facts: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML of a page: a title, facts below it, and sections. Whatever texts hold is shown as text."""
    return _template().render(title=title, facts=facts, sections=sections)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.tests["bar"] = lambda cell: isinstance(cell, Bar)
    return environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
