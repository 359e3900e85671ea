"""The README.md of a pushed model: metadata for the Hub, and text for people."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml

from hub.answers import shortened
from hub.checkpoint import CARD, CURVES, METRICS, RECIPE, Checkpoint
from hub.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["DATASET", "About", "Score", "about_run", "address", "make_card"]

LIBRARY = "video-mamba-zoo"
# The block of the card that shows how to load the model: it names the place, which changes when a folder is pushed.
USAGE = re.compile(r"<!-- usage -->\n.*?<!-- /usage -->", flags=re.DOTALL)
_METRICS = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "top5": ("top_5_accuracy", "Top-5 accuracy"),
    "mean_recall": ("recall", "Mean recall of the classes"),
    "calibration_error": ("expected_calibration_error", "Expected calibration error"),
}
_TESTED = {"confusion.png": "Confusion matrix: rows are the true classes, columns the answers",
           "ranks.png": "Share of queries whose match is among the first k"}  # fmt: skip
_STAGES = {"val": "validation", "test": "test"}
# The comment at the head of a recipe in which the program that trained may name its data.
DATASET = "dataset: "
# What a module logs where evaluation read questions that were written with the labels.
_LEAK = "questions_from_labels"
_LEAKED = "the model read questions written from the labels, which leak the answer"
_INPUT = (
    ("num_frames", "frames"),
    ("image_size", "pixels, square"),
    ("short_side", "pixels of the short side before cropping"),
    ("sampling", "sampling"),
    ("frame_stride", "frames from one to the next"),
    ("interpolation", "interpolation"),
    ("mean", "mean of the channels"),
    ("std", "deviation of the channels"),
)


class Score(NamedTuple):
    """A result.

    Attributes:
        metric: ``top1``, ``top5``, or another name.
        value: accuracies are in [0, 1].
        split: ``validation`` or ``test``; None where the source does not say.
        note: how it was measured.
    """

    metric: str
    value: float
    split: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class About:
    """Facts for a card beyond the config.

    Attributes:
        dataset: name of the training and test data: ``Kinetics-400``.
        scores: results on it.
        license: identifier the Hub knows: ``apache-2.0``.
        base_model: repository of the weights that the training started from, or that these were converted from.
        task: the Hub's name of the task; None finds it out for a classifier.
        paper: address.
        note: a sentence.
    """

    dataset: str | None = None
    scores: tuple[Score, ...] = ()
    license: str | None = None
    base_model: str | None = None
    task: str | None = None
    paper: str | None = None
    note: str | None = None


def about_run(checkpoint: Checkpoint) -> About:
    """Collect facts from a training run's files: the data, the scores, and a repository that it started from.

    The recipe's comment ``# dataset: Kinetics-400`` names the data, else the data's folder, else the DataModule.
    """
    recipe = _recipe(checkpoint)
    scores = []
    for key, value in checkpoint.scores.items():
        stage, _, metric = key.partition("/")
        among_few = metric == "top5" and checkpoint.config["init_args"].get("num_classes", 6) <= 5  # always right
        is_end = re.sub("_(low|high)$", "", key) in checkpoint.scores.keys() - {key}  # of an interval
        if stage in _STAGES and metric not in ("loss", "samples", _LEAK) and not among_few and not is_end:
            notes = [_LEAKED] if checkpoint.scores.get(f"{stage}/{_LEAK}") else []
            low, high = (checkpoint.scores.get(f"{key}_{end}") for end in ("low", "high"))
            if low is not None and high is not None:
                notes.append(f"95 % interval {100 * low:.1f} to {100 * high:.1f} %")
            scores.append(Score(metric, value, _STAGES[stage], "; ".join(notes) or None))
    base = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(@.*)?", str(started_from(checkpoint)))
    named = re.search(rf"\A(?:#.*\n)*?# {DATASET}(.+)$", checkpoint.recipe or "", flags=re.MULTILINE)
    dataset = named[1] if named else _dataset(recipe.get("data"))
    return About(dataset, tuple(scores), base_model=base and base[1])


def started_from(checkpoint: Checkpoint) -> str | None:
    """``init_from`` of the run's config: the model whose weights the training started from."""
    return _model_named(checkpoint, "init_from")


def _model_named(checkpoint: Checkpoint, argument: str) -> str | None:
    model = _recipe(checkpoint).get("model")
    arguments = model.get("init_args") if isinstance(model, dict) else None
    source = arguments.get(argument) if isinstance(arguments, dict) else None
    return source if isinstance(source, str) else None


