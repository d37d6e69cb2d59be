# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Rough emissions of a training run, from its duration and its devices.

Energy is time x power x overhead, and emissions are energy x intensity, with the averages of Green Algorithms
(Lannelongue, Grealey and Inouye, Advanced Science 2021). Nothing is measured: the figure gives the order of magnitude.
"""

import re
from dataclasses import dataclass

CPU_CORE_WATTS = 12.0
GPU_WATTS = 200.0
# Board power as the makers state it, by a part of the name that torch gives.
KNOWN_GPU_WATTS = {"B200": 1000.0, "H200": 700.0, "H100": 700.0, "A100": 400.0, "V100": 300.0, "L40": 300.0}
OVERHEAD = 1.67  # power of a data center for one watt of its machines
GRAMS_PER_KWH = 475.0  # of CO2 equivalents, the average of the world
CPU = re.compile(r"cpu, (\d+) cores")


@dataclass(frozen=True)
class Emissions:
    """Grams of CO2 equivalents, and a text on `how` they were estimated."""

    grams: float
    how: str

    def __str__(self) -> str:
        weight = f"{self.grams / 1000:.1f} kg" if self.grams >= 1000 else f"{self.grams:.1f} g"
        return f"{weight} of CO2 equivalents"


def estimate(seconds: float, device: str, processes: int) -> Emissions:
    """Estimate emissions of `seconds` on `device`, as `run.json` names it. Processes share cores, but not GPUs."""
    cores = CPU.match(device)
    if cores:
        count, watts, unit = int(cores[1]), CPU_CORE_WATTS, "CPU cores"
    else:
        known = (watts for name, watts in KNOWN_GPU_WATTS.items() if name in device)
        count, watts, unit = processes, next(known, GPU_WATTS), "GPUs"
    hours = seconds / 3600
    how = (
        f"estimated, not measured: {hours:.2f} h x {count} {unit} x {watts:g} W x {OVERHEAD:g} (data center) x "
        f"{GRAMS_PER_KWH:g} g/kWh (world average)"
    )
    return Emissions(hours * count * watts * OVERHEAD / 1000 * GRAMS_PER_KWH, how)
