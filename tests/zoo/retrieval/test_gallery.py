"""The page of `zoo search --html` in Chromium, with clips that it plays and clips that it cannot play."""

import shutil

import av
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import hub
from datamodules.synthetic.motion import CLASSES, clip_spec, render
from datamodules.synthetic.writing import write_video
from lightning_modules.tasks.retrieval import TextVideoRetrieval
from zoo.commands.main import main
from zoo.retrieval.gallery import write_gallery
from zoo.retrieval.table import Hit, Index

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 32,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 32, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 16, **TOWER},
}
ODD_NAME = '<b>rock & "roll" it\'s 🎸 100% #1 &amp;.mp4'
QUERIES = ['a <i>red</i> & "blue" circle 🔴', "it's moving </script><script>document.title = 'no'</script>"]
FPS = 12


def clip(number, size=(160, 120), frames=36):
    return render(clip_spec(7, "test", number, CLASSES[number % len(CLASSES)], size=size, num_frames=frames))


def write_avi(path, frames):
    """MPEG-4 part 2, which browsers do not play."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """found.html beside my.index and videos/: equal names in three folders, an odd name, a film of two stretches, one
    that stands on end, a GIF, an AVI, one of a single frame, and one that is gone."""
    folder = tmp_path_factory.mktemp("gallery")
    videos = folder / "videos"
    for number, name in enumerate(["one/kitchen/clip.mp4", "two/kitchen/clip.mp4", "clip.mp4", ODD_NAME]):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(videos / name, clip(number), FPS)
    write_video(videos / "film.mp4", np.concatenate([clip(4), clip(5)]), FPS)
    write_video(videos / "standing.mp4", clip(6, (90, 160)), FPS)
    write_video(videos / "picture.mp4", clip(7, frames=4)[:1], FPS)
    write_video(videos / "gone.mp4", clip(7, frames=4), FPS)
    write_avi(videos / "old.avi", clip(8))
    first, *others = (Image.fromarray(frame) for frame in clip(9, frames=12))
    first.save(videos / "moving.gif", save_all=True, append_images=others, duration=80, loop=0)
    torch.manual_seed(0)
    hub.save(TextVideoRetrieval(CLIP, "mean", num_frames=4), folder / "model")
    index = str(folder / "my.index")
    main(["index", str(folder / "model"), str(videos), "-o", index, "--window", "3", "--workers", "0"])
    shutil.move(videos / "gone.mp4", folder / "gone")
    main(["search", index, *QUERIES, "--topk", "20", "--html", str(folder / "found.html")])
    return folder


@pytest.fixture
def open_page(chromium, folder):
    """`open_page(width, scheme)`: found.html; whatever goes wrong in the page fails the test."""
    pages, wrong = [], []

    def opened(width=1400, scheme="light", name="found.html"):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(600_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto((folder / name).as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert not wrong


STRETCHES = 11

CONTRAST = """selector => {
  const shade = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const here = shade(getComputedStyle(document.querySelector(selector)).color);
  const behind = shade(getComputedStyle(document.body).backgroundColor);
  return (Math.max(here, behind) + 0.05) / (Math.min(here, behind) + 0.05);
}"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "columns"), [(380, 2), (1400, 4)])
def test_the_page_fits_and_says_what_was_found(open_page, screenshots, width, columns, scheme):
    page = open_page(width, scheme)
    page.evaluate("Promise.all([...document.images].map((image) => (image.loading = 'eager', image.decode())))")
    page.screenshot(path=screenshots / f"search-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lefts = {box.bounding_box()["x"] for box in page.query_selector_all("section:first-of-type figure")}
    assert len(lefts) == columns
    for frame in page.query_selector_all(".frame"):
        box = frame.bounding_box()
        assert box["width"] == pytest.approx(1.6 * box["height"], abs=1)

    assert page.title() == ", ".join(QUERIES)
    assert page.inner_text("h1") == f"{2 * STRETCHES} results"
    index, model = (page.locator("header bdi").nth(number).inner_text() for number in range(2))
    assert (
        index.endswith("my.index") and model.endswith("model") and f"{STRETCHES} stretches" in page.inner_text("header")
    )
    for number, query in enumerate(QUERIES):
        section = page.locator("section").nth(number)
        assert section.locator("h2 bdi").inner_text() == query
        names = section.locator(".name").all_inner_texts()
        assert len(names) == STRETCHES and names.count("clip.mp4") == 3 and names.count("film.mp4") == 2
        assert names.count(ODD_NAME) == 1
        beside = {tuple(figure.locator(".where").all_inner_texts()) for figure in section.locator("figure").all()}
        assert beside == {(), ("videos/one/kitchen",), ("videos/two/kitchen",), ("videos",)}
        assert section.locator("text=This file cannot be read any more.").count() == 1
    assert page.evaluate(CONTRAST, ".when") >= 4.5 and page.evaluate(CONTRAST, ".name") >= 7
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 252, 253)"
    assert dark == (scheme == "dark")
    assert page.locator("video[controls]").count() == 0


