"""Which tabs the page has, what it refuses, and that its answers are those of the commands."""

import html
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from datamodules.video.frames import open_video
from zoo.app import markup
from zoo.app.answers import ask, classify, see
from zoo.app.limits import Limits
from zoo.app.page import _told
from zoo.errors import ZooError
from zoo.inference.heat_pictures import shade
from zoo.inference.long_videos import timeline
from zoo.inference.predict import predict

SHIPPED = "videomamba-nano-motion"


def tabs(page) -> list[str]:
    return [block.label for block in page.blocks.values() if block.get_block_name() == "tabitem"]


@pytest.fixture(scope="module")
def model():
    return zoo.load(SHIPPED)


@pytest.mark.slow
def test_a_tab_for_what_is_there_and_no_other(indices, mambavl, model):
    assert tabs(zoo.web_app()) == ["Classify"]
    assert tabs(zoo.web_app(index=indices.texts)) == ["Search"]
    assert tabs(zoo.web_app([model], index=indices.clips)) == ["Classify", "Search"]
    assert tabs(zoo.web_app([mambavl, SHIPPED])) == ["Classify", "Ask"]


def test_examples_only_for_a_model_that_knows_their_classes(mambavl):
    for models, there in (([SHIPPED], True), ([mambavl], False)):
        found = [b for b in zoo.web_app(models).blocks.values() if b.get_block_name() == "dataset"]
        assert bool(found) == there


def test_examples_stay_where_uploads_grow_old():
    page = zoo.web_app()
    [offered] = [fn for fn in page.fns.values() if fn.name == "<lambda>"]
    files = [Path(offered.fn(number)) for number in range(4)]
    assert all(file.is_file() for file in files)
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    assert not any(file.is_relative_to(uploads) for file in files)
    with open_video(files[-1]) as reader:
        assert reader.duration_seconds == pytest.approx(24)


def test_the_model_of_an_index_has_moved(indices, videos):
    model = videos.parent / "text_model"
    moved = model.rename(videos.parent / "moved")
    try:
        with pytest.raises(ZooError, match=r"texts.index is not at .*text_model; name it before --index"):
            zoo.web_app(index=indices.texts)
    finally:
        moved.rename(model)


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/tmp/zoo-app-1/uploads/ab/broken.mp4 is empty (0 bytes).", "broken.mp4 is empty (0 bytes)."),
        ("'/a/b c/d.mp4' and/or s3://x/y at 3/4, see ~/z.mp4.", "'b c/d.mp4' and/or s3://x/y at 3/4, see z.mp4."),
        ("No space left on device: '/var/a.index'", "No space left on device: 'a.index'"),
    ],
)
def test_errors_name_no_folders_of_the_server(sentence, shown, capsys):
    @_told()
    def broken():
        raise OSError(sentence)

    assert html.unescape(re.sub("<[^>]*>", "", broken())) == shown
    assert 'role="alert"' in broken() and not capsys.readouterr().err


def test_a_bug_keeps_its_traceback_in_the_log(capsys):
    @_told(("", ""))
    def broken():
        raise KeyError("/secret")

    assert broken() == (markup.problem("This did not work, and the reason is in the log of the server."), "", "")
    assert "KeyError: '/secret'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_in_memory_once(indices, mambavl, model, monkeypatch):
    loaded = []

    def load(source):
        loaded.append(source)
        return zoo.load(source)

    monkeypatch.setattr("zoo.app.page.load", load)
    page = zoo.web_app([SHIPPED, SHIPPED, mambavl, mambavl], index=indices.clips)
    assert loaded == [SHIPPED, mambavl]
    [choices] = {
        str(b.choices) for b in page.blocks.values() if b.get_block_name() == "dropdown" and len(b.choices) > 1
    }
    assert SHIPPED in choices and "mambavl" in choices and str(mambavl.parent) not in choices
    loaded.clear()
    zoo.web_app([model], index=indices.clips)
    assert not loaded


