"""The course of a training as a picture."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from typing_extensions import override

from lightning_modules.files import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curves", "plot_curves"]

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values


class Curves(Callback):
    """Draws curves.png beside metrics.csv when a training ends, also when it is interrupted or fails."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # until `setup`, which is not reached where the data's setup fails

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Asking for the folder later, in one process that fails, would wait for the others for ever.
        folder = trainer.log_dir
        self.folder = Path(folder) if stage == "fit" and folder and trainer.is_global_zero else None

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.folder is None or not (self.folder / "metrics.csv").exists():
            return
        try:
            plot_curves(self.folder / "metrics.csv", self.folder / "curves.png")
        except Exception as error:  # whatever it is, the training counts more
            rank_zero_warn(f"{self.folder / 'curves.png'} could not be drawn: {error}")


def plot_curves(metrics: Path, out: Path) -> None:
    """Draw what a metrics.csv holds: losses, scores, learning rate, speed; panels without numbers are left out."""
    figure = draw_curves(metrics)
    if figure is not None:
        with written(out) as beside:
            figure.savefig(beside, format="png")


def draw_curves(metrics: Path) -> "Figure | None":
    """The matplotlib figure of `plot_curves`, or None where there are no numbers."""
    # Not pyplot: a figure of its own needs no display and leaves the user's figures alone.
    from matplotlib.figure import Figure

    curves, epochs = read_curves(metrics)
    for name in curves:
        if _share(name) or name == "train/data_wait":
            steps, values = curves[name]
            curves[name] = steps, 100 * values  # per cent
    losses = [name for name in curves if name.split("/")[-1].startswith("loss")]
    ranks = [name for name in curves if name.startswith("val/") and name.endswith(("_mdr", "_mnr"))]
    groups = {
        "loss": losses,
        "score": [name for name in curves if name.startswith("val/") and name not in [*losses, *ranks]],
        "rank": ranks,
        "learning rate": _highest_rate(curves),
        "clips per second": [name for name in curves if name == "train/clips_per_second"],
    }
    groups = {title: names for title, names in groups.items() if names}
    if not groups:
        return None
    figure = Figure(figsize=(11, 3.7 * -(-len(groups) // 2)), dpi=120, layout="constrained")
    panels = figure.subplots(-(-len(groups) // 2), min(len(groups), 2), squeeze=False).flatten()
    for panel in panels[len(groups) :]:
        panel.remove()
    last_step = max(steps[-1] for steps, _ in curves.values())
    for panel, (title, names) in zip(panels, groups.items(), strict=False):
        kinds = [kind for kind in dict.fromkeys(map(_share, names)) if kind is not None]
        is_share = all(_share(name) is not None for name in names)
        for number, name in enumerate(names):
            _draw_curve(panel, name, *curves[name], color=f"C{number}")
        panel.set(xlabel="step", ylabel=f"{', '.join(kinds)} (%)" if is_share else title, xlim=(0, last_step + 1))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        _epoch_axis(panel, epochs)
        if title in ("clips per second", "score"):
            panel.set_ylim(bottom=0)
        if title == "rank":
            panel.set_yscale("log")
        if title == "clips per second" and "train/data_wait" in curves:
            beside = panel.twinx()
            _draw_curve(beside, "train/data_wait", *curves["train/data_wait"], color="C1")
            beside.set_ylim(0, 100)
            beside.set_ylabel("waiting for data (% of the time)", color="C1")
            panel.yaxis.label.set_color("C0")
        else:
            panel.legend(frameon=False)
    figure.suptitle(str(metrics.absolute().parent.relative_to(metrics.absolute().parents[2])))
    return figure


def read_curves(metrics: Path) -> tuple[dict[str, Curve], Curve]:
    """The columns of a metrics.csv, each as its steps and the numbers there; and apart from them the epochs."""
    points: dict[str, list[tuple[float, float]]] = {}
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    points.setdefault(name, []).append((float(row["step"]), float(value)))
    curves: dict[str, Curve] = {}
    for name, found in sorted(points.items()):
        steps, values = np.array(found).T
        curves[name] = steps, values
    return curves, curves.pop("epoch", (np.zeros(0), np.zeros(0)))


def _share(name: str) -> str | None:
    """What a number is the share of, if it is one.

    val/top1 and val/verb_top5 are shares of right answers, val/t2v_r5 and val/noun_recall5 of what was found.
    """
    if re.fullmatch(r"(.*_)?top\d+(_as_coded)?", name.split("/")[-1]):
        return "accuracy"
    return "recall" if re.fullmatch(r".*_r(ecall)?\d+(_as_coded)?", name.split("/")[-1]) else None


def _draw_curve(panel: "Axes", name: str, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    """Numbers of a validation as they are; those of training steps, which jump, with the mean of a moving window."""
    label = f"{name}, last {values[-1]:.3g}"
    if not name.startswith("train/") or len(values) < 20:
        marker = "o" if len(values) < 60 else None
        panel.plot(steps, values, color=color, lw=1.4, marker=marker, ms=3, label=label)
        return
    width = max(len(values) // 20, 3)
    window = np.ones(width)
    # The window is cut at the ends.
    smooth = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    panel.plot(steps, values, color=color, lw=0.6, alpha=0.35)
    panel.plot(steps, smooth, color=color, lw=1.6, label=label)


def _epoch_axis(panel: "Axes", epochs: Curve) -> None:
    """A second axis along the top that counts epochs begun, where there are several."""
    steps, numbers = epochs
    firsts = [steps[numbers == epoch].min() for epoch in np.unique(numbers)]
    if len(firsts) < 2:
        return
    length = (steps.max() + 1) / (numbers.max() + 1)
    top = panel.secondary_xaxis("top", functions=(lambda x: x / length, lambda x: x * length))
    top.set_xlabel("epoch")
    top.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # it is a MaxNLocator


def _highest_rate(curves: dict[str, Curve]) -> list[str]:
    """The group of parameters with the highest learning rate stands for all."""
    rates = [name for name in curves if name.startswith("lr-") and not name.endswith(("-momentum", "-weight_decay"))]
    return [max(rates, key=lambda name: curves[name][1].max())] if rates else []
