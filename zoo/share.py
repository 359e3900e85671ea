"""Convert and push checkpoints to folders and repositories that others can load, with a model card."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

import hub
from hub.card import About, Score, about_run, make_card, started_from
from hub.checkpoint import CARD, CONFIG, Checkpoint, write
from lightning_modules.errors import ModelError
from zoo.build import load, read_local
from zoo.errors import UnknownModelError, ZooError
from zoo.fetch import REPOSITORY
from zoo.registry import Entry, info

__all__ = ["convert", "push"]


def convert(path: str | os.PathLike[str], folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """Write a checkpoint as a folder in the hub format: safetensors weights, config.json and a card.

    The run's config, its logged metrics and the picture of its curves are copied too.

    Args:
        path: an official file (then `name` is needed), or a Lightning ``.ckpt`` of a module of the zoo, or a run's
            folder.
        folder: where to write; see `hub.save`.
        name: registered name of the model the weights belong to.

    The folder is loaded before it gets its final name, so a model that cannot be loaded leaves no folder.

    Raises:
        HubError: every tensor has to be used up; keys and shapes that do not fit are listed.
        ModelError: the config does not fit the model's class.
        ZooError: `name` is needed and not given.
    """
    path = Path(path).expanduser()
    if name is None:
        if path.is_file() and path.suffix != ".ckpt":
            command = shlex.join(["zoo", "convert", str(path), str(folder)])
            raise ZooError(f"{path} does not say which model it is; name it: {command} --name MODEL.")
        checkpoint = read_local(path)
        about = _about(checkpoint)
    else:
        module = load(name, checkpoint=path)
        checkpoint = Checkpoint(module.config, module.state_dict())
        about = _about_entry(info(name))
    if CARD not in checkpoint.extras:
        card = make_card(checkpoint, about, os.fspath(folder))
        checkpoint = checkpoint._replace(extras={**checkpoint.extras, CARD: card.encode()})

    def check(beside: Path) -> None:
        try:
            load(beside)
        except (hub.HubError, ModelError, ZooError) as error:
            reason = str(error).replace(str(beside / CONFIG), str(path)).replace(str(beside), str(path))
            raise hub.HubError(f"{folder} is not written, since it could not be loaded: {reason}") from error

    return write(checkpoint, folder, check)


def push(source: str | os.PathLike[str], repo_id: str, *, private: bool = False, license: str | None = None) -> str:
    """Share a trained or converted model on the Hugging Face Hub, in one commit.

    Args:
        source: a run's folder, a ``.ckpt``, or a folder in the hub format.
        repo_id: "organisation/name"; made if need be.
        private: make a new repository private.
        license: identifier the Hub knows; None takes that of the weights the training started from, where known.

    Returns:
        The address of the commit.

    Raises:
        HubError: the source cannot be read or loaded, or the Hub refuses.
        ModelError: the model's class is not registered.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ZooError(f"{path} does not exist; push a run's folder, a .ckpt file or a model folder.")
    load(path)  # do not share what cannot be loaded
    checkpoint = read_local(path)
    model = path if (path / CONFIG).is_file() else checkpoint
    address: str = hub.push(model, repo_id, private=private, license=license, about=_about(checkpoint))
    return address


def _about(checkpoint: Checkpoint) -> About:
    """Collect facts from a run's files, and from the registry entry of the model that it started from."""
    about, source = about_run(checkpoint), started_from(checkpoint)
    if source is None or Path(source).expanduser().exists():
        return about
    try:
        entry = info(source)
    except UnknownModelError:
        repository = REPOSITORY.fullmatch(source)
        return replace(about, base_model=None if repository is None else repository["repo"])
    return replace(about, base_model=None if entry.weights is None else entry.weights.repo_id,
                   license=entry.meta.get("license"))  # fmt: skip


def _about_entry(entry: Entry) -> About:
    """Collect facts from the registry about a published checkpoint."""
    meta = entry.meta
    clips, crops = meta.get("num_clips"), meta.get("num_crops")
    views = "" if clips is None or crops is None else f", {clips} x {crops} views"
    scores = [
        Score(metric, meta[metric] / 100, note=f"as published{views}")
        for metric in ("top1", "top5")
        if meta.get(metric) is not None
    ]
    weights = entry.weights
    return About(
        dataset=meta.get("dataset_title") or meta.get("dataset"),
        scores=tuple(scores),
        license=meta.get("license"),
        base_model=weights.repo_id if weights else None,
        task=_task_on_the_hub(entry.task),
        paper=meta.get("paper"),
        note=f"Converted from the published weights of {entry.name}." if weights and weights.repo_id else None,
    )


def _task_on_the_hub(task: str) -> str:
    """The Hub has no task for pretraining, where a model provides features, and none for actions."""
    if task.endswith("-pretraining"):
        return "feature-extraction"
    return "video-classification" if task == "action-classification" else task
