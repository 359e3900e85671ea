"""The page itself: tabs for what the models and the index can do, and the server it runs on."""

import functools
import os
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from datamodules.errors import DataError
from datamodules.video.opening import DecodeError
from hub.checkpoint import fingerprint
from hub.errors import HubError
from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from zoo.app import examples, markup
from zoo.app.answers import ask, classify, see
from zoo.app.folder import FOLDER
from zoo.app.limits import QUESTION, QUEUE, Limits, check_length
from zoo.app.serving import Guard, ShownVideos
from zoo.build import load
from zoo.errors import UnknownModelError, ZooError
from zoo.inference.predict import to_device
from zoo.retrieval.gallery import moving_picture
from zoo.retrieval.search import check_queries, made_with, search
from zoo.retrieval.table import Hit, Index
from zoo.tables.place import Place

__all__ = ["SHIPPED", "web_app"]

Report = Callable[[float, str], None]
"""Shows the share of the work that is done, and what is being done."""

SHIPPED = "videomamba-nano-motion"
HITS = 9
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
FORESEEN = (ZooError, DataError, DecodeError, ModelError, HubError, OSError)
TIDY_SECONDS = (600, 3600)
"""How often uploads are looked at, and how old they become."""

_FOLDERS = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"]+/)*(?=[^\s/])")


def web_app(
    models: Sequence[str | os.PathLike[str] | BaseModule] = (),
    index: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    max_megabytes: int = Limits().megabytes,
    max_minutes: float = Limits().minutes,
) -> gr.Blocks:
    """Build the page of `zoo app`; ``zoo.web_app().launch()`` serves it.

    Each model is in memory once and answers one visitor at a time.

    Args:
        models: classifiers, regressors and MambaVLs, loaded or as for `zoo.load`. Without any, and without an index,
            the shipped `videomamba-nano-motion`.
        index: made by `zoo index`; brings the tab for searching.
        device: where the models run; "auto" is a GPU where there is one.
        max_megabytes: of an uploaded file.
        max_minutes: of a video.

    Raises:
        ZooError: a model that neither classifies nor answers questions; an index that cannot be searched; a limit that
            is out of range.
    """
    limits = Limits(max_megabytes, max_minutes)
    limits.check()
    table = None if index is None else Index.open(index)  # before the models, which take seconds
    loaded = _loaded([SHIPPED] if not models and table is None else models, device)
    seeing = {
        name: model for name, model in loaded.items() if hasattr(model, "class_names") or hasattr(model, "value_name")
    }
    asked = {name: model for name, model in loaded.items() if hasattr(model, "answer")}
    for name in loaded.keys() - seeing.keys() - asked.keys():
        raise ZooError(f"{name} neither classifies nor answers questions; index videos with it, and pass --index.")
    searched = None if table is None else (table, _model_of(table, loaded.values(), device))
    page = _Page(limits)
    with page:
        gr.Markdown("# Video Mamba Zoo", elem_id="zoo-title")
        with gr.Tabs():
            if seeing:
                _classify_tab(page, seeing)
            if searched is not None:
                _search_tab(page, *searched)
            if asked:
                _ask_tab(page, asked)
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


class _Page(gr.Blocks):
    """Blocks that know how they are to be served, so that ``launch()`` is safe without arguments."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(title="Video Mamba Zoo", analytics_enabled=False, delete_cache=TIDY_SECONDS)
        self.limits, self.videos = limits, ShownVideos()

    def launch(self, **options: Any) -> tuple[Any, str, str]:  # type: ignore[override]  # names pass through
        """Serve the page.

        Args:
            options: those of `gradio.Blocks.launch`; they win over the page's own, except that further routes and
                middleware in ``app_kwargs`` come behind the page's.

        Returns:
            What `gradio.Blocks.launch` returns: the application, its local address and its public one.
        """
        of_app = dict(options.pop("app_kwargs", None) or {})
        guard = Middleware(Guard, most_bytes=self.limits.bytes)
        of_app["routes"] = [self.videos.route, *of_app.get("routes", ())]
        of_app["middleware"] = [guard, *of_app.get("middleware", ())]
        font = ["system-ui", "sans-serif"]  # of the machine: a name alone is not fetched from anywhere
        theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=font, font_mono=["monospace"])
        ours: dict[str, Any] = {
            "theme": theme,
            "css": markup.STYLE,
            "head": markup.HEAD,
            "footer_links": [],
            "max_file_size": self.limits.bytes,
            "enable_monitoring": False,
            "run_history": False,
            "ssr_mode": False,
            "pwa": False,
            "share": False,
        }
        for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it is up
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1,::1,0.0.0.0"]))
        return super().launch(app_kwargs=of_app, **ours | options)


def _loaded(models: Sequence[str | os.PathLike[str] | BaseModule], device: str) -> dict[str, BaseModule]:
    """The models by the names that the page shows; one that is named twice is in memory once."""
    sources: dict[str, BaseModule] = {}
    for model in models:
        key = f"a {type(model).__name__}, {id(model)}" if isinstance(model, BaseModule) else os.fspath(model)
        if key not in sources:
            module = model if isinstance(model, BaseModule) else load(model)
            sources[key] = to_device(module, device).eval()
    named: dict[str, BaseModule] = {}
    for key, module in sources.items():
        name = _shown_name(key, module)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = module
    return named


def _shown_name(source: str, module: BaseModule) -> str:
    """Without the folders above a run or a model: they are the server's business."""
    path = Path(source).expanduser()
    if not path.exists():
        return type(module).__name__ if source.startswith("a ") else source
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("version_") else path.name


