"""Downloads from the Hugging Face Hub, cached and locked by huggingface_hub."""

from pathlib import Path

from hub.errors import HubError

__all__ = ["pull"]


def pull(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Returns the local path of a file of a Hub repository, downloading it on first use.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected.

    Args:
        repo_id: "organisation/name".
        filename: path inside the repository.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        HubError: unknown repository, file or revision; no access; or no connection and nothing cached.
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
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is not a repository name; write organisation/name.") from error
    except GatedRepoError as error:
        raise HubError(f"{repo_id} is gated; ask for access on its page and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"There is no repository {repo_id} on the Hub, or it is private: check the name or set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo_id} has no revision {revision!r}; check its branches, tags and commits.") from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{filename} of {where} is not in the cache and the Hub cannot be reached; connect, or unset "
                       "HF_HUB_OFFLINE, or pass checkpoint= with a file you have.") from error  # fmt: skip
    except EntryNotFoundError as error:
        raise HubError(f"{where} has no file {filename}; check its file list.") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"{filename} of {where} could not be fetched ({str(error).splitlines()[0]}); try again later.") from error
