# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Weights of 8 and 4 bits with torchao, those of GPT-2's `Conv1D` included.

torchao, and `from_pretrained(..., quantization_config=TorchAoConfig(...))` with it, knows `nn.Linear` alone: it would
leave the decoder as it is. bitsandbytes knows `Conv1D`; its `BitsAndBytesConfig` goes to `from_pretrained` as usual.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

# Left as they are: the language model's head, which shares its weight with the embedding, and the classifier's and the
# connectors, which are small and which adapters leave to be trained in full. Patterns, as transformers matches them:
# from the beginning of a module's name on. For bitsandbytes: `BitsAndBytesConfig(llm_int8_skip_modules=KEPT, ...)`.
KEPT = [rf".*\b{part}\b" for part in ("lm_head", "score", "vision_connector", "audio_connector")]


class LinearOfConv1D(nn.Linear):
    """A `Conv1D` (weight: in, out) as the `nn.Linear` (weight: out, in) that computes the same."""

    def __init__(self, conv: Conv1D):
        rows, columns = conv.weight.shape
        super().__init__(rows, columns, device="meta")
        self.weight = nn.Parameter(conv.weight.detach().t().contiguous(), requires_grad=False)
        self.bias = conv.bias


class InMemoryTorchAoQuantizer(TorchAoHfQuantizer):
    """What `Trainer` and PEFT ask a quantized model for; `save_pretrained` asks it too, and refuses."""

    def is_serializable(self) -> bool:
        return False


def quantize(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """
    Quantizes the linear layers of encoders and decoder, one by one; what `KEPT` names and the embeddings stay.

    ```python
    from torchao.quantization import Int8WeightOnlyConfig

    model = quantize(MMForConditionalGeneration.from_pretrained(folder), Int8WeightOnlyConfig())
    model = add_lora(model)  # adapters on frozen quantized weights, as in QLoRA
    ```

    Args:
        model: it is changed in place; keep the folder that it came from, as a quantized model cannot be saved
        config: torchao's, such as `Int8WeightOnlyConfig()`, or `IntxWeightOnlyConfig(weight_dtype=torch.int4,
            granularity=PerGroup(32))` for 4 bits

    Returns:
        the model, its quantized weights frozen.

    Raises:
        ImportError: where torchao is not installed.
        ValueError: where the model is quantized already.
    """
    try:
        from torchao.quantization import quantize_
    except ModuleNotFoundError as error:
        raise ImportError("Quantization here is torchao's, which is not installed: pip install torchao") from error
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("The model is quantized already. Load it anew from its folder to quantize it in another way.")
    quantizer = InMemoryTorchAoQuantizer(TorchAoConfig(config), pre_quantized=False)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and is_quantized(name)
    ]
    with torch.no_grad():
        for name in names:  # one after the other: never is more than one layer there twice
            module = model.get_submodule(name)
            layer = nn.Sequential(LinearOfConv1D(module) if isinstance(module, Conv1D) else module)
            quantize_(layer, config, lambda part, _: isinstance(part, nn.Linear))
            model.set_submodule(name, layer[0])
    model.is_quantized = True
    model.quantization_method = quantizer.quantization_config.quant_method
    model.hf_quantizer = quantizer
    return model


def is_quantized(name: str) -> bool:
    return not any(re.match(pattern, name) for pattern in KEPT)
