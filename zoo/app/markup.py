"""The answers as HTML, in the colours of the page's theme, light or dark.

Everything that is not written here goes through `text`: names of classes and files come from others.
"""

import html
import os
from collections.abc import Sequence

from zoo.app.answers import Classified, Explained, Picture
from zoo.inference.long_videos import Timeline
from zoo.inference.plot import COLOURS
from zoo.printable import clock, printable
from zoo.retrieval.gallery import data_address
from zoo.retrieval.table import Hit

__all__ = ["HEAD", "STYLE", "answered", "bars", "classified", "explained", "found", "hint", "problem", "text"]

SEGMENTS = 60
"""Stretches of a timeline that are listed."""

_TEMPLATES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def text(value: object) -> str:
    """Text of others as HTML; without what Gradio's templates would look for in it."""
    return html.escape(printable(str(value))).translate(_TEMPLATES)


def problem(sentence: str) -> str:
    """An error."""
    return f'<p class="zoo-problem" role="alert">{text(sentence)}</p>'


def hint(sentence: str) -> str:
    """What to do, where there is no answer yet."""
    return f'<p class="zoo-hint">{text(sentence)}</p>'


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Labels with their probabilities, best first."""
    items = "".join(
        f'<li><span class="zoo-name">{text(name)}</span><span class="zoo-share">{probability:.1%}</span>'
        f'<span class="zoo-bar"><span style="width:{100 * probability:.2f}%"></span></span></li>'
        for name, probability in rows
    )
    return f'<ol class="zoo-bars">{items}</ol>'


def classified(answer: Classified) -> str:
    """Labels as bars or a number, frames, and the timeline of a long video."""
    if answer.value is not None:
        name, value = answer.value
        best = f'<p class="zoo-value">{text(name)}: <strong>{value:.4g}</strong></p>'
    else:
        best = bars([(prediction.label, prediction.probability) for prediction in answer.predictions])
    over_time = "" if answer.timeline is None else _timeline(answer.timeline)
    return f'<div class="zoo">{best}<h3>Frames</h3>{_frames(answer.pictures)}{over_time}</div>'


def explained(answer: Explained) -> str:
    """Frames with their heat."""
    legend = hint("Orange supports the class, blue speaks against it.")
    title = f"<h3>What supports {text(answer.label)} ({answer.probability:.1%} in this clip)</h3>"
    return f'<div class="zoo zoo-heat">{title}{_frames(answer.pictures)}{legend}</div>'


def answered(question: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Answers with their probabilities and kinds (verb, noun, action)."""
    named = [(f"{answer} ({kind})", probability) for answer, probability, kind in rows]
    return f'<div class="zoo"><h3>{text(question)}</h3>{bars(named)}</div>'


def found(query: str, rows: Sequence[tuple[Hit, str, bytes | None]]) -> str:
    """Results of a search: hits, the address of each video, and its moving picture, None where it cannot be read."""
    if not rows:
        return f'<div class="zoo"><h3>{text(query)}</h3>{hint("The index is empty.")}</div>'
    figures = "".join(_moment(*row) for row in rows)
    return f'<div class="zoo"><h3>{text(query)}</h3><div class="zoo-moments">{figures}</div></div>'


def _moment(hit: Hit, address: str, poster: bytes | None) -> str:
    times = f"{clock(hit.start)} – {clock(hit.end)}"  # noqa: RUF001
    name = text(os.fsencode(os.path.basename(hit.path)).decode(errors="replace"))
    caption = f"<figcaption><strong>{name}</strong><br>{times} · {hit.score:.3f}</figcaption>"
    if poster is None:
        return f'<figure><p class="zoo-gone">This file cannot be read any more.</p>{caption}</figure>'
    return (
        f'<figure><video controls muted playsinline preload="metadata" src="{text(address)}#t={hit.start:.3f},'
        f'{hit.end:.3f}" poster="{data_address(poster)}"></video>{caption}</figure>'
    )


def _frames(pictures: Sequence[Picture]) -> str:
    figures = "".join(
        f'<figure><img alt="Frame at {picture.seconds:.1f} s" src="{data_address(picture.webp)}">'
        f"<figcaption>{picture.seconds:.1f} s</figcaption></figure>"
        for picture in pictures
    )
    return f'<div class="zoo-frames">{figures}</div>'


