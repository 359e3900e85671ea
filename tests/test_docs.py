"""The pages of the top folder and of docs/: links lead somewhere, commands parse, and lines fit a screen."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from zoo.commands.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
WIDTH = 100


def page_id(page: Path) -> str:
    return page.stem


def parts(page: Path) -> tuple[list[str], list[str]]:
    """Lines of text, and lines of code."""
    text, code, inside = [], [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        else:
            (code if inside else text).append(line)
    assert not inside, f"{page.name}: a block of code is not closed"
    return text, code


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces."""
    headings = [line.lstrip("# ") for line in parts(page)[0] if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
    text = "\n".join(parts(page)[0])
    broken = []
    for target in re.findall(r"(?:\]\(\s*|href=\"|src=\")([^)\"\s]+)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_reachable_from_the_readme():
    found, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page not in found:
            found.add(page)
            links = re.findall(r"\]\(([\w./-]+\.md)[)#]", page.read_text(encoding="utf-8"))
            ahead += [file for file in ((page.parent / link).resolve() for link in links) if file in PAGES]
    assert found == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_parse(page):
    """Lines of code that begin with `zoo`, with all their options."""
    lines = [part.strip() for line in parts(page)[1] for part in line.split("&&")]
    for line in lines:
        if re.match(r"zoo [a-z]", line) and "..." not in line:
            _, command, *words = shlex.split(line, comments=True)
            assert command in COMMANDS, line
            parser = argparse.ArgumentParser()
            importlib.import_module(f"zoo.commands.{command}").add_arguments(parser)
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: `{line}` is no command of this zoo")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_fit(page):
    """Outside tables and code; a line that is one long link or picture cannot be broken."""
    width = 120 if page == README else WIDTH
    long = [line for line in parts(page)[0] if len(line) > width]
    assert not [line for line in long if not re.match(r"\s*\||!\[|\s*\S+$", line)]


def test_cited_sections_of_the_protocol_exist():
    """Sources cite "docs/protocol.md, section 5": the numbers stay, in order."""
    headings = re.findall(r"^### (\d+)\. ", (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [str(number) for number in range(1, len(headings) + 1)]
    sources = [file for folder in ("zoo", "lightning_modules", "datamodules", "hub", "tests", "benchmarks")
               for suffix in ("py", "yaml") for file in (ROOT / folder).rglob(f"*.{suffix}")]  # fmt: skip
    for file in sources:
        for numbers in re.findall(r"protocol\.md, sections? ([\d, and]+)", file.read_text(encoding="utf-8")):
            assert set(re.findall(r"\d+", numbers)) <= set(headings), f"{file.relative_to(ROOT)}: section {numbers}"
