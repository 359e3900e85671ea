"""The pages of the top folder and of docs/: links lead somewhere, lines fit a screen, and the site has every page.

What the code on the pages does is up to tests/test_snippets.py.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
INDEX = ROOT / "docs" / "index.md"
SITE = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [*SITE, *sorted(ROOT.glob("*.md"))]
WIDTH = 100


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


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


def test_every_page_is_reachable_from_the_readme_or_the_start_page():
    found, ahead = set(), [README, INDEX]
    while ahead:
        page = ahead.pop()
        if page not in found:
            found.add(page)
            links = re.findall(r"\]\(([\w./-]+\.md)[)#]", page.read_text(encoding="utf-8"))
            ahead += [file for file in ((page.parent / link).resolve() for link in links) if file in PAGES]
    assert not sorted(page_id(page) for page in set(PAGES) - found)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_fit(page):
    """Outside tables and code; a line that is one long link or picture cannot be broken."""
    width = 120 if page == README else WIDTH
    long = [line for line in parts(page)[0] if len(line) > width]
    assert not [line for line in long if not re.match(r"\s*\||\[?!\[|\[[^]]*\]\(\S+$|\s*\S+$", line)]


def test_the_site_has_every_page():
    """In the tables of contents of the start page and of the API reference."""
    listed = set()
    for page in (INDEX, ROOT / "docs" / "api" / "index.md"):
        for block in re.findall(
            r"^```{toctree}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            names = [re.sub(r".*<(.+)>", r"\1", line) for line in block.splitlines() if line and line[0] != ":"]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert listed | {INDEX} == set(SITE)


@pytest.mark.parametrize(
    "package", ["zoo", "hub", "datamodules", "lightning_modules", "lightning_modules.nets", "lightning_modules.ops"]
)
def test_the_api_reference_has_every_public_name(package):
    names = _module("docs/extensions/public_names.py")
    page = (ROOT / "docs" / "api" / f"{package.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    named = names.named_on(page + names.rest_of(page, package), package)
    assert sorted(named) == sorted(importlib.import_module(package).__all__)


def test_a_new_public_name_stands_at_the_end_of_its_page():
    names = _module("docs/extensions/public_names.py")
    page = (ROOT / "docs" / "api" / "datamodules.md").read_text(encoding="utf-8")
    short = page.replace(".. autoclass:: datamodules.COIN\n", "").replace(
        ".. autoexception:: datamodules.DataError\n", ""
    )
    more = names.rest_of(short, "datamodules")
    assert more.startswith("\n## More\n\n```{eval-rst}\n.. auto") and more.endswith("\n\n```\n")
    assert {".. autoclass:: datamodules.COIN", ".. autoexception:: datamodules.DataError"} <= set(more.splitlines())
    assert names.rest_of(page + more, "datamodules") == ""


def test_notebooks_for_colab_are_those_of_the_site():
    colab = _module("docs/colab.py")
    for page in (ROOT / "docs" / "notebooks").glob("*.md"):
        assert page.with_suffix(".ipynb").read_text(encoding="utf-8") == colab.notebook(page), (
            "run python docs/colab.py"
        )


def test_the_check_of_a_site_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"></p><a href="#here"></a><a href="b.html#there">b</a><a href="https://x.org">'
    )
    (tmp_path / "b.html").write_text(
        '<a href="c.html"></a><script src="https://x.org/s.js"></script><img src="data:,">'
    )
    assert _module("docs/check_site.py").faults(tmp_path) == [
        "a.html: there is no place b.html#there", "b.html: there is no c.html", "b.html loads https://x.org/s.js",
    ]  # fmt: skip


def test_docstrings_become_restructured_text():
    to_rest = _module("docs/extensions/docstrings.py").to_rest
    text = "Files:\n\n| a* | b |\n|---|---|\n| `c*` | v_ |\n\n    root/  *.mp4\n\nArgs:\n    x: of *y*.\n        - z"
    assert to_rest(text.splitlines()) == [
        "Files:", "", "",
        ".. list-table::", "   :header-rows: 1", "", "   * - a\\*", "     - b", "   * - `c*`", "     - v\\_", "", "",
        "::", "", "    root/  *.mp4", "", "",
        "Args:", "    x: of \\*y\\*.", "        - z",
    ]  # fmt: skip


def _module(path: str) -> object:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cited_sections_of_the_protocol_exist():
    """Sources cite "docs/protocol.md, section 5": the numbers stay, in order."""
    headings = re.findall(r"^### (\d+)\. ", (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [str(number) for number in range(1, len(headings) + 1)]
    sources = [file for folder in ("zoo", "lightning_modules", "datamodules", "hub", "tests", "benchmarks")
               for suffix in ("py", "yaml") for file in (ROOT / folder).rglob(f"*.{suffix}")]  # fmt: skip
    for file in sources:
        for numbers in re.findall(r"protocol\.md, sections? ([\d, and]+)", file.read_text(encoding="utf-8")):
            assert set(re.findall(r"\d+", numbers)) <= set(headings), f"{file.relative_to(ROOT)}: section {numbers}"