def _timeline(timeline: Timeline) -> str:
    segments = timeline.segments()
    order = dict.fromkeys(segment.label for segment in segments)
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(order)}
    strip = "".join(
        f'<span style="flex-grow:{segment.end - segment.start:.4f};background:{colours[segment.label]}"></span>'
        for segment in segments
    )
    items = "".join(
        f'<li><button type="button" data-seconds="{segment.start:.3f}"><i style="background:{colours[segment.label]}">'
        f'</i><span class="zoo-time">{clock(segment.start)} – {clock(segment.end)}</span>'  # noqa: RUF001
        f'<span class="zoo-name">{text(segment.label)}</span><span class="zoo-share">{segment.probability:.0%}</span>'
        "</button></li>"
        for segment in segments[:SEGMENTS]
    )
    more = len(segments) - SEGMENTS
    rest = hint(f"{more} more stretches: `zoo predict --timeline` lists all of them.") if more > 0 else ""
    return (
        f'<h3>Over time</h3><div class="zoo-strip" aria-hidden="true">{strip}</div><ol class="zoo-segments">{items}'
        f"</ol>{rest}"
    )


HEAD = """
<script>
// A click on a stretch of the timeline plays the video from there.
document.addEventListener("click", (event) => {
  const stretch = event.target.closest("[data-seconds]");
  const video = document.querySelector("#zoo-clip video");
  if (!stretch || !video) return;
  video.currentTime = Number(stretch.dataset.seconds);
  video.play().catch(() => {});
});
</script>
"""

STYLE = """
.zoo-clip video { max-height: 20rem; }
.zoo h3 { font-size: .95rem; font-weight: 600; margin: 1.1rem 0 .5rem; overflow-wrap: anywhere; }
.zoo h3:first-child { margin-top: 0; }
.zoo ol { list-style: none; margin: 0; padding: 0; }
.zoo figure { margin: 0; }
.zoo figcaption { color: var(--body-text-color-subdued); font-size: .8rem; padding-top: .2rem;
  overflow-wrap: anywhere; }
.zoo-bars li { display: grid; grid-template-columns: 1fr auto; gap: .15rem .75rem; margin: 0 0 .6rem; }
.zoo-bars li:first-child { font-weight: 600; }
.zoo-name { overflow-wrap: anywhere; }
.zoo-share { font-variant-numeric: tabular-nums; }
.zoo-bar { grid-column: 1 / -1; height: .5rem; border-radius: .25rem; background: var(--border-color-primary);
  overflow: hidden; }
.zoo-bar span { display: block; height: 100%; border-radius: .25rem; background: var(--color-accent); opacity: .45; }
.zoo-bars li:first-child .zoo-bar span { opacity: 1; }
.zoo-value { font-size: 1.2rem; margin: 0; }
.zoo-frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); gap: .5rem; }
.zoo-frames img { display: block; width: 100%; border-radius: var(--radius-sm); margin: 0; }
.zoo-heat .zoo-frames { grid-template-columns: repeat(4, 1fr); }
.zoo-heat img { image-rendering: pixelated; }
#zoo-more { align-items: center; }
.zoo-strip { display: flex; height: 1.1rem; border-radius: var(--radius-sm); overflow: hidden; }
.zoo-strip span { flex-basis: 0; min-width: 1px; }
.zoo-segments { margin-top: .5rem !important; }
.zoo .zoo-segments button { display: grid; grid-template-columns: auto 8.5rem 1fr auto; gap: 0 .6rem;
  align-items: baseline; width: 100%; margin: 0; padding: .3rem .35rem; border: 0; border-radius: var(--radius-sm);
  background: none; color: inherit; font: inherit; text-align: left; cursor: pointer; }
.zoo .zoo-segments button:hover, .zoo .zoo-segments button:focus-visible {
  background: var(--background-fill-secondary); }
.zoo-segments i { width: .7rem; height: .7rem; border-radius: 2px; }
.zoo-time { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
@media (max-width: 600px) {
  .zoo .zoo-segments button { grid-template-columns: auto 1fr auto; }
  .zoo-segments .zoo-time { grid-column: 2 / -1; }
  .zoo-segments .zoo-name { grid-column: 2; }
}
.zoo-moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.zoo-moments video, .zoo-gone { display: block; width: 100%; aspect-ratio: 4 / 3; border-radius: var(--radius-sm);
  background: var(--background-fill-secondary); }
.zoo-gone { padding: 1rem; }
.zoo-hint { color: var(--body-text-color-subdued); }
.zoo-problem { padding: .75rem 1rem; border-left: 4px solid #d9534f; border-radius: var(--radius-sm);
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
"""
