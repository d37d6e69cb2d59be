# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Pushes a folder to the Hub in one commit at the end, so that an interrupted push changes nothing there."""

import os
import re
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .check import pushed_files

FIXES = {
    400: "Fix what the Hub does not accept, and push again.",
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write, and push again.",
    403: "Use a token that may write there, or push under your own name.",
    404: "Check the name, and that the token may see the repository.",
    409: "Somebody else has pushed meanwhile. Push again.",
    413: "A file is larger than the Hub takes. Save the model with a smaller `max_shard_size`.",
    429: "Rate limited by the Hub (429). Retry later.",
}
RETRY = (
    "Run the same command again: the repository only changes with the commit at the end, and files that have arrived "
    "are not sent again."
)
# Weights and code. Old ones would be loaded in place of the new, or beside them.
LOADED = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|py)|.*\.index\.json")
HINT = re.compile(r"For more information check: \S+")  # explains a status code in general


class PushError(RuntimeError):
    """Error of a push: the failed step, the reason and the fix."""


def push(
    folder: str | os.PathLike,
    repo_id: str,
    api: HfApi | None = None,
    private: bool | None = None,
    message: str = "Upload model",
) -> CommitInfo:
    """
    Push a folder, links as their files. Weights and code that the repository has and the folder lacks are deleted.

    Args:
        folder: a folder that passed `check_folder`
        repo_id: repository such as `me/mm-whisper-tiny`; it is created if it does not exist
        api: client for another endpoint or token than those of the environment
        private: if a new repository is private; by default as the account's settings say
        message: commit message

    Raises:
        PushError: if the Hub refuses or cannot be reached.

    Example:
        >>> push("outputs/tiny-sample", "me/tiny").commit_url  # doctest: +SKIP
    """
    api = HfApi() if api is None else api
    names, _ = pushed_files(Path(folder))
    step = "creating the repository"
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        step = "sending the files"
        # `upload_folder` may make several commits, which would show half of the folder.
        additions = [CommitOperationAdd(name, (Path(folder) / name).resolve()) for name in names]
        stale = [name for name in api.list_repo_files(repo_id) if name not in names and LOADED.fullmatch(name)]
        deletions = [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise PushError(
            f"{folder} could not be pushed to {repo_id} on {api.endpoint}: {step} failed: {reason(error)} {fix(error)}"
        ) from error


def causes(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, down to the Hub's response."""
    chain = [error]
    while not isinstance(chain[-1], HfHubHTTPError) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def reason(error: BaseException) -> str:
    """Return the messages of all causes on one line; for an error without a message, its class."""
    words = [" ".join(HINT.sub("", str(cause)).split()) or type(cause).__name__ for cause in causes(error)]
    return " ".join(word if word.endswith((".", "!")) else f"{word}." for word in dict.fromkeys(words))


def fix(error: BaseException) -> str:
    last = causes(error)[-1]
    if isinstance(last, HfHubHTTPError):
        return FIXES.get(last.response.status_code, RETRY)
    # The Hub's client refuses a card or a name without a request.
    return FIXES[400] if isinstance(error, ValueError) else RETRY
