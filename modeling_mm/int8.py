# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Weights and products of 8 bits for CPUs, saved and loaded as any other model.

```python
model = MMForConditionalGeneration.from_pretrained(folder, quantization_config=Int8Config())
model.save_pretrained("small")
model = MMForConditionalGeneration.from_pretrained("small")
```

Each row of a weight has a scale, and so has each token at run time, so that no row of a batch changes another. The
products are FBGEMM's, which torch carries on every x86 CPU. Kernels for AVX2 add pairs of products in 16 bits, which
overflow with weights of full range and give values up to a hundred times too small. The scales here leave room for the
largest pair, so that results are exact on every CPU.
"""

import warnings
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from .layers import Head
from .onednn import is_plain_inference

METHOD = "mm_int8"
# Modules that keep their precision: a classifier's head and the connectors. Patterns, which transformers matches from
# the start of a module's name.
SKIPPED = [rf".*\b{part}\b" for part in ("score", r"\w+_connector")]
# Weights of a layer, from which on it gains by 8 bits: a smaller one takes less time than its scales.
LEAST_WEIGHTS = 2**19
STEPS = 127  # on each side of zero
SMALLEST = 1e-30  # scale of a token of zeros
SCALE = "weight_scale"
ROWS_AT_ONCE = 4096  # that are rounded, so that peak memory is not another table in float32


class Int8Config(QuantizationConfigMixin):
    """
    Configuration of weights and products of 8 bits: `from_pretrained(folder, quantization_config=Int8Config())`.

    Args:
        modules_to_not_convert: patterns of the names of linear layers that keep their precision
        least_weights: layers with fewer weights keep their precision
    """

    quant_method: Any = METHOD

    def __init__(
        self,
        modules_to_not_convert: list[str] | None = None,
        least_weights: int = LEAST_WEIGHTS,
        quant_method: str = METHOD,
    ):
        self.quant_method = quant_method
        self.modules_to_not_convert = SKIPPED if modules_to_not_convert is None else modules_to_not_convert
        self.least_weights = least_weights


def int8_scales(weight: torch.Tensor) -> torch.Tensor:
    """
    Return the scale of each row of a weight (out, in), (out, 1) float32.

    The kernels multiply weights by unsigned tokens, up to 255, and add neighbors in 16 bits: two weights may have 128
    together.
    """
    pairs = nn.functional.pad(weight.detach().float(), (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    return (pairs.abs().sum(-1).amax(-1, keepdim=True) / STEPS).clamp_min(SMALLEST)


class Int8Weight(nn.Module):
    """
    A weight (out, in) of 8 bits with a scale for each row (out, 1).

    Args:
        rows, columns: of the weight
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter

    def __init__(self, rows: int, columns: int):
        super().__init__()
        empty = torch.empty(rows, columns, dtype=torch.int8, device="meta")  # until it is rounded or loaded
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(rows, 1, device="meta"), requires_grad=False)

    @torch.no_grad()
    def round_from(self, weight: torch.Tensor) -> None:
        """Take the nearest steps to a weight (out, in)."""
        scale = int8_scales(weight)
        rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for part, block, steps in zip(
            rounded.split(ROWS_AT_ONCE), weight.split(ROWS_AT_ONCE), scale.split(ROWS_AT_ONCE), strict=True
        ):
            part.copy_((block.float() / steps).round())
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)


