# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Low-rank adapters (LoRA, DoRA) on the decoder and the cross-attention, with PEFT.

[`add_lora`] chooses the modules. For PEFT's own configs, such as those of TRL's trainers, two constants name them:

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

from ..modalities import MODALITIES
from ..utils.spelling import suggestion
from ..utils.validation import build

if TYPE_CHECKING:
    from peft import PeftModel

CONNECTORS = [modality.connector_attribute for modality in MODALITIES.values()]
# Projections of a part. PEFT matches the whole name of a module.
PROJECTIONS = {
    "text": r".*language_model\.h\.\d+\.(attn|mlp)\.c_\w+",
    "cross_attention": (
        r".*language_model\.(\w*cross_blocks\.\d+\.(cross_attn|mlp)|h\.\d+\.\w*crossattention)\.(q_attn|c_\w+)"
    ),
}
# Modules of a part that is trained in full.
IN_FULL = {
    "connectors": r".*\b\w+_connector",
    "cross_attention": r".*\.(\w*cross_blocks\.\d+|h\.\d+\.\w*(crossattention|ln_cross_attn))",
    "head": r".*\bscore",  # of MMForSequenceClassification
}
# Gates have no projection to adapt and would keep a block shut, so they are trained in full beside its adapters.
GATES = r".*\.\w*cross_blocks\.\d+\.gate_\w+"
TARGET_MODULES = "|".join(PROJECTIONS.values())
# PEFT skips what a model lacks.
MODULES_TO_SAVE = [*CONNECTORS, "gate_attn", "gate_query", "gate_token", "gate_mlp", "score"]


@dataclass(frozen=True)
class LoraOptions:
    """
    Options of [`add_lora`].

    Args:
        r: rank of the adapters.
        alpha: the output of an adapter is scaled by `alpha / r`.
        dropout: dropout of an adapter's inputs.
        adapt: parts whose projections get adapters, of `text` (self-attention and feed-forward) and
            `cross_attention`. By default both, except for a part that is trained in full.
        train: parts that are trained and saved in full, of `connectors`, `cross_attention` and `head`, the
            classifier's. By default connectors and head, and the cross-attention while it is fresh: a model that was
            just joined has random projections there, which an adapter of low rank could hardly correct.
        dora: learn the length of each output apart from its direction ([DoRA](https://arxiv.org/abs/2402.09353)),
            which is closer to training in full, and slower.

    Raises:
        ValueError: if a value is out of range, a part is unknown, or `adapt` and `train` name the same part.
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
            raise ValueError(f"LoRA's adapt names no part. It takes {', '.join(PROJECTIONS)}.")
        for name, known in (("adapt", tuple(PROJECTIONS)), ("train", tuple(IN_FULL))):
            for part in getattr(self, name) or ():
                if part not in known:
                    hint = suggestion(part, known)
                    raise ValueError(f"LoRA's {name} takes {', '.join(known)}, got {part!r}.{hint}")
        if both := set(self.adapt or ()) & set(self.train or ()):
            raise ValueError(f"LoRA's adapt and train both name {', '.join(both)}. Name it in one of them.")


def add_lora(model: nn.Module, options: Mapping[str, Any] | None = None) -> "PeftModel":
    """
    Add adapters to a joint model, in place, and freeze all but them and the parts that are trained in full.

    `save_pretrained`, and every trainer, then save the adapters and those parts alone.

    Args:
        options: fields of [`LoraOptions`].

    Raises:
        ValueError: if an option is unknown, with the nearest known one, or has a wrong value.
        ImportError: if PEFT is not installed.

    Example:
        >>> model = add_lora(model, {"r": 8, "alpha": 16})
        >>> ...  # train, save to a folder
        >>> model = PeftModel.from_pretrained(MMForConditionalGeneration.from_pretrained(base), folder)
        >>> model = model.merge_and_unload()  # without adapters, with the same logits
    """
    chosen = build(LoraOptions, options or {}, "lora")
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ImportError("LoRA needs PEFT, which is not installed: pip install modeling_mm[train]") from error
    train, adapt = chosen.train, chosen.adapt
    if train is None:
        train = tuple(part for part in IN_FULL if part != "cross_attention" or is_fresh(model))
        train = tuple(part for part in train if part not in (adapt or ()))
    if adapt is None:
        adapt = tuple(part for part in PROJECTIONS if part not in train)
    in_full = [IN_FULL[part] for part in train] + [GATES] * ("cross_attention" in adapt)
    modules = dict(model.named_modules())
    config = LoraConfig(
        r=chosen.r,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules="|".join(PROJECTIONS[part] for part in adapt),
        modules_to_save=[
            name
            for name, module in modules.items()
            if any(re.fullmatch(pattern, name) for pattern in in_full) and any(True for _ in module.parameters())
        ]
        or None,
        use_dora=chosen.dora,
        # GPT-2's Conv1D has transposed weights, but the modules of quantized models have not.
        fan_in_fan_out=any(
            isinstance(m, Conv1D) and re.fullmatch(TARGET_MODULES, name) for name, m in modules.items()
        ),
    )
    return get_peft_model(model, config)


def is_fresh(model: nn.Module) -> bool:
    """Return if the cross-attention adds nothing yet, as joining leaves it."""
    modules = [module for name, module in model.named_modules() if re.fullmatch(IN_FULL["cross_attention"], name)]
    blocks = [module for module in modules if not isinstance(module, nn.LayerNorm)]
    return bool(blocks) and not any(bool(torch.any(opening(block) != 0)) for block in blocks)


def opening(block: nn.Module) -> torch.Tensor:
    """Return the weight of cross-attention that starts at zero: its gate, or else its last projection."""
    gates = [parameter for name, parameter in block.named_parameters() if name.startswith("gate_attn.")]
    weight = gates[0] if gates else getattr(block, "cross_attn", block).get_parameter("c_proj.weight")
    return weight if type(weight.data) is torch.Tensor else weight.dequantize()
