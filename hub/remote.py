"""Downloads from the Hugging Face Hub, cached and locked by huggingface_hub."""

import hashlib
from pathlib import Path

from hub.errors import HubError

__all__ = ["check_sha256", "commit_of", "pull"]


def pull(repo_id: str, filename: str, revision: str | None = None, *, sha256: str | None = None) -> Path:
    """Returns the local path of a file of a Hub repository, downloading it on first use.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected.

    Args:
        repo_id: "organisation/name".
        filename: path inside the repository.
        revision: branch, tag or commit; None is the default branch.
        sha256: hex digest the file must have; None where it is not known.

    Raises:
        HubError: unknown repository, file or revision; no access; no connection and nothing cached; or a file that does
            not have `sha256`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo_id} at {revision}" if revision else repo_id
    try:
        if not _cached(repo_id, filename, revision):
            _look_once(repo_id, filename, revision)
        path = Path(hf_hub_download(repo_id, filename, revision=revision))
    except HubError:
        raise
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is not a repository name; write organisation/name.") from error
    except GatedRepoError as error:
        raise HubError(f"{repo_id} is gated; ask for access on its page and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"There is no repository {repo_id} on the Hub, or it is private: check the name or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo_id} has no revision {revision!r}; check its branches, tags and commits.") from error
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{filename} of {where} is not in the cache and the Hub does not answer; connect, or unset HF_HUB_OFFLINE, "
            "or name a file you have (checkpoint=, --checkpoint)."
        ) from error
    except EntryNotFoundError as error:
        raise HubError(f"{where} has no file {filename}; check its file list.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check HF_TOKEN" if status in (401, 403) else "try again later"
        raise HubError(f"The Hub answers {status} for {filename} of {where}; {remedy}.") from error
    except Exception as error:  # whatever a broken connection, a full disk or the HTTP library's own errors are called
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(f"{filename} of {where} could not be fetched ({reason}); try again later.") from error
    if sha256 is not None:
        check_sha256(path, sha256)
    return path


def commit_of(path: Path, filename: str) -> str:
    """The commit that a file returned by `pull` belongs to: the cache keeps ``snapshots/<commit>/<filename>``."""
    return path.parents[len(Path(filename).parts) - 1].name


def check_sha256(path: Path, expected: str) -> None:
    """Compares a file with its recorded hash.

    Raises:
        HubError: it is another file.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise HubError(f"{path} is not the recorded file, so it is not loaded (its SHA-256 is {found[:12]}..., not "
                       f"{expected[:12].lower()}...); delete it and fetch it again.")  # fmt: skip


def _cached(repo_id: str, filename: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, filename, revision=revision), str)


def _look_once(repo_id: str, filename: str, revision: str | None) -> None:
    """Asks for the file's headers, so that no connection is said at once: hf_hub_download tries for 25 seconds.

    What the Hub answers is left to hf_hub_download to judge.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision))
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):
        return
    except Exception as error:  # the HTTP library's connection errors, whose names change with huggingface_hub
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(
            f"{filename} of {repo_id} is not in the cache and {constants.ENDPOINT} cannot be reached ({reason}); "
            "connect, or name a file you have (checkpoint=, --checkpoint)."
        ) from error
