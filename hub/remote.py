"""The Hugging Face Hub: downloads, cached and locked by huggingface_hub and checked here, and pushes of one commit."""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn, Union

from hub.answers import API_BYTES, SHORT, limited, shortened
from hub.errors import HubError, UnreachableError
from hub.hashes import check_sha256, matches_etag, sha256_of

if TYPE_CHECKING:  # the first is slow to load, and the others load torch, which downloads do without
    from huggingface_hub.errors import HfHubHTTPError

    from hub.card import About
    from hub.checkpoint import Checkpoint, Saveable

__all__ = ["check_login", "commit_of", "list_files", "pull", "pull_folder", "push"]

# What an access token of the Hub looks like; nothing that does is ever pushed.
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
# Files of any size; of others `SHORT` is the limit.
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# The disk or the quota is full, or a file may not grow that large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def pull(repo_id: str, filename: str, revision: str | None = None, *, sha256: str | None = None) -> Path:
    """Return the local path of a file of a Hub repository, downloading it on first use.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected. The file is compared with the hash in the Hub's
    metadata whenever it is asked for; where it differs (a bad download, or damage on the disk since) it is fetched
    again, once. A cache without symbolic links does not keep that hash: there, only the download itself is compared.
    What the Hub may answer is limited, see `hub.answers`.

    Args:
        repo_id: "organisation/name".
        filename: path inside the repository.
        revision: branch, tag or commit; None is the default branch.
        sha256: hex digest the file must have; None where it is not known.

    Raises:
        HubError: unknown repository, file or revision; no access; no connection and nothing cached; no room on the
            disk; a file that is damaged, or does not have `sha256`; or an answer that breaks a limit.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    where = f"{repo_id} at {revision}" if revision else repo_id
    what = f"{filename} of {where}"
    _check_names(repo_id, filename, revision)
    most = None if filename.endswith(WEIGHTS) else SHORT
    no_entry = f"{where} has no file {filename}; check its file list."
    with _explained(repo_id, revision, what, no_entry), limited(what, constants.HF_HUB_CACHE, most):
        is_cached = isinstance(try_to_load_from_cache(repo_id, filename, revision=revision), str)
        told = None if is_cached else _look_once(repo_id, filename, revision)
        path = Path(hf_hub_download(repo_id, filename, revision=revision))
        _refuse_outside(path, filename)
        if not _is_sound(path, told):
            _fetch_again(repo_id, filename, path, told)
    if sha256 is not None and sha256.lower() != _etag_of(path):
        check_sha256(path, sha256, f"delete it and fetch it again, or ask the owners of {repo_id} what they changed")
    return path


def commit_of(path: Path, filename: str) -> str:
    """The commit that a file returned by `pull` belongs to: the cache keeps ``snapshots/<commit>/<filename>``."""
    return path.parents[len(Path(filename).parts) - 1].name


def list_files(repo_id: str, revision: str | None = None) -> list[str]:
    """Names of the files of a repository.

    Raises:
        HubError: as for `pull`; or a name that would lead out of the folder it is downloaded to.
    """
    from huggingface_hub import HfApi, constants

    _check_names(repo_id, "", revision)
    what = f"the file list of {repo_id}"
    with _explained(repo_id, revision, what, f"{repo_id} has no file list."), limited(what, constants.HF_HUB_CACHE):
        # One answer, whose size is limited; list_repo_files asks for page after page.
        names = [file.rfilename for file in HfApi().model_info(repo_id, revision=revision).siblings or ()]
    for name in names:
        if not _stays_inside(name):
            raise HubError(f"{repo_id} lists a file {shortened(repr(name))}, whose name leads out of its folder; "
                           "nothing was fetched: do not use this repository.")  # fmt: skip
    return names


def pull_folder(repo_id: str, choose: Callable[[list[str]], list[str]], revision: str | None = None) -> Path:
    """The folder of the cache that holds ``config.json`` of a repository and the files chosen, all of one commit.

    Args:
        repo_id: "organisation/name".
        choose: takes the names of the repository's files and returns those that are wanted; where the Hub does not
            answer, the names are those in the cache.
        revision: as for `pull`.

    Raises:
        HubError: as for `pull` and `list_files`.
    """
    from hub.checkpoint import CONFIG

    config = pull(repo_id, CONFIG, revision)
    commit = commit_of(config, CONFIG)
    try:
        names = choose(list_files(repo_id, commit))
    except HubError:
        names = choose([file.name for file in config.parent.iterdir()])
        if not names:
            raise
    for name in names:
        pull(repo_id, name, commit)
    return config.parent


def push(
    model: Union["Saveable", "Checkpoint", str, os.PathLike[str]],
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    about: Union["About", None] = None,
    message: str = "Upload a model of the zoo",
) -> str:
    """Put a model into a Hub repository, in one commit; the repository is made if need be.

    Where the connection breaks, the repository's files stay as they were; pushing again then succeeds. The token is
    that of HF_TOKEN or of ``hf auth login``; it goes into no file.

    Args:
        model: a module of the zoo, a `Checkpoint`, or a model folder, whose files are pushed as they are.
        repo_id: "organisation/name".
        private: make a new repository private. An existing one has to be private already then.
        license: identifier the Hub knows, such as ``apache-2.0``; None leaves what the card or `about` says.
        about: `hub.card.About` for the card; None takes what the model's own files say. A folder's README.md is kept.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        HubError: no access, no connection, a file holds an access token, or the folder is not a model.
    """
    from hub.card import about_run, address, make_card
    from hub.checkpoint import CARD, CONFIG, FILES, WEIGHTS, Checkpoint, checkpoint_of, read, read_text, with_hash

    _check_names(repo_id, "", None)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(model, str | os.PathLike):
            folder = Path(model).expanduser()
            checkpoint = read(folder)
        else:
            checkpoint = model if isinstance(model, Checkpoint) else checkpoint_of(model)
            folder = _written(checkpoint, Path(scratch))
        content: dict[str, bytes | Path] = {name: folder / name for name in FILES if (folder / name).is_file()}
        content[CONFIG] = with_hash(checkpoint.config, sha256_of(folder / WEIGHTS)).encode()
        if CARD in checkpoint.extras:
            card = address(read_text(folder / CARD), checkpoint, repo_id, license)
        else:
            about = about or about_run(checkpoint)
            card = make_card(checkpoint, replace(about, license=license or about.license), repo_id)
        content[CARD] = card.encode()
        _refuse_tokens(content, WEIGHTS)
        what = f"the push to {repo_id}"
        with _explained(repo_id, None, what, pushing=True), limited(what, scratch, API_BYTES):
            return _commit(repo_id, content, private, message)


def _written(checkpoint: "Checkpoint", scratch: Path) -> Path:
    from safetensors import SafetensorError

    from hub.checkpoint import write

    try:
        return write(checkpoint, scratch / "model")
    except HubError as error:
        if not isinstance(error.__cause__, (OSError, SafetensorError)):
            raise
        raise HubError(f"The model cannot be written to {scratch.parent} before it is pushed "
                       f"({_reason(error.__cause__)}), so nothing was pushed; make room, or set TMPDIR to a folder on "
                       "another disk.") from error  # fmt: skip


def check_login() -> None:
    """Ask the Hub who the token belongs to.

    Raises:
        HubError: there is no token, it is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise HubError("Pushing needs an access token and there is none; set HF_TOKEN, or run `hf auth login`.")
    what = "the question whose access token this is"
    with _explained("", None, what, pushing=True), limited(what, tempfile.gettempdir(), API_BYTES):
        HfApi().whoami()


