# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm push`: check a model's folder and push it to the Hub."""

import sys
from argparse import Namespace
from pathlib import Path

from ..hub import PushError, check_folder, push, pushed_files
from ..utils import format_table


def run(options: Namespace) -> int:
    """Print all problems of the folder and return 1, or push it in one commit."""
    folder = Path(options.folder)
    if problems := check_folder(folder, options.repo_id):
        print("\n".join(problems), file=sys.stderr)
        print(f"{len(problems)} problems; nothing was pushed.", file=sys.stderr)
        return 1
    names, left = pushed_files(folder)
    rows = [(name, f"{(folder / name).stat().st_size / 1e6:.2f}") for name in names]
    print(format_table(("file", "MB"), rows, right=(1,)))
    if left:
        print(f"Left here: {len(left)} files of training, the first {left[0]}.")
    if options.check_only:
        print(f"{folder} is ready to be pushed.")
        return 0
    try:
        print(f"Pushed: {push(folder, options.repo_id, private=options.private or None).commit_url}")
    except PushError as error:
        raise OSError(str(error)) from error
    return 0
