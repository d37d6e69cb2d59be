# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Progress of long work: a bar in a terminal; elsewhere, where a bar would fill a file, a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # at least, between two lines


def show_progress(items: Iterable[Any] | None = None, **kwargs: Any) -> Any:
    """
    Return tqdm's bar if stderr is a terminal, else lines; both are iterated over or updated, in a `with` or without.

    Args:
        items: to iterate over; or `total=`, and `update(n)` tells what is done
        **kwargs: of tqdm: `total`, `desc`, `disable`, `leave`
    """
    if sys.stderr.isatty():
        return tqdm(items, **kwargs)
    return ProgressLines(items, **kwargs)


class ProgressLines:
    """
    Lines on stderr that tell what a bar does: one every ten seconds, and one at the end.

    Args:
        items, total, desc, disable: as tqdm takes them
        leave: ignored, as lines stay
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        total: int | None = None,
        desc: str | None = None,
        disable: bool = False,
        leave: bool = True,
    ):
        self.items, self.desc, self.disable = items, desc, disable
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.done, self.told, self.postfix = 0, 0, ""  # told: of what is done, in the last line
        self.start = self.last = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *args: object) -> None:
        if self.done != self.told:
            self.tell()

    def update(self, number: int = 1) -> None:
        """Count what is done; tell it if the last line is old."""
        self.done += number
        if time.monotonic() - self.last >= LINE_SECONDS:
            self.tell()

    def set_postfix(self, values: Mapping[str, Any]) -> None:
        """Set what the next line ends with, such as a loss."""
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def tell(self) -> None:
        """Write a line, such as `encoding images: 40 of 120, 12 s`."""
        self.last, self.told = time.monotonic(), self.done
        of = "" if self.total is None else f" of {self.total}"
        if not self.disable:
            line = f"{self.desc}: {self.done}{of}, {self.last - self.start:.0f} s{self.postfix}"
            print(line, file=sys.stderr, flush=True)