def _commit(repo_id: str, content: dict[str, bytes | Path], private: bool, message: str) -> str:
    """Make the repository's model files those of `content`, with one commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from hub.checkpoint import FILES

    api = HfApi()
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.model_info(repo_id)
    if private and not info.private:
        raise HubError(f"{repo_id} exists and is public, so nothing was pushed; make it private in its settings, or "
                       "choose another name.")  # fmt: skip
    there = {file.rfilename for file in info.siblings or ()}
    stale = [name for name in FILES if name in there and name not in content]
    added = [CommitOperationAdd(name, part) for name, part in content.items()]
    removed = [CommitOperationDelete(name) for name in stale]
    # With its parent named, the commit cannot cover one that somebody else makes in the meantime.
    done = api.create_commit(repo_id, [*added, *removed], commit_message=message, parent_commit=info.sha)
    return str(done.commit_url)


def _refuse_tokens(content: dict[str, bytes | Path], weights: str) -> None:
    from huggingface_hub import get_token

    own = (get_token() or "").encode()
    for name, part in content.items():
        if name == weights:
            continue
        text = part if isinstance(part, bytes) else part.read_bytes()
        if TOKEN.search(text) or (own and own in text):
            raise HubError(f"{name} holds an access token of the Hub, so nothing was pushed; remove it from the file, "
                           "and replace the token if others have seen it.")  # fmt: skip


def _check_names(repo_id: str, filename: str, revision: str | None) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise HubError(f"{repo_id!r} is not a repository name; write organisation/name.")
    if filename and not _stays_inside(filename):
        raise HubError(f"{filename!r} leads out of the folder of {repo_id}; name a file in it.")
    if revision is not None and not _stays_inside(revision):
        raise HubError(f"{repo_id} has no revision {revision!r}; check its branches, tags and commits.")


def _stays_inside(name: str) -> bool:
    """Whether a relative path names something below the folder it is joined to, on every system."""
    return (
        not set(name) & set('\\:*?"<>|\0')
        and not PurePosixPath(name).is_absolute()
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def _refuse_outside(path: Path, filename: str) -> None:
    """Refuse a file of the cache that is outside the folders of its repository and the folder of shared files.

    Each of the folders may be a link to another disk.
    """
    snapshots = path.parents[len(Path(filename).parts)]
    folders = (snapshots.parent, snapshots, snapshots.parent / "blobs", snapshots.parents[1] / "blobs")
    if not any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise HubError(f"{path} leads to {path.resolve()}, which is outside of the cache, so it is not used; delete "
                       "the link and fetch the file again.")  # fmt: skip


def _is_sound(path: Path, told: str | None) -> bool:
    """Whether a cached file has the content its etag names: its blob's name in the cache, or what the Hub `told`."""
    etag = _etag_of(path) or told
    return etag is None or matches_etag(path, etag)