def _shell(word: str) -> str:
    """Quote a word for a shell, on one line and without Markdown or HTML syntax."""
    word = f"./{word}" if word.startswith("-") else word
    if word.isprintable() and "<" not in word:
        return shlex.quote(word)
    return "$'" + _plain(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _python(text: str) -> str:
    """Quote a string for Python, with the same guarantees as `_shell`."""
    return '"' + _plain(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() and c != "<" else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _text(words: object) -> str:
    """Escape foreign text for running text or a table in Markdown."""
    line = " ".join(str(words).split())
    line = "".join(c if c.isprintable() else _escape(c) for c in line)
    return re.sub(r"([\\`*\[\]|])|(&|<)", lambda m: f"\\{m[1]}" if m[1] else {"&": "&amp;", "<": "&lt;"}[m[2]], line)


def _code(words: object) -> str:
    """Format a foreign name as code, with a fence longer than any in it."""
    line = "".join(c if c.isprintable() else _escape(c) for c in str(words))
    longest = max(map(len, re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest or line != line.strip() or not line else f"{fence}{line}{fence}"


def make_card(checkpoint: Checkpoint, about: About, place: str) -> str:
    """The text of a README.md for the Hub: metadata, and sections for people.

    Args:
        checkpoint: the model; its extras decide whether curves are shown.
        about: what else is known.
        place: what ``zoo.load`` takes to load the model: ``org/name``, or a folder.
    """
    from huggingface_hub import ModelCard

    data = _metadata(checkpoint, about, place)
    sections = [
        f"# {_text(_title(place))}",
        _summary(checkpoint, about),
        _usage(checkpoint, place),
        *_classes(checkpoint),
        *_scores(about),
        *_test(checkpoint),
        *_input(checkpoint),
        *_training(checkpoint, about),
        *_licence(about),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def address(card: str, checkpoint: Checkpoint, place: str, license: str | None = None) -> str:
    """Change the place in a card's title and usage block; a card without such a block is kept.

    Args:
        card: text of a README.md.
        checkpoint: the model it is about.
        place: what ``zoo.load`` takes.
        license: replaces the one in the metadata, also of somebody's own card; None leaves it.

    Raises:
        HubError: the metadata at its head is not valid.
    """
    from huggingface_hub import ModelCard

    ours = USAGE.search(card) is not None
    if not ours and license is None:
        return card
    try:
        parsed = ModelCard(card)
        data = cast("ModelCardData", parsed.data)
        data.license = license or data.license
        text = parsed.text.lstrip("\n")
        if ours:
            data.model_name = _title(place) if data.eval_results else None
            text = re.sub(r"\A# .*", lambda _: f"# {_text(_title(place))}", text)
            text = USAGE.sub(lambda _: _usage(checkpoint, place), text)
        return f"---\n{data.to_yaml()}\n---\n\n{text}"
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = shortened(error)
        raise HubError(f"The metadata at the head of {CARD} is not valid ({reason}); fix it, or delete the file to "
                       "have a new one written.") from error  # fmt: skip


def task_of(config: dict[str, Any]) -> str | None:
    """The Hub's name of a classifier's task; None for other modules."""
    init_args = config["init_args"]
    if "num_classes" not in init_args:
        return None
    return "image-classification" if init_args.get("num_frames", 0) is None else "video-classification"


def slug(title: str) -> str:
    """A data set's name as the Hub's metadata takes it: ``Kinetics-400`` -> ``kinetics-400``."""
    return re.sub(r"[^\w.-]+", "-", title.lower()).strip("-.")


def _metadata(checkpoint: Checkpoint, about: About, place: str) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    task = about.task or task_of(checkpoint.config)
    dataset = about.dataset or "unnamed"
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=slug(dataset) or "unnamed",
            dataset_name=dataset,
            dataset_split=score.split,
            metric_type=_METRICS.get(score.metric, (score.metric, ""))[0],
            metric_name=_name(score),
            metric_value=round(score.value, 5),
        )
        for score in about.scores
    ]
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        license=about.license,
        datasets=[slug(about.dataset)] if about.dataset and slug(about.dataset) else None,
        base_model=about.base_model,
        tags=["mamba", "state-space-model", "video", "pytorch", "lightning"],
        model_name=_title(place) if results else None,
        eval_results=results or None,
    )


def _name(score: Score) -> str:
    name = _METRICS.get(score.metric, ("", score.metric))[1]
    return f"{name} ({score.note})" if score.note else name


def _title(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _summary(checkpoint: Checkpoint, about: About) -> str:
    args = checkpoint.config["init_args"]
    count = sum(tensor.numel() for tensor in checkpoint.state_dict.values())
    facts = [_code(checkpoint.config["class_path"]), f"{count:,} parameters"]
    if args.get("num_classes"):
        facts.append(f"{args['num_classes']} classes")
    if args.get("value_name"):
        facts.append(f"predicts {_text(args['value_name'])}")
    if args.get("image_size"):
        frames = "an image" if args.get("num_frames", 0) is None else f"{args.get('num_frames')} frames"
        facts.append(f"{frames} of {args['image_size']} x {args['image_size']} pixels")
    if about.dataset:
        facts.append(f"trained on {_text(about.dataset)}")
    return ", ".join(facts) + "." + (f" {_text(about.note)}" if about.note else "")


def _usage(checkpoint: Checkpoint, place: str) -> str:
    args = checkpoint.config["init_args"]
    file = "photo.jpg" if args.get("num_frames", 0) is None else "clip.mp4"
    lines = ["import zoo", "", f"model = zoo.load({_python(place)})"]
    command = ""
    if "value_name" in args:
        lines.append(f'print(zoo.predict_value(model, "{file}"))')
    elif "num_classes" in args:
        lines.append(f'for label, probability, _ in zoo.predict(model, "{file}"):')
        lines.append('    print(f"{probability:6.1%}  {label}")')
    if len(lines) > 3:
        command = f"\n\nOr in a shell:\n\n```sh\nzoo predict {_shell(place)} {file}\n```"
    code = "\n".join(lines)
    return (
        f"<!-- usage -->\n## Use it\n\nWith the package {LIBRARY} installed:\n\n```python\n{code}\n```"
        f"{command}\n<!-- /usage -->"
    )


def _classes(checkpoint: Checkpoint) -> Iterable[str]:
    names = checkpoint.config["init_args"].get("class_names")
    if names:
        shown = ", ".join(_code(name) for name in names[:20])
        more = f" and {len(names) - 20} more, all in `config.json`" if len(names) > 20 else ""
        yield f"Classes: {shown}{more}."


def _scores(about: About) -> Iterable[str]:
    if about.scores:
        rows = [f"| {_text(_name(s))} | {_text(s.split or '')} | {_shown(s)} |" for s in about.scores]
        on = f" on {_text(about.dataset)}" if about.dataset else ""
        yield f"## Results{on}\n\n| metric | split | value |\n| --- | --- | --- |\n" + "\n".join(rows)


def _test(checkpoint: Checkpoint) -> Iterable[str]:
    for name, title in _TESTED.items():
        if name in checkpoint.extras:
            yield f"![{title}]({name})\n\n*{title}, in the test.*"


def _shown(score: Score) -> str:
    return f"{100 * score.value:.1f} %" if score.metric in _METRICS else f"{score.value:.4g}"


def _input(checkpoint: Checkpoint) -> Iterable[str]:
    args = checkpoint.config["init_args"]
    prepared = args.get("preprocessing")
    args = args | (prepared if isinstance(prepared, dict) else {})
    if args.get("sampling") != "dense":
        args = {key: value for key, value in args.items() if key != "frame_stride"}
    rows = [f"| {title} | {_text(args[key])} |" for key, title in _INPUT if args.get(key) is not None]
    if rows:
        yield "## Input\n\n| | |\n| --- | --- |\n" + "\n".join(rows)


def _training(checkpoint: Checkpoint, about: About) -> Iterable[str]:
    source = started_from(checkpoint)
    lines = []
    if about.base_model or source:
        origin = _code(source or about.base_model)
        other = source and about.base_model and about.base_model != source
        repository = f" ({_text(about.base_model)})" if other else ""
        lines.append(f"The weights started from, or are those of, {origin}{repository}.")
    teacher = _model_named(checkpoint, "teacher")
    if teacher:
        lines.append(f"The training had {_code(teacher)} as its teacher.")
    if checkpoint.recipe is not None:
        lines.append(f"The complete configuration of the run is in `{RECIPE}`.")
    if METRICS in checkpoint.extras:
        lines.append(f"What was logged is in `{METRICS}`.")
    parts = [" ".join(lines)] if lines else []
    if CURVES in checkpoint.extras:
        parts.append(f"![Training curves]({CURVES})")
    if about.paper:
        parts.append(f"Paper: {_text(about.paper)}")
    if parts:
        yield "## Training\n\n" + "\n\n".join(parts)


def _licence(about: About) -> Iterable[str]:
    if about.license:
        yield f"## Licence\n\n{_text(about.license)}"


def _recipe(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        content = yaml.safe_load(checkpoint.recipe or "")
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _dataset(data: object) -> str | None:
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        return None
    args = data.get("init_args")
    root = str(args.get("root") or "") if isinstance(args, dict) else ""
    root = root.rstrip("/").rpartition("/")[2]
    return root or data["class_path"].rpartition(".")[2]
