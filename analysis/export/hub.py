"""Pushes an exported folder to a Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from trainables.errors import Fault, UserError, first_line, hub_remedy

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


def check_repository(repository: str) -> None:
    """Check a repository's name before anything is exported.

    Raises:
        UserError: it is no name.
    """
    if not _REPOSITORY.fullmatch(repository):
        rule = f"must be USER/NAME of a repository, got {repository!r}"
        raise UserError([Fault("--push", rule, "write it as in --push me/my-model")])


def push(folder: Path, repository: str, message: str, public: bool) -> str:
    """Upload a folder as one commit, to a repository that is made if there is none.

    The hub is that of HF_ENDPOINT, and the token the user's own: neither is kept.

    Args:
        folder: of a model or adapter, with its card.
        repository: `USER/NAME`.
        message: of the commit.
        public: whether anybody may see a repository that is made for it.

    Returns:
        The commit's address.

    Raises:
        UserError: there is no token, it may not write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise UserError([Fault("--push", "needs a token of the hub, got none", _LOG_IN)]) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        rule = f"the hub refused {repository}: {first_line(error)}"
        remedy = _LOG_IN if status in (401, 403, 404) else "try again later"
        raise UserError([Fault("--push", rule, remedy)]) from error
    except Exception as error:  # the client's own errors of the network have no common class
        if not hub_remedy(error):
            raise
        rule = f"cannot reach {api.endpoint}: {first_line(error)}"
        remedy = "try again once this machine reaches it (HTTPS_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE)"
        raise UserError([Fault("--push", rule, remedy)]) from error
    return str(commit.commit_url)