def _etag_of(path: Path) -> str | None:
    """The name of the blob that a file of the cache links to; None in a cache without links."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _fetch_again(repo_id: str, filename: str, path: Path, told: str | None) -> None:
    from huggingface_hub import constants, hf_hub_download

    where = f"{filename} of {repo_id}"
    if not path.is_symlink():
        path.unlink()  # without links huggingface_hub keeps the file that is there
    try:
        hf_hub_download(repo_id, filename, revision=commit_of(path, filename), force_download=True)
    except ValueError as error:  # what huggingface_hub raises where it cannot download and must
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub does not answer"
        raise HubError(f"{where} is damaged ({path}) and cannot be fetched again, since {why}; connect and run "
                       f"`zoo pull {repo_id}`.") from error  # fmt: skip
    if not _is_sound(path, told):
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise HubError(f"{where} arrives with another content than the Hub's metadata says, so it is not used; try "
                       f"again later, and tell the owners of {repo_id} if it stays so.")  # fmt: skip


def _look_once(repo_id: str, filename: str, revision: str | None) -> str | None:
    """Ask for the file's etag, to report a missing connection at once: hf_hub_download retries for 25 seconds."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision)).etag
    except HubError:  # a limit
        raise
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return None
    except Exception as error:  # the HTTP library's connection errors, whose names change with huggingface_hub
        _refuse(
            f"{filename} of {repo_id} is not in the cache and {constants.ENDPOINT} cannot be reached "
            f"({_reason(error)}); connect and try again.",
            error,
            UnreachableError,
        )


