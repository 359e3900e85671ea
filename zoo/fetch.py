"""Where a model's files are, and how they get into the cache; loads no torch for models of the registry."""

import re
from pathlib import Path

import hub
from zoo.errors import UnknownModelError, ZooError
from zoo.recipe import list_recipes
from zoo.registry import Entry, Weights, info

__all__ = ["REPOSITORY", "fetch", "fetch_vocabulary", "started_from", "weights_of"]

REPOSITORY = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def fetch(source: str) -> list[Path]:
    """Downloads what `zoo.load` reads, so that it needs no connection afterwards.

    Args:
        source: a registered name, or a Hub repository as for `zoo.load`; of a repository the card and the files of the
            training are fetched too.

    Returns:
        The files in the cache, the weights first; none for a model that is shipped.

    Raises:
        UnknownModelError: no such name.
        ZooError: the model has no released weights.
        HubError: the files cannot be fetched.
        ModelError: the repository holds something else than a model of the zoo.
    """
    entry = None
    try:
        entry = info(source)
        weights = weights_of(entry)
    except UnknownModelError:
        repository = REPOSITORY.fullmatch(source)
        if repository is None:
            raise
        weights = Weights(repository["repo"], revision=repository["revision"])
    if weights.repo_id is None:
        return []
    if weights.filename is not None:
        file = hub.pull(weights.repo_id, weights.filename, weights.revision, sha256=weights.sha256)
        return [file, fetch_vocabulary(entry)] if entry and entry.task == "video-text-pretraining" else [file]
    from zoo.build import fetch_folder

    return fetch_folder(weights.repo_id, weights.revision, weights.sha256, complete=True)[1]


def fetch_vocabulary(entry: Entry) -> Path:
    """The word pieces of an official model, which its file lacks: those of the BERT it started from, one a line."""
    from lightning_modules.nets.pretrained import PINNED

    repository = entry.parts["text_weights"]
    revision, sha256 = PINNED[repository]["vocab.txt"]
    return hub.pull(repository, "vocab.txt", revision, sha256=sha256)


def weights_of(entry: Entry) -> Weights:
    """Where the weights of an entry are.

    Raises:
        ZooError: none are released.
    """
    if entry.weights is None:
        recipe = entry.name in list_recipes()
        train = f"`lightning fit --config {entry.name}` trains it and " if recipe else ""
        raise ZooError(
            f"{entry.name} has no released weights; {train}zoo.create({entry.name!r}) builds it {started_from(entry)}."
        )
    return entry.weights


def started_from(entry: Entry) -> str:
    """What `zoo.create` starts an entry from, in words."""
    return f"from {' and '.join(entry.parts.values())}" if entry.parts else "untrained"
