# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Processes that build an index together: one, or those of `accelerate launch`."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env


class Processes:
    """This process among those that build together."""

    def __init__(self) -> None:
        self.is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        is_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        # Without `cpu` processes on a machine without a GPU would each take themselves for the only one.
        state = PartialState(cpu=is_cpu) if self.is_launched else None
        self.rank: int = state.process_index if state else 0
        self.count: int = state.num_processes if state else 1
        self.device = str(state.device) if state else None  # None: as for one process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, make: Callable[[], Any]) -> Any:
        """
        Return what a function returns on the main process, on all of them.

        Raises:
            ValueError: on all of them, if it raises one there, so that none waits for it.
        """
        shared: list[Any] = [None, None]
        if self.is_main:
            try:
                shared[0] = make()
            except (ValueError, OSError, ImportError) as error:
                if not self.is_launched:
                    raise
                shared[1] = str(error)
        if self.is_launched:
            broadcast_object_list(shared)
        if shared[1] is not None:
            raise ValueError(shared[1])
        return shared[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, on all of them."""
        return gather_object([value]) if self.is_launched else [value]
