# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Pushes a folder in one commit, which comes last: whatever interrupts a push, the repository shows what it showed
before. What has arrived by then is not sent again.
"""

import os
import re
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .check import pushed_files

REMEDIES = {
    400: "Repair what the Hub does not accept, and push again.",
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write, and push again.",
    403: "Use a token that may write there, or push under a name of your own.",
    404: "Check the name, and that the token may see the repository.",
    409: "Somebody else has pushed meanwhile; push again.",
    413: "A file is larger than the Hub takes; save the model with a smaller `max_shard_size`.",
    429: "The Hub asks for patience; push again in a while.",
}
# Weights, and code: what of an earlier push would be loaded in place of the new, or beside it.
LOADED = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|py)|.*\.index\.json")
HINT = re.compile(r"For more information check: \S+")  # what a status code is, to those who do not know
AGAIN = (
    "The repository changes with the commit at the end of a push alone; run the same command again, and what has "
    "arrived is not sent again."
)


class PushError(RuntimeError):
    """A push that did not arrive: what failed, why, and what to do."""


def push(
    folder: str | os.PathLike,
    repo_id: str,
    api: HfApi | None = None,
    private: bool | None = None,
    message: str = "Upload model",
) -> CommitInfo:
    """
    Makes the repository where there is none, and puts the folder's files into it; links go as the files behind them.
    Weights and code that are there already, and not in the folder, are deleted: they would be loaded with the new.

    Args:
        folder: a checked one, see `check_folder`
        repo_id: such as `me/mm-pocket`
        api: another endpoint or token than those of the environment
        private: whether a new repository is private; by default as the account's settings say
        message: of the commit

    Raises:
        PushError: where the Hub refuses or cannot be reached.
    """
    api = HfApi() if api is None else api
    names, _ = pushed_files(Path(folder))
    step = "making the repository"
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        step = "sending the files"
        # `upload_folder` may make several commits of one folder, and would leave half of it visible.
        additions = [CommitOperationAdd(name, (Path(folder) / name).resolve()) for name in names]
        stale = [name for name in api.list_repo_files(repo_id) if name not in names and LOADED.fullmatch(name)]
        deletions = [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        text = f"{folder} could not be pushed to {repo_id} on {api.endpoint}: {step} failed: {reason(error)}"
        raise PushError(f"{text} {remedy(error)}") from error


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, down to what the Hub has answered."""
    chain = [error]
    while not isinstance(chain[-1], HfHubHTTPError) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def reason(error: BaseException) -> str:
    """What was said on the way, on one line; an error without words by its name."""
    words = [" ".join(HINT.sub("", str(cause)).split()) or type(cause).__name__ for cause in causes(error)]
    return " ".join(word if word.endswith((".", "!")) else f"{word}." for word in dict.fromkeys(words))


def remedy(error: BaseException) -> str:
    last = causes(error)[-1]
    if isinstance(last, HfHubHTTPError):
        return REMEDIES.get(last.response.status_code, AGAIN)
    if isinstance(error, ValueError):  # the Hub's word on the card, a name that cannot be one
        return REMEDIES[400]
    return AGAIN