def test_one_at_a_time(indices, mambavl):
    page = zoo.web_app([SHIPPED, mambavl], index=indices.clips)
    ours = [fn for fn in page.fns.values() if fn.name == "answer"]
    assert len(ours) == 3
    assert {(fn.concurrency_id, fn.concurrency_limit, fn.queue, fn.api_visibility) for fn in ours} == {
        ("model", 1, True, "private")
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_megabytes": 0}, "max_megabytes is 0; it has to be from 1 to 100,000."),
        ({"max_minutes": float("nan")}, "max_minutes is nan; it has to be from 0.01 to 10,000."),
        ({"index": "missing"}, "missing is no index of videos"),
        ({"models": ["no-such-model"]}, "no-such-model"),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(ZooError) as error:
        zoo.web_app(**options)
    assert sentence in str(error.value)


def test_a_model_with_nothing_to_show(indices, videos):
    with pytest.raises(ZooError, match="text_model neither classifies nor answers questions"):
        zoo.web_app([videos.parent / "text_model"])


@pytest.mark.slow
def test_answers_are_those_of_the_command(videos, model, mambavl):
    shares = []
    film = classify(model, videos / "film.mp4", Limits(), lambda share, doing: shares.append((share, doing)))
    assert film.predictions == predict(model, videos / "film.mp4")
    wanted = timeline(model, videos / "film.mp4")
    assert film.timeline.segments() == wanted.segments() and film.duration == pytest.approx(24)
    assert {doing for _, doing in shares} == {"reading", "looking", "watching"}
    assert all(0 <= share <= 1 for share, _ in shares)
    clip = classify(model, videos / "grow.mp4", Limits(), lambda *_: None)
    assert clip.timeline is None and clip.predictions[0].label == "grow"
    assert [picture.seconds for picture in clip.pictures] == sorted({picture.seconds for picture in clip.pictures})
    answers = ask(zoo.load(mambavl), videos / "grow.mp4", "what?", Limits())
    assert len(answers) == 5
    assert classify(zoo.load(mambavl), videos / "grow.mp4", Limits(), lambda *_: None).predictions


def test_heat_is_that_of_explain(videos, model):
    shares = []
    found = see(model, videos / "move_left.mp4", 2, Limits(), lambda share, doing: shares.append(share))
    wanted = zoo.explain(model, videos / "move_left.mp4", 2)
    assert (found.label, found.probability) == ("move_left", wanted.probability)
    assert [picture.seconds for picture in found.pictures] == wanted.seconds.tolist()
    assert shares[-1] == 1 and shares == sorted(shares)
    with Image.open(io.BytesIO(found.pictures[0].webp)) as picture:
        assert picture.size == wanted.frames.shape[:-3:-1]
        shown = np.asarray(picture.convert("RGB"), float)
    assert np.abs(shown - shade(wanted)[0].permute(1, 2, 0).numpy()).mean() < 12  # WebP is lossy
    with pytest.raises(ZooError, match="target is 8"):
        see(model, videos / "move_left.mp4", 8, Limits(), lambda *_: None)


def test_a_regressor_gives_a_number(videos):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_frames": 4, "image_size": 32, "patch_size": 16}
    from lightning_modules import VideoRegressor

    regressor = VideoRegressor(**sizes, value_name="likes").eval()
    found = classify(regressor, videos / "grow.mp4", Limits(), lambda *_: None)
    assert found.value == ("likes", zoo.predict_value(regressor, videos / "grow.mp4"))
    assert f"likes: <strong>{found.value[1]:.4g}</strong>" in markup.classified(found)
    assert tabs(zoo.web_app([regressor])) == ["Classify"]


def test_long_and_broken_videos(videos, model, tmp_path):
    with pytest.raises(ZooError, match=r"is 0:24.0 long, and this page takes videos of up to 0:12.0; cut it"):
        classify(model, videos / "film.mp4", Limits(minutes=0.2), lambda *_: None)


def test_a_long_list_of_stretches_is_cut(videos, model, monkeypatch):
    film = classify(model, videos / "film.mp4", Limits(), lambda *_: None)
    number = len(film.timeline.segments())
    monkeypatch.setattr("zoo.app.markup.SEGMENTS", 2)
    page = markup.classified(film)
    assert page.count("data-seconds") == 2 and f"{number - 2} more stretches" in page
