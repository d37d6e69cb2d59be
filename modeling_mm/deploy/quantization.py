# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Weights of 8 bits for CPUs, and of 8 and 4 bits with torchao, including those of GPT-2's `Conv1D`.

torchao knows `nn.Linear` only, so `from_pretrained(..., quantization_config=TorchAoConfig(...))` leaves the decoder
unquantized. bitsandbytes knows `Conv1D`: pass its `BitsAndBytesConfig` to `from_pretrained` as usual.
"""

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ..int8 import SKIPPED, Int8Config, quantize_int8

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

Model = TypeVar("Model", bound=PreTrainedModel)

# Modules that stay in full precision: the head of the language model, which shares its weight with the embedding, the
# classifier's head, and the connectors, which are small and which adapters train in full. Patterns, which transformers
# matches from the start of a module's name. For bitsandbytes: `BitsAndBytesConfig(llm_int8_skip_modules=KEPT, ...)`.
KEPT = [r".*\blm_head\b", *SKIPPED]


class LinearOfConv1D(nn.Linear):
    """A `Conv1D` (weight: in, out) as the `nn.Linear` (weight: out, in) that computes the same."""

    def __init__(self, conv: Conv1D):
        rows, columns = conv.weight.shape
        super().__init__(rows, columns, device="meta")
        self.weight = nn.Parameter(conv.weight.detach().t().contiguous(), requires_grad=False)
        self.bias = conv.bias


class InMemoryTorchAoQuantizer(TorchAoHfQuantizer):
    """The attribute by which `Trainer` and PEFT know quantized models; it makes `save_pretrained` refuse."""

    def is_serializable(self) -> bool:
        return False


def quantize(model: Model, config: "AOBaseConfig | Int8Config") -> Model:
    """
    Quantize the linear layers of encoders and decoder.

    `Int8Config()` is for CPUs: head and embedding are quantized too, and the model can be saved; see
    [`int8.Int8Config`]. With torchao's configs embeddings and the modules in `KEPT` stay as they are:

    ```python
    from torchao.quantization import Int8WeightOnlyConfig

    model = quantize(MMForConditionalGeneration.from_pretrained(folder), Int8WeightOnlyConfig())
    model = add_lora(model)  # adapters on frozen quantized weights, as in QLoRA
    ```

    Args:
        model: changed in place. Keep the folder it was loaded from: by torchao quantized, it cannot be saved.
        config: `Int8Config()`, or torchao's, such as `Int8WeightOnlyConfig()`, or
            `IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))` for 4 bits

    Returns:
        the model, its quantized weights frozen.

    Raises:
        ImportError: if torchao is not installed.
        ValueError: if the model is quantized already.
    """
    if isinstance(config, Int8Config):
        quantize_int8(model, config)
        return model
    try:
        from torchao.quantization import quantize_
    except ModuleNotFoundError as error:
        raise ImportError("`quantize` needs torchao, which is not installed. Run: pip install torchao") from error
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("The model is quantized already. Load it from its folder again to quantize it differently.")
    quantizer = InMemoryTorchAoQuantizer(TorchAoConfig(config), pre_quantized=False)
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    with torch.no_grad():
        for name in names:
            if not should_convert_module(name, KEPT):
                continue
            module = model.get_submodule(name)  # one layer at a time, so that peak memory is one extra layer
            layer = nn.Sequential(LinearOfConv1D(module) if isinstance(module, Conv1D) else module)
            quantize_(layer, config, lambda part, _: isinstance(part, nn.Linear))
            model.set_submodule(name, layer[0])
    model.is_quantized = True
    model.quantization_method = quantizer.quantization_config.quant_method
    model.hf_quantizer = quantizer
    return model
