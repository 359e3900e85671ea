"""Describe a model that is not in the registry: a folder, a run, a checkpoint or a repository."""

import math
import os
from pathlib import Path

import hub
from hub.card import about_run, started_from
from hub.checkpoint import CONFIG, WEIGHTS, Checkpoint, read_config
from hub.lightning_ckpt import find_checkpoint
from hub.remote import commit_of
from zoo.build import read_config_of, read_local
from zoo.configs import normalise
from zoo.errors import UnknownModelError
from zoo.fetch import REPOSITORY
from zoo.registry import Entry, Weights, entries

__all__ = ["look"]


def look(source: str) -> Entry:
    """Describe what `zoo.load` would load; of a repository only the config is fetched.

    Args:
        source: a model folder, a run's folder, a ``.ckpt``, or a repository ``org/name`` or ``hf://org/name@revision``.

    Returns:
        An entry named as the source, with those keys of `Entry.meta` that are known: ``dataset``, ``resolution``,
        ``params``, ``license``, ``init_from``, and ``scores``, the results by their names.

    Raises:
        UnknownModelError: no such folder or file.
        HubError: it cannot be read or fetched.
        ModelError: it holds something else than a model of the zoo.
    """
    path, repository = Path(source).expanduser(), REPOSITORY.fullmatch(source)
    if path.exists():
        found = read_local(path)
        is_run = path.is_dir() and not (path / CONFIG).is_file()
        file = (find_checkpoint(path) if is_run else None) or path
        return _entry(source, found, Weights(folder=os.fspath(file)))
    if repository is None or source.startswith((".", "~")):
        read_config_of(source)  # raises the error that names the reason
        raise UnknownModelError(f"{source} does not exist; pass a model folder, a .ckpt file or a repository.")
    file = hub.pull(repository["repo"], CONFIG, repository["revision"])
    config, sha256 = read_config(file)
    weights = Weights(repository["repo"], WEIGHTS, commit_of(file, CONFIG), sha256)
    return _entry(source, Checkpoint(normalise(config), {}), weights)


def _entry(source: str, found: Checkpoint, weights: Weights) -> Entry:
    class_path, init_args = found.config["class_path"], found.config["init_args"]
    tasks = {entry.class_path: entry.task for entry in entries()}
    if tasks.get(class_path, "").endswith("-classification"):
        tasks[class_path] = f"{'image' if init_args.get('num_frames') is None else 'video'}-classification"
    about = about_run(found)
    size = sum(math.prod(tensor.shape) for tensor in found.state_dict.values())
    scores = {" ".join(filter(None, (score.split, score.metric))): score.value for score in about.scores}
    meta = {
        "dataset": about.dataset,
        "resolution": init_args.get("image_size"),
        "params": size or None,
        "license": about.license,
        "init_from": started_from(found),
        "scores": scores or None,
    }
    return Entry(source, (), tasks.get(class_path, class_path.rpartition(".")[2]), class_path, init_args, weights, meta)
