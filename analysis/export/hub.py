"""Pushes an exported folder to a Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from trainables.errors import Fault, UserError, as_reason, first_line, hub_remedy

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
_BY_HAND = "try again later, or export with --to and upload the folder with `hf upload`"
# Of an earlier push, these would be loaded in place of the new weights, or together with them.
_REPLACED = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_model*.safetensors",
    "adapter_config.json",
    "config.json",
)


def check_push(repository: str) -> None:
    """Check what a push needs before anything is exported: name, hub and token.

    Raises:
        UserError: lists all that is wrong.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    faults = []
    try:
        validate_repo_id(repository)
        reason = "" if "/" in repository else f", got {repository!r}"
    except HFValidationError as error:
        reason = f": {first_line(error)}"
    if reason:
        rule = f"must be USER/NAME of a repository{reason}"
        faults.append(Fault("--push", rule, "write it as in --push me/my-model"))
    if not HfApi().endpoint.startswith(("http://", "https://")):
        rule = f"must be the address of a hub, got {HfApi().endpoint!r}"
        faults.append(Fault("HF_ENDPOINT", rule, "write it as in https://huggingface.co"))
    token = get_token()
    if token is None or not token.isascii():
        got = "none" if token is None else "one with letters that no token has"
        faults.append(Fault("--push", f"needs a token of the hub, got {got}", _LOG_IN))
    if faults:
        raise UserError(faults)


def push(folder: Path, repository: str, message: str, public: bool) -> str:
    """Upload a folder as one commit, to a repository that is made if there is none.

    The hub is that of HF_ENDPOINT, and the token the user's own: neither is kept. Weights of an
    earlier push that have no successor in the folder are deleted by the same commit.

    Args:
        folder: of a model or adapter, with its card.
        repository: `USER/NAME`.
        message: of the commit.
        public: whether anybody may see a repository that is made for it.

    Returns:
        The commit's address.

    Raises:
        UserError: the token may not write there, the hub refuses the folder or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=message,
            delete_patterns=list(_REPLACED),
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        rule = f"the hub refused {repository}: {first_line(error)}"
        remedy = _LOG_IN if status in (401, 403, 404) else _BY_HAND
        raise UserError([Fault("--push", rule, remedy)]) from error
    except ValueError as error:  # what is wrong with the card stands in the lines that follow
        rule = f"the hub refused {repository}: {as_reason(' '.join(str(error).split()))}"
        raise UserError([Fault("--push", rule, _BY_HAND)]) from error
    except Exception as error:  # the client's own errors of the network have no common class
        if not hub_remedy(error):
            raise
        rule = f"cannot reach {api.endpoint}: {first_line(error)}"
        remedy = "try again once this machine reaches it (HTTPS_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE)"
        raise UserError([Fault("--push", rule, remedy)]) from error
    return str(commit.commit_url)
