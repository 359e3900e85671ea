"""The filters of docs/_static/models.js above the table of docs/models.md, in Chromium."""

from pathlib import Path

import pytest

from zoo.commands.list import markdown
from zoo.registry import entries

pytestmark = pytest.mark.browser

STATIC = Path(__file__).parents[1] / "docs" / "_static"


def table() -> str:
    """The table of `zoo list --markdown` as the site's HTML has it."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(entries())]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{cell.strip('`')}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f'<div class="table-wrapper"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def test_filters_show_the_models_that_match(chromium, tmp_path):
    page_file = tmp_path / "models.html"
    page_file.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width">'
        f"<style>{(STATIC / 'site.css').read_text()}</style><script>{(STATIC / 'models.js').read_text()}</script>"
        f'<section id="all-models"><h2>All models</h2>{table()}</section>'
    )
    page = chromium.new_page(viewport={"width": 380, "height": 700})
    page.goto(page_file.as_uri())
    names = {entry.name for entry in entries()}
    assert page.locator("output").inner_text() == f"{len(names)} of {len(names)} models"
    assert page.evaluate("document.documentElement.scrollWidth") <= 380

    def shown() -> set[str]:
        return {row.locator("td").first.inner_text() for row in page.locator("tbody tr:visible").all()}

    page.select_option("select[name=family]", "MUSE")
    assert shown() == {name for name in names if name.startswith("muse-")}
    page.select_option("select[name=data]", "msvd")
    assert shown() == {"muse-vit-b32-msvd", "muse-vit-b16-msvd"}
    assert page.locator("output").inner_text() == f"2 of {len(names)} models"
    page.select_option("select[name=family]", "")
    page.select_option("select[name=data]", "")
    page.select_option("select[name=weights]", "downloaded")
    assert shown() == {entry.name for entry in entries() if entry.weights and entry.weights.repo_id}
    page.select_option("select[name=weights]", "shipped")
    page.select_option("select[name=family]", "VideoMamba")
    assert shown() == {"videomamba-nano-motion"}
    page.close()
