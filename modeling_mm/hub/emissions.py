# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
What a training run emitted, roughly, from how long it took and on what. Nothing is measured: energy is time x power x
overhead, and emissions are energy x intensity, with the averages of Green Algorithms (Lannelongue, Grealey and Inouye,
Advanced Science 2021). The figure is for the order of magnitude, and says how it came about.
"""

import re
from dataclasses import dataclass

CPU_CORE_WATTS = 12.0
GPU_WATTS = 200.0
# The board power that the makers name, by what stands in the name that torch gives.
KNOWN_GPU_WATTS = {"B200": 1000.0, "H200": 700.0, "H100": 700.0, "A100": 400.0, "V100": 300.0, "L40": 300.0}
OVERHEAD = 1.67  # what a data centre draws for one watt of its machines
GRAMS_PER_KWH = 475.0  # of CO2 equivalents, the world's average
SECONDS_PER_HOUR = 3600
CPU = re.compile(r"cpu, (\d+) cores")


@dataclass(frozen=True)
class Emissions:
    """`grams` of CO2 equivalents, and `how` they were estimated, in words."""

    grams: float
    how: str

    def __str__(self) -> str:
        weight = f"{self.grams / 1000:.1f} kg" if self.grams >= 1000 else f"{self.grams:.1f} g"
        return f"{weight} of CO2 equivalents"


def estimate(seconds: float, device: str, processes: int) -> Emissions:
    """
    Args:
        seconds: of training
        device: as `run.json` names it: `cpu, 2 cores`, or the name of a GPU
        processes: how many there were; each has a GPU of its own, and all share the cores
    """
    hours = seconds / SECONDS_PER_HOUR
    on_cpu = CPU.match(device)
    if on_cpu:
        count, watts, what = int(on_cpu[1]), CPU_CORE_WATTS, "CPU cores"
    else:
        known = (watts for name, watts in KNOWN_GPU_WATTS.items() if name in device)
        count, watts, what = processes, next(known, GPU_WATTS), "GPUs"
    energy = hours * count * watts * OVERHEAD / 1000
    how = (
        f"estimated, not measured: {hours:.2f} h x {count} {what} x {watts:g} W x {OVERHEAD:g} (data centre) x "
        f"{GRAMS_PER_KWH:g} g/kWh (world average)"
    )
    return Emissions(grams=energy * GRAMS_PER_KWH, how=how)
