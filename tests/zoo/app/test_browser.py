"""The page of `zoo app` in a real browser: labels, search, questions, broken files, narrow windows, no other hosts."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from datamodules.synthetic.writing import write_video

pytestmark = pytest.mark.browser
WAIT_MS = 600_000


@pytest.fixture(scope="module")
def address(serve, videos, indices, mambavl) -> Iterator[str]:
    """A page with all three tabs, which takes files of 1 MB and videos of 30 s."""
    with serve("videomamba-nano-motion", mambavl, index=indices.clips, max_megabytes=1, max_minutes=0.5) as address:
        yield address


@pytest.fixture(scope="module")
def text_address(serve, indices) -> Iterator[str]:
    with serve(index=indices.texts) as address:
        yield address


@pytest.fixture
def visit(chromium):
    """``visit(address, **context)``: an open page; whatever left loopback, and errors of scripts, fail the test."""
    wrong, contexts = [], []

    def visiting(address: str, **options) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)

        def look(request) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                wrong.append(request.url)

        page.on("request", look)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        expect(page.locator("#zoo-title")).to_be_visible(timeout=WAIT_MS)
        return page

    yield visiting
    for context in contexts:
        context.close()
    assert not wrong


def upload(page: Page, where: str, file) -> None:
    page.locator(f"{where} input[type=file]").set_input_files(file)
    expect(page.locator(f"{where} video")).to_be_visible(timeout=WAIT_MS)


def label(page: Page, where: str = "#zoo-classified"):
    """The best one, once it is there."""
    return expect(page.locator(f"{where} .zoo-bars li").first)


def test_classify(visit, address, videos, screenshots):
    page = visit(address)
    upload(page, "#zoo-clip", videos / "move_left.mp4")
    label(page).to_contain_text(re.compile(r"move_left\s*[0-9.]+%"), timeout=WAIT_MS)
    assert page.locator("#zoo-classified .zoo-bars li").count() == 5
    assert page.locator("#zoo-classified .zoo-strip").count() == 0
    widths = page.eval_on_selector_all("#zoo-classified img", "pictures => pictures.map(one => one.naturalWidth)")
    assert len(widths) == 6 and min(widths) > 0
    page.screenshot(path=screenshots / "app_classify.png")


def test_heat_on_demand(visit, address, videos, screenshots):
    page = visit(address)
    button = page.get_by_role("button", name="Show what supports it")
    expect(button).to_have_count(0)
    upload(page, "#zoo-clip", videos / "move_right.mp4")
    button.click()
    heading = page.locator("#zoo-seen h3")
    expect(heading).to_have_text(re.compile(r"What supports move_right \([0-9.]+% in this clip\)"), timeout=WAIT_MS)
    widths = page.eval_on_selector_all("#zoo-seen img", "pictures => pictures.map(one => one.naturalWidth)")
    assert len(widths) == 8 and min(widths) > 0
    page.screenshot(path=screenshots / "app_heat.png", full_page=True)
    page.locator("#zoo-class input").click()
    page.get_by_role("option").nth(1).click()
    button.click()
    expect(heading).not_to_contain_text("move_right", timeout=WAIT_MS)
    page.locator("#zoo-clip").get_by_label("Clear").click()
    expect(heading).to_have_count(0, timeout=WAIT_MS)
    expect(button).to_have_count(0)


def test_a_long_video_has_a_timeline_that_plays(visit, address, screenshots):
    page = visit(address, color_scheme="dark")
    page.get_by_text("four motions").click()
    stretches = page.locator("#zoo-classified .zoo-segments li")
    expect(stretches.first).to_contain_text("0:00.0", timeout=WAIT_MS)
    assert page.locator("#zoo-classified .zoo-strip span").count() == stretches.count() >= 4
    later = stretches.nth(2)
    start = float(later.locator("[data-seconds]").get_attribute("data-seconds"))
    later.click()
    page.wait_for_function(f"document.querySelector('#zoo-clip video').currentTime > {start + 0.2}", timeout=WAIT_MS)
    assert page.evaluate("document.querySelector('#zoo-clip video').currentTime") < start + 10
    assert page.evaluate("document.body.classList.contains('dark')")
    page.screenshot(path=screenshots / "app_timeline_dark.png", full_page=True)


def test_search_by_a_clip_and_play(visit, address, videos, screenshots):
    page = visit(address)
    page.get_by_role("tab", name="Search").click()
    upload(page, "#zoo-like", videos / "move_left.mp4")
    page.get_by_role("button", name="Search", exact=True).click()
    figures = page.locator("#zoo-found figure")
    expect(figures).to_have_count(9, timeout=WAIT_MS)
    expect(figures.first).to_contain_text("move_left.mp4")
    film = figures.filter(has_text=re.compile(r"film\.mp4.*0:(06|12|18)\.0")).first
    moment = film.locator("video")
    start = float(re.search(r"#t=([0-9.]+),", moment.get_attribute("src"))[1])
    assert start in (6, 12, 18)
    page.wait_for_function("[...document.querySelectorAll('#zoo-found video')].every(one => one.readyState >= 1)")
    assert moment.evaluate("video => video.currentTime") == pytest.approx(start, abs=0.1)
    page.screenshot(path=screenshots / "app_search.png")
    moment.evaluate("video => video.play()")
    times = moment.evaluate(
        """video => new Promise(resolve => {
             const times = [];
             video.addEventListener("timeupdate", () => { times.push(video.currentTime);
               if (video.currentTime > START + 0.5) resolve(times); });
           })""".replace("START", str(start))
    )
    assert min(times) >= start - 0.1 and times == sorted(times)


def test_search_by_a_text(visit, text_address, screenshots):
    page = visit(text_address)
    assert page.get_by_role("tab").all_inner_texts() == ["Search"]
    query = page.locator("#zoo-query").get_by_role("textbox")
    query.fill("a <b>red</b> circle {{moves}} ${left}")
    query.press("Enter")
    expect(page.locator("#zoo-found figure")).to_have_count(9, timeout=WAIT_MS)
    expect(page.locator("#zoo-found h3")).to_have_text("a <b>red</b> circle {{moves}} ${left}")


def test_ask(visit, address, videos, screenshots):
    page = visit(address)
    page.get_by_role("tab", name="Ask").click()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#zoo-answered")).to_contain_text("Add a video")
    upload(page, "#zoo-asked", videos / "grow.mp4")
    page.locator("#zoo-question").get_by_role("textbox").fill("what is the person doing?")
    page.get_by_role("button", name="Ask", exact=True).click()
    label(page, "#zoo-answered").to_contain_text(re.compile(r"(verb|noun|action) [0-9]+ \((verb|noun|action)\)"),
                                                timeout=WAIT_MS)  # fmt: skip
    expect(page.locator("#zoo-answered h3")).to_have_text("what is the person doing?")
    page.screenshot(path=screenshots / "app_ask.png")


def test_mistakes_are_sentences(visit, address, videos, tmp_path, screenshots):
    page = visit(address)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((videos / "grow.mp4").read_bytes()[:700])
    long = tmp_path / "long.mp4"
    write_video(long, np.zeros((31, 32, 32, 3), np.uint8), 1)
    problem = page.locator("#zoo-classified [role=alert]")
    for file, sentence in ((broken, r"^broken\.mp4 .+\.$"), (long, r"^long\.mp4 is 0:31\.0 long, and .+\.$")):
        page.locator("#zoo-clip input[type=file]").set_input_files(file)
        expect(problem).to_have_text(re.compile(sentence), timeout=WAIT_MS)
        assert "/" not in problem.inner_text().replace("zoo predict", "")
        assert "Traceback" not in page.content()
        page.screenshot(path=screenshots / f"app_{file.stem}.png")
        page.locator("#zoo-clip").get_by_label("Clear").click()
        expect(page.locator("#zoo-classified")).to_contain_text("Upload a video", timeout=WAIT_MS)
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_200_000))
    page.locator("#zoo-clip input[type=file]").set_input_files(large)
    expect(page.get_by_text("exceed the maximum allowed size of 1.0 Mb")).to_be_visible(timeout=WAIT_MS)
    page.screenshot(path=screenshots / "app_large.png")


def test_a_narrow_window(visit, address, screenshots):
    for scheme in ("light", "dark"):
        page = visit(address, viewport={"width": 380, "height": 800}, color_scheme=scheme)
        page.get_by_text("four motions").click()
        label(page).to_be_visible(timeout=WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        page.screenshot(path=screenshots / f"app_narrow_{scheme}.png", full_page=True)


def test_the_command(visit, tmp_path):
    """As a user starts it, in an empty folder, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [Path(sys.executable).with_name("zoo"), "app", "--port", str(port)]
    process = subprocess.Popen(command, text=True, stdout=-1, stderr=-1, cwd=tmp_path)
    try:
        address = process.stdout.readline().split()[1]
        page = visit(address)
        page.get_by_text("turn clockwise").click()
        label(page).to_contain_text("turn_clockwise", timeout=WAIT_MS)
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert not list(tmp_path.iterdir())


def test_a_clip_of_the_webcam(chromium, address, screenshots):
    program = chromium.browser_type
    quiet = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with closing(program.launch(executable_path=path, args=quiet)) as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        page.locator("#zoo-clip").get_by_label("Capture from camera").click()
        page.locator("#zoo-clip").get_by_text("Click to Access Webcam").click()
        page.wait_for_function("document.querySelector('#zoo-clip video')?.videoWidth > 0")
        page.locator("#zoo-clip").get_by_title("start recording").click()
        page.wait_for_timeout(2000)  # what is recorded
        page.screenshot(path=screenshots / "app_webcam.png")
        page.locator("#zoo-clip").get_by_title("stop recording").click()
        label(page).to_be_visible(timeout=WAIT_MS)
