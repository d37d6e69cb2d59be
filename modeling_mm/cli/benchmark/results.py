# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Results of the benchmark: a line for a reader, and JSON for a table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...utils.files import write_text
from .machine import Machine
from .work import Work


@dataclass
class Result:
    """
    One comparison.

    Args:
        label: of the line, such as `"with an image, float32, batch 1"`
        peer: name of the other side
        unit: of `ours` and `theirs`, such as `"tokens/s"`
        ours, theirs: medians
        ratios: of the pairs, as the peer's seconds by ours; or, if `is_at_most`, ours by the peer's
        target: least, or if `is_at_most` greatest, median of the ratios
        is_at_most: whether a smaller ratio is better
        work: that the task needs
        near: share of the limits of the machine that ours and the peer reach, of 1
    """

    label: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratios: Sequence[float]
    target: float
    is_at_most: bool = False
    work: Work | None = None
    near: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def is_reached(self) -> bool:
        """Return if the median reaches the target."""
        return self.ratio <= self.target if self.is_at_most else self.ratio >= self.target

    def line(self) -> str:
        """Return the result as a line."""
        low, high = self.spread
        bound = "at most" if self.is_at_most else "at least"
        line = (
            f"{self.label:40s} ours {number(self.ours)} {self.unit}   {self.peer} {number(self.theirs)} {self.unit}   "
            f"ratio {self.ratio:.3f} ({low:.2f} to {high:.2f}, target {bound} {self.target})"
        )
        if self.work is not None and self.near is not None:
            line += (
                f"   needs {self.work.bytes / 1e9:.2f} GB and {self.work.operations / 1e9:.1f} Gop; of the machine's "
                f"limit ours {self.near[0]:.0%}, {self.peer} {self.near[1]:.0%}"
            )
        return line

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        values = asdict(self)
        values |= {"ratio": self.ratio, "spread": self.spread, "is_reached": self.is_reached, "work": None}
        if self.work is not None:
            values["work"] = {"bytes": self.work.bytes, "operations": self.work.operations}
        return rounded(values)


def number(value: float) -> str:
    """Return a number with three digits or more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rounded(value: Any) -> Any:
    """Return nested JSON with floats of five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, machine: Machine, settings: dict[str, Any], results: dict[str, list[Result]]) -> None:
    """Write results by row with the machine, its measured limits and the versions."""
    limits = {
        "bandwidth_bytes_s": machine.bandwidth,
        "matrix_operations_s": {str(dtype).removeprefix("torch."): rate for dtype, rate in machine.rates.items()},
    }
    rows = {name: [result.as_json() for result in found] for name, found in results.items()}
    values = {**machine.facts(), **settings, "limits": rounded(limits), "rows": rows}
    write_text(path, json.dumps(values, indent=1) + "\n")
