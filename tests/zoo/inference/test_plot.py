"""Pictures of results: what they say, and that names stay inside however long they are."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from datamodules.synthetic.writing import generate
from zoo.commands.main import main
from zoo.inference import plot
from zoo.inference.long_videos import Timeline
from zoo.inference.predict import Prediction

LONG = "a class with a very long name, longer than anybody would choose, but data sets have such names"


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Functions that draw give the figure instead of writing it."""
    matplotlib.use("agg")
    monkeypatch.setattr(plot, "save_figure", lambda figure, out: figure)


def timeline_of(probabilities, labels):
    """Windows of a second, one after the other."""
    n = len(probabilities)
    seconds = np.stack([np.arange(n), np.arange(n) + 1.0], axis=1)
    return Timeline("a", float(n), seconds, torch.as_tensor(probabilities), labels,
                    torch.zeros(5, 3, 8, 8, dtype=torch.uint8), np.linspace(0, n, 5))  # fmt: skip


def boxes(figure):
    """Each text with the rectangle that it covers, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    ticks = [label for axis in figure.axes if not axis.axison
             for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]  # fmt: skip
    return {
        text: text.get_window_extent(canvas.get_renderer())
        for text in texts
        if text.get_text() and text.get_visible() and text not in ticks
    }


def assert_inside(figure):
    width, height = figure.canvas.get_width_height()
    for text, box in boxes(figure).items():
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


def test_every_segment_has_its_name():
    names = ["run", "sit", LONG, "W" * 90, "$x$ costs $5"]
    rng = np.random.default_rng(0)
    timeline = timeline_of(rng.dirichlet(np.full(5, 0.2), 24).astype(np.float32), names)
    figure = plot.plot_timelines([("n" * 250, timeline), ("b", timeline)], "a.png")
    assert_inside(figure)
    strip = figure.axes[1]  # stills, strip, curves
    segments = timeline.segments()
    shown = [text.get_text().replace("\\$", "$").rstrip("…") for text in strip.texts]
    assert len(shown) == len(segments) > 10
    assert all(segment.label.startswith(text) for text, segment in zip(shown, segments, strict=True))
    # Names cover neither each other nor the end of the strip.
    drawn = [box for text, box in boxes(figure).items() if text in strip.texts]
    for i, a in enumerate(drawn):
        assert not any(a.overlaps(b) for b in drawn[:i])


@pytest.mark.parametrize("name", ["", " "])
def test_names_may_be_blank(name):
    timeline = timeline_of(np.eye(2, dtype=np.float32)[[0, 0, 1]], [name, "b"])
    assert_inside(plot.plot_timelines([(name, timeline)], "a.png"))


def test_a_name_stands_in_its_segment_or_over_its_middle():
    timeline = timeline_of(np.eye(4, dtype=np.float32)[[0] * 9 + [1] + [2] * 9 + [3]], ["a", LONG, "c", "last"])
    placed, lanes, nameless = plot._place_names(timeline, 12.0)
    assert [lane for _, _, lane, _ in placed] == [0, 1, 0, 0] and (lanes, nameless) == (1, 0)
    assert [middle for *_, middle in placed] == pytest.approx([4.5, 9.5, 14.5, 19.5])


def test_too_many_segments_are_counted():
    order = np.tile([0, 1], 200)
    timeline = timeline_of(np.eye(2, dtype=np.float32)[order], ["a class", "another class"])
    figure = plot.plot_timelines([("a", timeline)], "a.png")
    nameless = 400 - len(figure.axes[1].texts)
    assert 200 < nameless < 400
    assert f"{nameless} short segments without a name here; --segments lists all" in figure.axes[2].get_xlabel()


def test_the_scale_of_probabilities():
    scores = np.array([[0.5, 0.5 - 1e-3], [0.125, 0.875], [1.0, 0.0]], dtype=np.float32)
    curves = plot.plot_timelines([("a", timeline_of(scores, ["x", "y"]))], "a.png").axes[2]
    (scale,) = curves.child_axes
    ticks = dict(zip(scale.get_yticks(), (label.get_text() for label in scale.get_yticklabels()), strict=True))
    low, high = (sorted(at for at, text in ticks.items() if text == mark) for mark in ("0", "100 %"))
    assert len(low) == len(high) == 2
    # The first class is the upper row: its filled steps reach the probability on that scale.
    tops = [shape.get_paths()[0].vertices[:, 1].max() for shape in curves.collections]
    assert (tops[0] - low[1]) / (high[1] - low[1]) == pytest.approx(1.0)
    assert (tops[2] - low[0]) / (high[0] - low[0]) == pytest.approx(0.875)


def test_right_and_wrong_are_marked_where_the_truth_is_known():
    view, seconds = torch.zeros(3, 4, 8, 8, dtype=torch.uint8), np.arange(4.0)
    ranked = [Prediction("run", 0.6, 0), Prediction("sit", 0.3, 1), Prediction(LONG, 0.1, 2)]
    rows = [(title, view, seconds, ranked, truth)
            for title, truth in (("a", None), ("b", "run"), ("c", "sit"), ("d" * 250, LONG))]  # fmt: skip
    figure = plot.plot_predictions(rows, "a.png")
    assert_inside(figure)
    panels = [axis for axis in figure.axes if axis.patches]
    told = [[text.get_text() for text in panel.texts if "%" not in text.get_text()] for panel in panels]
    assert told[0][:2] == ["run", "sit"] and told[1][:2] == ["✓ run", "sit"] and told[1][-1] == "right"
    assert told[2][:2] == ["✗ run", "✓ sit"] and told[2][-1] == "wrong; the folder says sit"
    assert told[3][2].startswith("✓ a class with") and told[3][-1].startswith("wrong; the folder says a class with")


def test_the_command_takes_the_truth_from_the_folder(tmp_path, monkeypatch, capsys):
    generate(tmp_path / "data", num_train=0, num_val=0, num_test=1, num_workers=0, progress=False)
    (video,) = (tmp_path / "data" / "test").rglob("*.mp4")
    other = tmp_path / "elsewhere.mp4"
    other.write_bytes(video.read_bytes())
    given = []
    monkeypatch.setattr(plot, "plot_predictions", lambda rows, out: given.extend(rows))
    main(["predict", "videomamba-nano-motion", str(video), str(other), "--plot", str(tmp_path / "a.png")])
    assert [row[-1] for row in given] == [video.parent.name, None]
