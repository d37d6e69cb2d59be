# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Run both sides of a comparison in turn."""

import statistics
from dataclasses import dataclass

import torch

from ...utils.progress import show_progress
from .machine import Call, Machine
from .results import Result
from .work import Work


@dataclass
class Bench:
    """
    Settings of a benchmark, and its measurements.

    Args:
        machine: it runs on
        tokens: generated, or learned, for each row of a batch
        repeats: runs of each side

    Example:
        >>> bench = Bench(Machine("cpu"), tokens=8, repeats=3)
        >>> print(bench.compare("sum", "numpy", tensor.sum, array.sum, target=1.0).line())
    """

    machine: Machine
    tokens: int
    repeats: int

    @property
    def device(self) -> str:
        """The device's name."""
        return self.machine.device

    def compare(
        self,
        label: str,
        peer: str,
        ours: Call,
        theirs: Call,
        target: float,
        amount: float = 0.0,
        unit: str = "s",
        is_at_most: bool = False,
        work: Work | None = None,
    ) -> Result:
        """
        Time both sides in turn after a warm-up.

        Args:
            label, peer, target, is_at_most, work: see [`Result`]
            ours, theirs: the calls
            amount: that one call makes, such as tokens; the figures are then by second, in `unit`
        """
        seconds = self.machine.seconds
        ours(), theirs()  # warm-up
        counted = show_progress(range(self.repeats), desc=label, leave=False)
        pairs = [(seconds(ours), seconds(theirs)) for _ in counted]
        a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
        near = None
        if work is not None:
            # A type without instructions of the processor is computed in float32, which may be faster.
            rate = max(map(self.machine.matrix_rate, {work.dtype, torch.float32}))
            least = work.seconds(self.machine.bandwidth, rate)
            near = least / a, least / b
        return Result(
            label=label,
            peer=peer,
            unit=unit,
            ours=amount / a if amount else a,
            theirs=amount / b if amount else b,
            ratios=[x / y if is_at_most else y / x for x, y in pairs],
            target=target,
            is_at_most=is_at_most,
            work=work,
            near=near,
        )

    def compare_memory(self, label: str, peer: str, ours: Call, theirs: Call, target: float) -> Result | None:
        """Compare the memory that both sides add at their peak, in MB, as ours by the peer's; `None` if not known."""
        ours(), theirs()  # what a first call keeps, such as gradients, is there
        pairs = [(self.machine.peak(ours), self.machine.peak(theirs)) for _ in range(self.repeats)]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            return None
        a, b = (statistics.median(side) / 1e6 for side in zip(*known, strict=True))
        ratios = [x / max(1.0, y) for x, y in known]
        return Result(label, peer, "MB at the peak", a, b, ratios, target, is_at_most=True)


def kind_of(dtype: torch.dtype) -> str:
    """Return the name of a type, such as `"bfloat16"`."""
    return str(dtype).removeprefix("torch.")
