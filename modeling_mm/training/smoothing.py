# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Label smoothing over next tokens, whatever wraps the model."""

from typing import Any

import torch
from transformers.trainer_pt_utils import LabelSmoother


class NextTokenLabelSmoother(LabelSmoother):
    """
    Label smoothing that always shifts the labels to the tokens before them.

    `Trainer` looks up by the class's name if it must shift them, and finds none for a compiled model: each token would
    then learn itself.
    """

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        """Return the smoothed loss, a scalar."""
        return super().__call__(*args, **{**options, "shift_labels": True})


def smoother_for(model: Any, smoother: LabelSmoother | None) -> LabelSmoother | None:
    """Return the smoother of a model: one that shifts labels for a decoder that writes text, else the given one."""
    writes = hasattr(model, "can_generate") and model.can_generate() and not model.config.is_encoder_decoder
    return NextTokenLabelSmoother(smoother.epsilon) if smoother is not None and writes else smoother
