"""The page of a report in a real browser: narrow and wide, light and dark, without a network."""

import importlib.util
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "callbacks" / "report_run.py"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by kind: 7 classes, 60 classes with long names among them, and a retrieval."""
    spec = importlib.util.spec_from_file_location("report_run", RUN)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    folder = tmp_path_factory.mktemp("reports")
    run.run("action,verb", folder / "few")
    run.run("class", folder / "many", samples=200, classes=60)
    run.run("retrieval", folder / "retrieval", samples=60)
    return {name: folder / name / "known" / "test_0" / "report.html" for name in ("few", "many", "retrieval")}


@pytest.mark.browser
@pytest.mark.parametrize("name", ["few", "many", "retrieval"])
def test_it_fits_and_asks_nobody(chromium, screenshots, pages, name):
    for width, scheme in ((1400, "light"), (1400, "dark"), (380, "light"), (380, "dark")):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, told = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, told=told: told.append(message.text))
        page.goto(pages[name].as_uri())
        page.screenshot(path=screenshots / f"report-{name}-{width}-{scheme}.png", full_page=True)
        assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()] and not told
        assert page.evaluate("document.documentElement.scrollWidth") == width
        pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().right])")
        assert len(pictures) >= 6 and all(natural > 0 for natural, _ in pictures)
        # Wide figures scroll inside their own frame.
        beyond = page.evaluate("[...document.images].filter(i => !i.closest('.wide') && "
                               "i.getBoundingClientRect().right > innerWidth).length")  # fmt: skip
        assert beyond == 0
        light = page.evaluate("getComputedStyle(document.body).backgroundColor").count("255") == 3
        assert light == (scheme == "light")
        shown = page.evaluate("document.querySelector('picture img').currentSrc")
        other = page.evaluate("document.querySelector('picture img').src")
        assert (shown == other) == (scheme == "light")
        page.close()
