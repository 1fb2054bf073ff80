"""One small file of a model on the hub, or one sentence that says why it cannot be had. No torch."""

from __future__ import annotations

from pathlib import Path

SHOWN = 200  # characters of another library's message


def fetch(repo: str, name: str, *, revision: str | None = None, what: str = "model") -> Path:
    """The file `name` of the repository, from the cache (HF_HOME) or downloaded into it.

    Where the hub is out of reach or HF_HUB_OFFLINE is set, a file that was downloaded before is enough.
    what: "model", or whatever the repository is taken for. Raises ValueError for everything that goes wrong.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(_sentence(error, repo, name, revision, what)) from error


def _sentence(error: Exception, repo: str, name: str, revision: str | None, what: str) -> str:
    from huggingface_hub import constants, errors

    # The order matters: a gated repository's error is a kind of an unknown one's, as the hub hides what is private.
    if isinstance(error, errors.GatedRepoError):
        return f"the {what} {repo} is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {what} {repo}, or it is private: check the spelling, or log in with `hf auth login` if it "
            "is yours"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {what} {repo} has no revision {revision!r}; give one of its branches, tags or commits"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"the {what} {repo} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to ask the "
            "hub: unset it once to download, or give a folder or file"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = shortened(error.__cause__ or error)
        return (
            f"the {what} {repo} is not in the cache ({constants.HF_HUB_CACHE}), and the hub did not answer ({reason}): "
            "check the network, or give a folder or file"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"{repo} on the hub holds no {name}, so it is no {what} in the diffusers layout; download its single "
            "file, if it is one, and give the path"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is no hub id; one looks like owner/name"
    return f"cannot get the {what} {repo} from the hub ({shortened(error)}); try again later, or give a folder or file"


def shortened(error: BaseException) -> str:
    """What another library says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