@pytest.mark.browser
def test_pointing_plays_the_stretch_again_and_again(open_page, screenshots):
    page = open_page()
    film = page.locator("video[aria-label^='film.mp4']").nth(1)
    start, end = (float(film.get_attribute(f"data-{name}")) for name in ("start", "end"))
    assert (start, end) in [(0, 3), (3, 6)]
    film.evaluate("""video => {
      video.seen = []; video.turns = 0;
      const look = () => {
        const last = video.seen.at(-1);
        if (last !== undefined && video.currentTime < last - 1) video.turns += 1;
        if (!video.paused && video.readyState > 1) video.seen.push(video.currentTime);
        requestAnimationFrame(look);
      };
      look();
    }""")
    film.hover()
    page.wait_for_function("video => video.turns >= 2", arg=film.element_handle())
    page.screenshot(path=screenshots / "search-hover.png")
    seen = film.evaluate("video => video.seen")
    assert start - 0.01 <= min(seen) < start + 1 and end - 1 < max(seen) < end + 0.5
    assert film.evaluate("video => [video.controls, video.muted, video.loop]") == [False, True, False]
    page.mouse.move(2, 2)
    assert film.evaluate("video => video.paused")

    other = page.locator("video[aria-label^='standing.mp4']").first
    film.click()
    assert film.evaluate("video => video.controls && !video.paused")
    page.screenshot(path=screenshots / "search-click.png")
    page.mouse.move(2, 2)
    assert film.evaluate("video => video.controls && !video.paused")  # goes on until a click elsewhere
    other.click()
    assert not film.evaluate("video => video.controls || !video.paused") and other.evaluate("video => video.controls")
    page.locator("h1").click()
    assert page.locator("video[controls]").count() == 0

    other.focus()
    page.wait_for_function("video => !video.paused && video.currentTime > 0", arg=other.element_handle())
    page.keyboard.press("Enter")
    assert other.evaluate("video => video.controls")
    page.keyboard.press("Escape")
    assert not other.evaluate("video => video.controls || !video.paused")


@pytest.mark.browser
def test_whole_files_play_again_too(open_page):
    page = open_page()
    whole = page.locator("video[aria-label^='standing.mp4']").first
    whole.evaluate("""video => { video.turns = 0; video.addEventListener("seeked", () => { video.turns += 1; }); }""")
    whole.hover()
    page.wait_for_function("video => video.turns >= 3 && !video.paused", arg=whole.element_handle())


@pytest.mark.browser
def test_what_a_browser_cannot_play_moves_all_the_same(open_page, folder):
    page = open_page()
    old = page.locator("video[aria-label^='old.avi']").first
    still, moving = (old.get_attribute(name) for name in ("poster", "data-moving"))
    assert len(still) < len(moving)
    old.hover()
    page.wait_for_function("video => video.poster === video.dataset.moving", arg=old.element_handle())
    page.mouse.move(2, 2)
    assert old.get_attribute("poster") == still
    gif = page.locator("img[alt='moving.gif']").first
    gif.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth === 160", arg=gif.element_handle())

    # Of a store that browsers do not know there is the picture alone.
    index = Index.open(folder / "my.index")
    hit = Hit("memory://store/deep/clip.mp4", 0.0, 3.0, 0.5)
    MemoryFileSystem().pipe("/store/deep/clip.mp4", (folder / "videos/clip.mp4").read_bytes())
    write_gallery(folder / "store.html", index, [("red", [hit, hit._replace(path="memory://store/clip.mp4")])])
    page = open_page(name="store.html")
    picture = page.locator("img[alt^='clip.mp4']")
    assert picture.count() == 1 and page.locator("a").count() == 0
    still = picture.get_attribute("src")
    picture.hover()
    assert picture.get_attribute("src") == picture.get_attribute("data-moving") != still
    assert page.locator(".where").all_inner_texts() == ["store/deep", "store"]
    assert page.inner_text("h1") == "2 results"