def _model_of(index: Index, loaded: Iterable[BaseModule], device: str) -> BaseModule:
    """The model that an index was made with: one that is in memory, or from where it was then."""
    made = made_with(index)
    for model in loaded:
        if fingerprint(model.state_dict()) == made["sha256"]:
            return model
    source = made["source"]
    if source is None:
        raise ZooError(f"{index.folder} was made with a model without a name; name it before --index.")
    if source.startswith("./"):
        source = Place(index.folder).found(source)
    try:
        return to_device(load(source), device).eval()
    except UnknownModelError as error:
        raise ZooError(f"The model of {index.folder} is not at {source}; name it before --index.") from error


# ---- tabs ----------------------------------------------------------------------------------------------------------


def _classify_tab(page: _Page, models: dict[str, BaseModule]) -> None:
    first = markup.hint("Upload a video, record one, or choose an example: its labels appear here.")
    hidden = gr.update(visible=False), gr.update(), ""

    # Gradio finds the progress in the default of an argument.
    @_told(hidden)
    def answer(path: str | None, name: str, progress: Report = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        if path is None:
            return first, *hidden
        found = classify(models[name], path, page.limits, progress)
        classes = [(one.label, one.index) for one in found.predictions]
        best = gr.update(choices=classes, value=classes[0][1]) if classes else gr.update()
        return markup.classified(found), gr.update(visible=bool(classes)), best, ""

    @_told()
    def heat(path: str | None, name: str, index: int, progress: Report = gr.Progress()) -> str:  # noqa: B008
        return "" if path is None else markup.explained(see(models[name], path, index, page.limits, progress))

    with gr.Tab("Classify"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            clip = _clip("zoo-clip")
            chosen = _choice(models)
            if any(_knows_examples(model) for model in models.values()):
                _offer_examples(clip)
        with gr.Column(scale=3, min_width=280):
            shown = gr.HTML(first, elem_id="zoo-classified", padding=False)
            with gr.Row(visible=False, equal_height=False, elem_id="zoo-more") as more:
                label = gr.Dropdown([], label="Class", min_width=160, scale=3, elem_id="zoo-class")
                button = gr.Button("Show what supports it", min_width=160, scale=2)
            seen = gr.HTML("", elem_id="zoo-seen", padding=False)
    outputs = [shown, more, label, seen]
    gr.on([clip.change, chosen.change], answer, [clip, chosen], outputs, show_progress_on=shown, **ONE_AT_A_TIME)
    button.click(heat, [clip, chosen, label], seen, **ONE_AT_A_TIME)


def _offer_examples(clip: gr.Video) -> None:
    # Beside the uploads, which are deleted when they are old; Gradio copies what is chosen.
    files = examples.write_examples(Path(FOLDER, "examples"))
    offered = gr.Dataset(
        label="Examples", components=[clip], type="index",
        samples=[[str(file)] for file in files], sample_labels=[file.stem.replace("_", " ") for file in files],
    )  # fmt: skip
    # Not gr.Examples, whose events go round the queue.
    offered.click(lambda number: str(files[number]), offered, clip, api_visibility="private")


def _knows_examples(model: BaseModule) -> bool:
    return set(getattr(model, "class_names", None) or ()) >= set(examples.CLASSES)


def _search_tab(page: _Page, index: Index, model: BaseModule) -> None:
    reads_texts = hasattr(model, "encode_text")

    @_told()
    def answer(query: str | None, path: str | None) -> str:
        query = (query or "").strip()
        if not query and path is None:
            return first
        _check_text(query)
        if path is not None:
            check_length(path, page.limits.minutes)
        queries = [query] if query else []
        results = search(index, queries, topk=HITS, like=[] if path is None else [path], model=model)
        titles = [*queries, *([] if path is None else [f"Like {os.path.basename(path)}"])]
        parts = [markup.found(title, _rows(page, hits)) for title, hits in zip(titles, results, strict=True)]
        return "".join(parts)

    ways = "Describe what happens, or add a clip" if reads_texts else "Add a clip"
    first = markup.hint(f"{ways}: the moments that fit best appear here.")
    with gr.Tab("Search"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            query = gr.Textbox(
                label="What the video shows", visible=reads_texts, max_length=QUESTION, elem_id="zoo-query", lines=1
            )
            with gr.Accordion("By a clip", open=False) if reads_texts else nullcontext():
                clip = _clip("zoo-like")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=3, min_width=280):
            shown = gr.HTML(first, elem_id="zoo-found", padding=False)
    gr.on([query.submit, button.click], answer, [query, clip], shown, **ONE_AT_A_TIME)


def _ask_tab(page: _Page, models: dict[str, BaseModule]) -> None:
    @_told()
    def answer(path: str | None, question: str | None, name: str) -> str:
        if path is None:
            return first
        question = (question or "").strip()
        _check_text(question)
        found = ask(models[name], path, question, page.limits)
        rows = [(one.text, one.probability, one.kind) for one in found]
        return markup.answered(question or models[name].default_question, rows)

    first = markup.hint("Add a video and ask about it: the best answers appear here.")
    with gr.Tab("Ask"), gr.Row():
        with gr.Column(scale=2, min_width=280):
            clip = _clip("zoo-asked")
            question = gr.Textbox(
                label="Question", placeholder="What is happening?", max_length=QUESTION, elem_id="zoo-question", lines=1
            )
            chosen = _choice(models)
            button = gr.Button("Ask", variant="primary")
        with gr.Column(scale=3, min_width=280):
            shown = gr.HTML(first, elem_id="zoo-answered", padding=False)
    gr.on([question.submit, button.click], answer, [clip, question, chosen], shown, **ONE_AT_A_TIME)


def _clip(name: str) -> gr.Video:
    # Sound stays in uploads, since Gradio would start ffmpeg to remove it; a webcam records without the microphone.
    camera = gr.WebcamOptions(
        constraints={"audio": False, "video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
    )
    return gr.Video(
        label="Video", sources=["upload", "webcam"], include_audio=True, webcam_options=camera, buttons=[],
        elem_id=name, elem_classes="zoo-clip",
    )  # fmt: skip


def _choice(models: dict[str, BaseModule]) -> gr.Dropdown:
    return gr.Dropdown(list(models), value=next(iter(models)), label="Model", visible=len(models) > 1)


def _check_text(asked: str) -> None:
    if len(asked) > QUESTION:
        raise ZooError(f"The text has {len(asked)} characters; write up to {QUESTION}.")
    if asked:
        check_queries([asked])


def _rows(page: _Page, hits: Sequence[Hit]) -> list[tuple[Hit, str, bytes | None]]:
    rows: list[tuple[Hit, str, bytes | None]] = []
    for hit in hits:
        try:
            poster = moving_picture(hit)  # what is not a video gets no address
            rows.append((hit, page.videos.address(hit.path), poster))
        except DecodeError:
            rows.append((hit, "", None))
    return rows


# ---- errors --------------------------------------------------------------------------------------------------------


def _told(rest: tuple[Any, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn errors of a handler into a sentence in its first output, with `rest` as the others.

    A bug keeps its traceback, in the server's log.
    """

    def decorated(answer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(answer)
        def told(*arguments: Any) -> Any:  # noqa: ANN401  # one output, or a tuple of several
            try:
                return answer(*arguments)
            except FORESEEN as error:
                said = markup.problem(_FOLDERS.sub("", " ".join(str(error).split())))
            except Exception:  # a bug, which does not end the page
                traceback.print_exc()
                said = markup.problem("This did not work, and the reason is in the log of the server.")
            return (said, *rest) if rest else said  # Gradio wants no tuple for one output

        return told

    return decorated
