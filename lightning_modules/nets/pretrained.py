"""Checkpoints of others that parts start from, CLIP and BERT: which files, at which commit, and how they get here.

What a name stands for is said in ``pretrained.csv`` alone: each file is that of one commit and one SHA-256, so that it
is the same for everybody. (Of one commit, the full name is not known; there the hash decides.) The weights are
safetensors, which for CLIP are in pull requests of the Hub's robot and not on the main branch. Files are fetched and
checked by `FETCHER`; transformers only reads folders.
"""

import csv
import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_modules.errors import ModelError

__all__ = ["BERT_SIZES", "PINNED", "fitting_sizes", "pretrained_folder"]

BERT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
"""Sizes of BERT and RoBERTa, as transformers calls them."""

# The module that fetches, with `pull` and `pull_folder`. Named, not imported: this package knows none of ours.
FETCHER = "hub.remote"

_REPOSITORY = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
# A name from before the Hub had organisations.
_RENAMED = {"bert-base-uncased": "google-bert/bert-base-uncased"}
_SETTINGS = re.compile(
    r"(?:config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|vocab\.txt|merges\.txt"
)
# The first kind that a repository has; the others hold the same weights again.
_WEIGHTS = (
    re.compile(r"model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?"),
    re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?"),
)


def _read_pins() -> dict[str, dict[str, tuple[str, str]]]:
    pins: dict[str, dict[str, tuple[str, str]]] = {}
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pins.setdefault(row["repo_id"], {})[row["filename"]] = row["revision"], row["sha256"]
    return pins


# Repository -> file -> revision, SHA-256.
PINNED = _read_pins()


@contextmanager
def fitting_sizes(where: str) -> Iterator[None]:
    """Build a model of transformers in the block.

    Raises:
        ModelError: the sizes in the argument `where` do not fit together.
    """
    try:
        yield
    except Exception as error:  # transformers' checks raise a type of their own for each kind of mistake
        raise ModelError(f"The sizes in {where} do not fit together: {' '.join(str(error).split())}") from error


@contextmanager
def pretrained_folder(kind: str, source: str, *, weights: bool = True) -> Iterator[str]:
    """A folder with a checkpoint's files, which the block reads with transformers.

    Args:
        kind: CLIP, BERT or RoBERTa.
        source: a folder that transformers wrote, or a repository of the Hugging Face Hub, ``organisation/name``, with
            ``@revision`` if wanted. One in `PINNED` means the files there, unless a revision is named.
        weights: fetch the weights too, and not only settings and vocabulary.

    Raises:
        ModelError: the files cannot be fetched, or are not those that were recorded, or the block cannot read them.
    """
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            yield str(folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield _fetch(source, weights, scratch)
    except ModelError:
        raise
    except Exception as error:  # transformers passes on what safetensors and JSON raise
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ModelError(f"The {kind} checkpoint {source!r} cannot be read ({reason}); name a {kind} model of the "
                         "Hugging Face Hub or a folder that holds one.") from error  # fmt: skip


def _fetch(source: str, weights: bool, scratch: str) -> str:
    found = _REPOSITORY.fullmatch(source)
    if found is None or source.startswith("."):
        raise FileNotFoundError("there is no such folder")
    fetcher = importlib.import_module(FETCHER)
    repository, revision = _RENAMED.get(found["repo"], found["repo"]), found["revision"]

    def choose(names: list[str]) -> list[str]:
        chosen = [name for name in names if _SETTINGS.fullmatch(name)]
        kinds = ([name for name in names if kind.fullmatch(name)] for kind in _WEIGHTS)
        return chosen + next(filter(None, kinds), []) if weights else chosen

    try:
        if revision is not None or repository not in PINNED:
            return str(fetcher.pull_folder(repository, choose, revision))
        for name in choose(list(PINNED[repository])):
            revision, sha256 = PINNED[repository][name]
            # The files of two commits are in two folders of the cache.
            _link(fetcher.pull(repository, name, revision, sha256=sha256), Path(scratch, name))
        return scratch
    except RuntimeError as error:  # the fetcher's own, whose message is complete
        raise ModelError(str(error)) from error


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.resolve())
    except OSError:  # a system without links
        shutil.copyfile(file, link)
