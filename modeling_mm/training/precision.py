# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Half precision that a CPU only imitates."""

import torch
from transformers.utils import logging

from ..layers import has_half_kernels

logger = logging.get_logger(__name__)

HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def warn_of_slow_half(mixed_precision: str, device: torch.device) -> None:
    """
    Warn if training multiplies matrices by plain loops: in half precision on a CPU without kernels for it.

    Args:
        mixed_precision: of the accelerator, such as `"bf16"` or `"no"`
        device: that training runs on
    """
    dtype = HALF_PRECISIONS.get(mixed_precision)
    if dtype is not None and device.type == "cpu" and not has_half_kernels(dtype):
        logger.warning(
            f"torch has no kernels for {mixed_precision} on this CPU and multiplies its matrices by plain loops, tens "
            f"of times slower than in float32. Leave {mixed_precision} out."
        )