@contextmanager
def _explained(
    repo_id: str, revision: str | None, what: str, no_entry: str = "", pushing: bool = False
) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HubError:
        raise
    except HFValidationError as error:
        _refuse(f"{repo_id!r} is not a repository name; write organisation/name.", error)
    except GatedRepoError as error:
        _refuse(f"{repo_id} is gated; ask for access on its page and set HF_TOKEN.", error)
    except RepositoryNotFoundError as error:
        if pushing:
            _refuse(f"{repo_id} cannot be written to: set HF_TOKEN to a valid token that may write there.", error)
        sentence = f"There is no repository {repo_id} on the Hub, or it is private: check the name or set HF_TOKEN."
        _refuse(sentence, error)
    except RevisionNotFoundError as error:
        _refuse(f"{repo_id} has no revision {revision!r}; check its branches, tags and commits.", error)
    except LocalEntryNotFoundError as error:
        if (answer := _answer_behind(error)) is not None:
            _refuse(_of_status(answer, what, pushing), error)
        sentence = f"{what} is not in the cache and the Hub does not answer; connect, or unset HF_HUB_OFFLINE."
        _refuse(sentence, error, UnreachableError)
    except EntryNotFoundError as error:
        _refuse(no_entry or f"{what} is gone; try again.", error)
    except HfHubHTTPError as error:
        _refuse(_of_status(error, what, pushing), error)
    except Exception as error:  # whatever a broken connection or the HTTP library's own errors are called
        if isinstance(error, OSError) and error.errno in FULL:
            folder, variable = (tempfile.gettempdir(), "TMPDIR") if pushing else (constants.HF_HUB_CACHE, "HF_HOME")
            _refuse(
                f"There is no room for {what} in {folder} ({error.strerror}); make room, or set {variable} to a folder "
                "on another disk.",
                error,
            )
        answer = _answer_behind(error)
        if answer is not None and not isinstance(error, ValueError):  # that says itself what the Hub finds wrong
            _refuse(_of_status(answer, what, pushing), error)
        if not pushing:
            _refuse(f"{what} could not be fetched ({_reason(error)}); try again later.", error)
        remedy = "set HF_HUB_DISABLE_XET=1 for a Hub without Xet storage" if "xet" in str(error) else "push again"
        _refuse(
            f"{what[0].upper()}{what[1:]} failed ({_reason(error)}); all of it arrived or nothing: {remedy}.", error
        )


def _answer_behind(error: BaseException) -> "HfHubHTTPError | None":
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause


def _of_status(error: "HfHubHTTPError", what: str, pushing: bool) -> str:
    status = error.response.status_code
    if status in (401, 403):
        remedy = "set HF_TOKEN to a valid token that may write there" if pushing else "check HF_TOKEN"
    elif status == 412:
        remedy = "somebody else pushed at the same time: look at it, and push again"
    else:
        remedy = "try again later"
    told = f" ({shortened(error.server_message)})" if error.server_message else ""
    return f"The Hub answers {status}{told} for {what}; {remedy}."


def _reason(error: BaseException) -> str:
    return shortened(str(error) or type(error).__name__)


def _refuse(sentence: str, error: BaseException, kind: type[HubError] = HubError) -> NoReturn:
    """Raise a `HubError`; neither it nor its cause contains a token that the HTTP library quotes."""
    from huggingface_hub import get_token

    token = get_token()
    seen = ""
    cause: BaseException | None = error
    while cause is not None:
        seen, cause = f"{seen}{cause!r}", cause.__cause__ or cause.__context__
    leaks = [form for form in (token, repr(token)[1:-1]) if form in seen + sentence] if token else []
    for form in leaks:
        sentence = sentence.replace(form, "<token>")
    raise kind(sentence) from None if leaks else error
