#!/usr/bin/env python
"""Check a model's folder, and push it to the Hub if nothing is wrong with it.

    python scripts/push_to_hub.py model_cards/mm-pocket me/mm-pocket
    python scripts/push_to_hub.py outputs/tiny-sample me/tiny --check-only    # nothing leaves this machine

The folder is what training or `save_pretrained` has written: weights, configuration, processor, code and card. It is
loaded twice in processes of their own, with this package and without, and must give the same logits; only safetensors
may hold weights; the card must be complete. Everything that is wrong is listed. Links go as the files behind them, in
one commit; after an interruption run the same command again. Who pushes: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling_mm.hub.check import check_folder, pushed_files
from modeling_mm.hub.push import PushError, push
from modeling_mm.utils.tables import format_table


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    problems = check_folder(options.folder, options.repo_id)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        print(f"{len(problems)} problems; nothing was pushed.", file=sys.stderr)
        return 1
    names, left = pushed_files(options.folder)
    rows = [(name, f"{(options.folder / name).stat().st_size / 1e6:.2f}") for name in names]
    print(format_table(("file", "MB"), rows, right=(1,)))
    if left:
        print(f"Left here: {len(left)} files of training, the first {left[0]}.")
    if options.check_only:
        print(f"{options.folder} is ready to be pushed.")
        return 0
    try:
        commit = push(options.folder, options.repo_id, private=options.private or None)
    except PushError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Pushed: {commit.commit_url}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id", help="such as me/mm-pocket; the card's example must load it")
    parser.add_argument("--check-only", action="store_true", help="check, and push nothing")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