class Int8Embedding(Int8Weight):
    """A table of embeddings in 8 bits, which a tied head shares."""

    def __init__(self, table: nn.Embedding):
        super().__init__(*table.weight.shape)
        self.num_embeddings, self.embedding_dim = table.weight.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows (..., D) of ids (...)."""
        return nn.functional.embedding(ids, self.weight).to(self.weight_scale.dtype) * nn.functional.embedding(
            ids, self.weight_scale
        )


class Int8Linear(Int8Weight):
    """
    A linear layer in 8 bits.

    Where FBGEMM or its product has no place (another device, gradients, graphs), the weights are multiplied as floats.

    Args:
        layer: the `nn.Linear` or `Conv1D` in whose place it stands; its bias is kept
    """

    bias: Any  # a tensor, or None

    def __init__(self, layer: Any):
        columns, rows = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        super().__init__(rows, columns)
        self.in_features, self.out_features = columns, rows
        self.bias = layer.bias
        self.packed: Any = None
        self.packed_from: tuple[Any, Any] = (None, None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return states (..., out) of states (..., in)."""
        weight, scale = self.weight, self.weight_scale
        if not (weight.device.type == "cpu" and is_plain_inference(weight) and has_kernel()):
            return nn.functional.linear(states, weight.to(states.dtype) * scale.to(states.dtype), self.bias)
        if self.packed_from[0] is not weight or self.packed_from[1] is not scale:
            self.packed, self.packed_from = pack(weight, scale), (weight, scale)
        exact = states.float()
        largest = torch.linalg.vector_norm(exact, torch.inf, -1, keepdim=True).clamp_min_(SMALLEST)  # (..., 1)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            exact / largest, 1 / STEPS, STEPS + 1, self.packed
        )
        result = product.mul_(largest) if self.bias is None else torch.addcmul(self.bias, product, largest)
        return result.to(states.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the packed weight out of copies and pickles: it is made of the others."""
        return {**self.__dict__, "packed": None, "packed_from": (None, None)}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def has_kernel() -> bool:
    """Return whether torch has the products in 8 bits on this CPU."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def pack(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    """Lay a weight of 8 bits out as FBGEMM multiplies it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # deprecated, and the only way
        zeros = torch.zeros(len(scale), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight.data, scale.data[:, 0].double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)


def is_convertible(name: str, module: nn.Module, config: Int8Config) -> bool:
    """Return whether a module is a linear layer that becomes an `Int8Linear`; subclasses may compute anything else."""
    is_linear = type(module) in (nn.Linear, Head) or isinstance(module, Conv1D)
    if not is_linear or module.weight.numel() < config.least_weights:  # type: ignore[union-attr, operator]
        return False
    return should_convert_module(name, config.modules_to_not_convert)


@torch.no_grad()
def replace_modules(model: PreTrainedModel, config: Int8Config, is_loaded: bool) -> None:
    """
    Replace linear layers and the embedding of the text by modules of 8 bits, one at a time.

    Args:
        is_loaded: whether the model has its weights; otherwise those of 8 bits will be loaded
    """
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    small = Int8Embedding(table)
    if is_loaded:
        small.round_from(table.weight)
    model.set_submodule(name, small)
    for weight, source in list(model.all_tied_weights_keys.items()):
        if source == f"{name}.weight":
            head = weight.removesuffix(".weight")
            layer = Int8Linear(model.get_submodule(head))
            layer.weight, layer.weight_scale = small.weight, small.weight_scale
            model.set_submodule(head, layer)
            tie_scales(model, head, name)
    del table
    for name in [name for name, module in model.named_modules() if is_convertible(name, module, config)]:
        module = model.get_submodule(name)
        layer, weight = Int8Linear(module), module.weight
        if is_loaded:
            layer.round_from(weight.t() if isinstance(module, Conv1D) else weight)  # type: ignore[operator, arg-type]
        model.set_submodule(name, layer)
        del module, weight


def tie_scales(model: PreTrainedModel, head: str, table: str) -> None:
    """Tie a head's scales as its weights are, so that a file holds one table."""
    tied = {f"{head}.{SCALE}": f"{table}.{SCALE}"}
    model.all_tied_weights_keys.update(tied)
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **tied}


def quantize_int8(model: PreTrainedModel, config: Int8Config) -> None:
    """
    Quantize a model in place; all that keeps its precision computes in float32.

    Raises:
        ValueError: if the model is quantized already.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("The model is quantized already. Load it from its folder again to quantize it differently.")
    quantizer = Int8Quantizer(config, pre_quantized=False)
    model.float().eval()
    quantizer.preprocess_model(model)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


class Int8Quantizer(HfQuantizer):
    """[`Int8Config`]'s way into `from_pretrained` and `save_pretrained`."""

    pre_quantized: bool

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32: scales lose by half precision, and CPUs are quickest so."""
        return torch.float32

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self.pre_quantized:
            replace_modules(model, self.quantization_config, is_loaded=False)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if not self.pre_quantized:
            replace_modules(model, self.quantization_config, is_loaded=True)
        self.pre_quantized = True
        model.requires_grad_(False)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register_int8() -> None:
    """
    Let `from_pretrained` know [`Int8Config`] and its folders.

    Remote code may be imported twice, and the `register` functions of transformers refuse a name a second time.
    """
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Int8Config
    AUTO_QUANTIZER_MAPPING[METHOD] = Int8Quantizer
