"""Locate a model's files and fetch them into the cache; for models of the registry without loading torch."""

import re
from pathlib import Path
from typing import Any

import hub
from zoo.errors import UnknownModelError, ZooError
from zoo.recipe import list_recipes
from zoo.registry import Entry, Weights, info

__all__ = ["REPOSITORY", "fetch", "fetch_folder", "fetch_vocabulary", "started_from", "weights_of"]

REPOSITORY = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

# Files of a tokenizer that official files lack, by the task of their model.
_VOCABULARIES = {"video-text-pretraining": ("vocab.txt",), "text-video-retrieval": ("merges.txt",)}


def fetch(source: str) -> list[Path]:
    """Download what `zoo.load` reads, for use without a connection.

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
        if entry is None or "text_weights" not in entry.parts:
            return [file]
        return [file, *(fetch_vocabulary(entry, name) for name in _VOCABULARIES.get(entry.task, ()))]
    return fetch_folder(weights.repo_id, weights.revision, weights.sha256, complete=True)[1]


def fetch_folder(
    repo_id: str, revision: str | None, sha256: str | None = None, complete: bool = False
) -> tuple[dict[str, Any], list[Path]]:
    """Config and files of a folder of the hub format on the Hub, the weights first.

    The weights come from the commit that the config was found in, and after a class that is not ours was refused.

    Args:
        repo_id: the repository.
        revision: branch, tag or commit.
        sha256: of the weights; None takes what the config records.
        complete: fetch the other files of the folder too.

    Raises:
        HubError: the files cannot be fetched.
        ModelError: the repository holds something else than a model of the zoo.
    """
    from hub.checkpoint import CONFIG, FILES, WEIGHTS, read_config
    from hub.remote import commit_of, list_files
    from zoo.configs import normalise_of  # torch takes a second

    config_file = hub.pull(repo_id, CONFIG, revision)
    found, recorded = read_config(config_file)
    config = normalise_of(f"{CONFIG} of {repo_id}", found)
    commit = commit_of(config_file, CONFIG)
    files = [hub.pull(repo_id, WEIGHTS, commit, sha256=sha256 or recorded), config_file]
    if complete:
        there = set(list_files(repo_id, commit)) - {CONFIG, WEIGHTS}
        files += [hub.pull(repo_id, name, commit) for name in FILES if name in there]
    return config, files


def fetch_vocabulary(entry: Entry, name: str = "vocab.txt") -> Path:
    """Fetch a file of the tokenizer of an official model, which its own file lacks.

    It is that of the BERT, RoBERTa or CLIP that the model started from.
    """
    from lightning_modules.nets.pretrained import PINNED

    repository = entry.parts["text_weights"]
    revision, sha256 = PINNED[repository][name]
    file: Path = hub.pull(repository, name, revision, sha256=sha256)
    return file


def weights_of(entry: Entry) -> Weights:
    """Return the place of the weights of an entry.

    Raises:
        ZooError: none are released.
    """
    page = entry.meta.get("weights_page")
    if entry.weights is None and page is not None:
        raise ZooError(
            f"The authors keep the weights of {entry.name} on a drive that {page} links; get the file there and name "
            f"it, zoo.load({entry.name!r}, checkpoint=FILE) or --checkpoint FILE."
        )
    if entry.weights is None:
        recipe = entry.name in list_recipes()
        train = f"`lightning fit --config {entry.name}` trains it and " if recipe else ""
        raise ZooError(
            f"{entry.name} has no released weights; {train}zoo.create({entry.name!r}) builds it {started_from(entry)}."
        )
    return entry.weights


def started_from(entry: Entry) -> str:
    """Describe what `zoo.create` starts an entry from."""
    return f"from {' and '.join(entry.parts.values())}" if entry.parts else "untrained"
