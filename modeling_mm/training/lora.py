# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Low-rank adapters (LoRA, DoRA) on the decoder and the cross-attention, with PEFT.

[`add_lora`] chooses by itself. For PEFT's own configs, as TRL's trainers take them, two constants name the modules:

```python
config = LoraConfig(r=8, target_modules=TARGET_MODULES, modules_to_save=MODULES_TO_SAVE, fan_in_fan_out=True)
```
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..utils.spelling import suggestion
from ..utils.validation import build

if TYPE_CHECKING:
    from peft import PeftModel

# The projections of a part, by their names in the model: PEFT matches the whole name.
PROJECTIONS = {
    "text": r".*language_model\.h\.\d+\.(attn|mlp)\.c_\w+",
    "cross_attention": r".*language_model\.cross_blocks\.\d+\.(cross_attn|mlp)\.(q_attn|c_\w+)",
}
# The modules of a part that is trained in full.
IN_FULL = {
    "connectors": r".*\b(vision|audio)_connector",
    "cross_attention": r".*\.cross_blocks\.\d+",
    "head": r".*\bscore",  # of MMForSequenceClassification
}
GATES = r".*\.cross_blocks\.\d+\.gate_\w+"
# PEFT's `target_modules`: every projection of decoder and cross-attention.
TARGET_MODULES = "|".join(PROJECTIONS.values())
# PEFT's `modules_to_save`: connectors, gates, which have no projection to adapt and would keep a block shut, and the
# classifier's head. What a model does not have is passed over.
MODULES_TO_SAVE = ["vision_connector", "audio_connector", "gate_attn", "gate_mlp", "score"]


@dataclass(frozen=True)
class LoraOptions:
    """
    Args:
        r: rank of the adapters
        alpha: what an adapter adds is scaled by `alpha / r`
        dropout: share of an adapter's inputs that is dropped in training
        adapt: the parts whose projections get adapters, of `text` (self-attention and feed-forward) and
            `cross_attention`; by default both, but for what is trained in full
        train: the parts that are trained and saved in full, of `connectors`, `cross_attention` and `head`, the
            classifier's. By default the connectors and the head, and the cross-attention too while it is fresh: a
            model just joined has random projections there, which an adapter of low rank could hardly correct, and
            which nobody has saved.
        dora: whether adapters learn each output's length apart from its direction, as in
            [DoRA](https://arxiv.org/abs/2402.09353): nearer to training in full, and slower

    Raises:
        ValueError: for values out of range, for an unknown part with the nearest known one, and for a part that is
            named in both `adapt` and `train`.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    adapt: tuple[str, ...] | None = None
    train: tuple[str, ...] | None = None
    dora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"LoRA's r must be at least 1, got {self.r}.")
        if not self.alpha > 0:
            raise ValueError(f"LoRA's alpha must be above 0, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA's dropout must be at least 0 and less than 1, got {self.dropout}.")
        if self.adapt == ():
            raise ValueError(f"LoRA's adapt names no part; it takes {', '.join(PROJECTIONS)}.")
        for name, known in (("adapt", tuple(PROJECTIONS)), ("train", tuple(IN_FULL))):
            for part in getattr(self, name) or ():
                if part not in known:
                    hint = suggestion(part, known)
                    raise ValueError(f"LoRA's {name} takes {', '.join(known)}, got {part!r}.{hint}")
        if both := set(self.adapt or ()) & set(self.train or ()):
            raise ValueError(f"LoRA's adapt and train both name {', '.join(both)}; name it in one of them.")


def add_lora(model: nn.Module, options: Mapping[str, Any] | None = None) -> "PeftModel":
    """
    Wraps a joint model with adapters and freezes all else but connectors and head (see [`LoraOptions`]).

    `save_pretrained`, and with it every trainer, then saves the adapters and what is trained in full, and no more.

    ```python
    model = add_lora(model, {"r": 8, "alpha": 16})
    ...  # train, save to a folder
    model = PeftModel.from_pretrained(MMForConditionalGeneration.from_pretrained(base), folder)
    model = model.merge_and_unload()  # without adapters again, with the same logits
    ```

    Args:
        model: it is changed in place
        options: fields of [`LoraOptions`]

    Raises:
        ValueError: for an unknown option, with the nearest known one, and for values of another type or out of range.
        ImportError: where PEFT is not installed.
    """
    chosen = build(LoraOptions, options or {}, "lora")
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ImportError("LoRA is PEFT's, which is not installed: pip install modeling_mm[train]") from error
    train, adapt = chosen.train, chosen.adapt
    if train is None:
        train = tuple(part for part in IN_FULL if part != "cross_attention" or is_fresh(model))
        train = tuple(part for part in train if part not in (adapt or ()))
    if adapt is None:
        adapt = tuple(part for part in PROJECTIONS if part not in train)
    config = LoraConfig(
        r=chosen.r,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules="|".join(PROJECTIONS[part] for part in adapt),
        modules_to_save=modules_in_full(model, adapt, train) or None,
        use_dora=chosen.dora,
        # GPT-2's Conv1D keeps its weights that way; what quantization puts in its place does not.
        fan_in_fan_out=any(
            isinstance(module, Conv1D) and re.fullmatch(TARGET_MODULES, name) is not None
            for name, module in model.named_modules()
        ),
    )
    return get_peft_model(model, config)


def is_fresh(model: nn.Module) -> bool:
    """Whether the cross-attention is as joining makes it: it adds nothing yet."""
    blocks = [module for name, module in model.named_modules() if re.fullmatch(IN_FULL["cross_attention"], name)]
    return bool(blocks) and not any(bool(torch.any(opening(block) != 0)) for block in blocks)


def opening(block: nn.Module) -> torch.Tensor:
    """What of a cross-attention block starts at zero: its gate, or without one its last projection."""
    gate = list(block.get_submodule("gate_attn").parameters())
    weight = gate[0] if gate else block.get_parameter("cross_attn.c_proj.weight")
    return weight if type(weight.data) is torch.Tensor else weight.dequantize()


def modules_in_full(model: nn.Module, adapt: tuple[str, ...], train: tuple[str, ...]) -> list[str]:
    """
    Names of the modules that are trained in full; with adapters on the cross-attention its gates among them, which
    have no projection to adapt and would keep it shut.
    """
    wanted = [IN_FULL[part] for part in train] + [GATES] * ("cross_attention" in adapt)
    return [
        name
        for name, module in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in wanted) and any(True for _ in module.parameters())
    ]
