# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The machine that a benchmark runs on: its versions, its measured bandwidth and matrix rates, memory at its peak."""

import ctypes
import gc
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from ... import __version__
from ...onednn import multiplies, product

Call = Callable[[], object]

BANDWIDTH_BYTES = 2**28  # of a buffer that no cache of a processor holds
MATRIX_SIZE = 1536
LIMIT_RUNS = 4  # the best counts, as it is a limit
KIBIBYTE = 1024
PEAK = re.compile(r"VmHWM:\s+(\d+)")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Machine:
    """
    A device with its measured limits, each measured when it is read first.

    Args:
        device: such as `"cpu"` or `"cuda:0"`
    """

    def __init__(self, device: str):
        self.device = device
        self.is_cuda = device.startswith("cuda")
        self.rates: dict[torch.dtype, float] = {}

    @property
    def name(self) -> str:
        """The name of the GPU or of the processor."""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.device)
        models = re.search(r"model name\s*: (.+)", read("/proc/cpuinfo"))
        return models[1] if models else platform.processor() or platform.machine()

    def facts(self) -> dict[str, Any]:
        """Return the machine, threads and versions, for a file of results."""
        return {
            "machine": self.name,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "load": (re.match(r"\S+", read("/proc/loadavg")) or [None])[0],
            "versions": {
                "modeling_mm": __version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def synchronize(self) -> None:
        """Wait for what the device was given."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Call) -> float:
        """Return the time that a call takes."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that are read: the better of a sum and of a product of a matrix and a vector."""
        matrix = torch.ones(BANDWIDTH_BYTES // 4096 // 4, 4096, device=self.device)
        vector = torch.ones(4096, device=self.device)
        return BANDWIDTH_BYTES / min(self.best(matrix.sum), self.best(lambda: matrix @ vector))

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Return the operations a second of the product of two large square matrices, by the quickest kernel."""
        if dtype not in self.rates:
            left, right = torch.ones(2, MATRIX_SIZE, MATRIX_SIZE, device=self.device, dtype=dtype)
            least = self.best(lambda: left @ right)
            if multiplies(left, right):
                least = min(least, self.best(lambda: product(left, right)))
            self.rates[dtype] = 2 * MATRIX_SIZE**3 / least
        return self.rates[dtype]

    def best(self, call: Call) -> float:
        """Return the least time of a few calls."""
        call()
        return min(self.seconds(call) for _ in range(LIMIT_RUNS))

    def peak(self, call: Call) -> float | None:
        """
        Return the bytes that a call adds at its peak.

        On a GPU they are those of tensors. On Linux they are those of the process, whose record of its peak is set
        back before; elsewhere they are not known, `None`.
        """
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            torch.cuda.synchronize()
            return float(torch.cuda.max_memory_allocated() - before)
        if sys.platform != "linux":
            return None
        give_back_memory()
        CLEAR.write_text("5")  # see proc(5): sets the peak to the memory that is in use
        before = resident_peak()
        call()
        return float(resident_peak() - before)


def give_back_memory() -> None:
    """Give freed memory back to the system, as a call that uses it again would seem to need none."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # of glibc
        trim(0)


def resident_peak() -> int:
    """Return the greatest memory of this process in bytes, on Linux."""
    found = PEAK.search(read(STATUS))
    return int(found[1]) * KIBIBYTE if found else 0


def read(path: str | Path) -> str:
    """Return the text of a file, empty if it does not exist."""
    path = Path(path)
    return path.read_text(encoding="utf-8") if path.exists() else ""
