# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A DETR on the states that a frozen encoder gives for scenes, to compare a model that points with.

It is transformers' Conditional DETR, which converges faster than DETR (arxiv.org/abs/2108.06152), with the cached
states in place of a backbone's feature map.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, ResNetConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.boxes import ImageObject, Size
from modeling_mm.data import ChatRow
from modeling_mm.training import EncoderCache
from modeling_mm.utils import show_progress

from .find_scenes import Found, Scene, question

BATCH = 32
MOST_BOXES = 100  # of a scene, as many as COCO counts
PRIOR = 0.01  # probability of a class at first, without which focal loss starts with all that is not there
# About as many weights as the decoder that points, its connector and its cross-attention together.
SIZES = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 6, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024}
SIZES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 50}

# Shape legend: B images, W features, h and w the grid of their tokens, Q queries, C classes.


class StatesBackbone(nn.Module):
    """Feature maps (B, W, h, w) as they are, but normalized, with a mask (B, h, w): what a backbone gives a DETR."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        states = self.norm(pixel_values.movedim(1, -1)).movedim(-1, 1)
        return [(states, pixel_mask.bool())]


def detr_config(names: Sequence[str], **sizes: int) -> ConditionalDetrConfig:
    """Return the config of a DETR for things of these names; `sizes` in place of those of `SIZES`."""
    # A backbone must be named; the states take its place.
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    return ConditionalDetrConfig(
        backbone_config=backbone,
        auxiliary_loss=True,
        dropout=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        **{**SIZES, **sizes},
    )


class StatesDetr(nn.Module):
    """
    A Conditional DETR that reads encoder states in place of pixels.

    It is a plain module, as transformers' `save_pretrained` writes DETR's weights under other names, under which a
    `Trainer` that resumes does not find them.

    Args:
        config: of the DETR.
        width: W, of the states.
    """

    def __init__(self, config: ConditionalDetrConfig, width: int):
        super().__init__()
        self.config = config
        self.detr = ConditionalDetrForObjectDetection(config)
        self.detr.model.backbone = StatesBackbone(width)
        self.detr.model.input_projection = nn.Conv2d(width, config.d_model, kernel_size=1)
        nn.init.constant_(self.detr.class_labels_classifier.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pixel_values: torch.Tensor, labels: list[dict[str, torch.Tensor]] | None = None) -> Any:
        """Return DETR's output for feature maps (B, W, h, w), with its loss if there are labels."""
        return self.detr(pixel_values, labels=labels)


def save_detr(model: StatesDetr, folder: Path) -> None:
    """Write config and weights into a folder."""
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / SAFE_WEIGHTS_NAME)


def load_detr(folder: Path) -> StatesDetr:
    """Return a DETR that `save_detr` has written."""
    state = load_file(folder / SAFE_WEIGHTS_NAME)
    width = state["detr.model.input_projection.weight"].shape[1]
    model = StatesDetr(ConditionalDetrConfig.from_pretrained(folder), width)
    model.load_state_dict(state)
    return model.eval()


def open_cache(pointer: Path, encoder_cache: Path) -> EncoderCache:
    """Return the encoder cache of a model that points, whose encoder is frozen."""
    model = MMForConditionalGeneration.from_pretrained(pointer, dtype=torch.float32)
    return EncoderCache(encoder_cache, model, MMProcessor.from_pretrained(pointer))


def map_of(cache: EncoderCache, path: str) -> torch.Tensor:
    """Return the states of an image as a feature map (W, h, w)."""
    (states,) = cache.states({"type": "image", "path": path})  # (h * w, W)
    side = math.isqrt(len(states))
    return states.T.unflatten(1, (side, side))


class SceneMaps(Dataset):
    """
    Feature maps of scenes with their boxes, as DETR takes them.

    Args:
        cache: filled with the scenes.
        names: of the classes, in order.
    """

    def __init__(self, cache: EncoderCache, scenes: Sequence[Scene], names: Sequence[str]):
        self.cache, self.scenes = cache, list(scenes)
        self.ids = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scenes[index]
        labels = {
            "class_labels": torch.tensor([self.ids[each.label] for each in scene.objects]),
            "boxes": torch.tensor([to_center(each, scene.size) for each in scene.objects]),
        }
        return {"pixel_values": map_of(self.cache, scene.path), "labels": labels}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch: feature maps (B, W, h, w) and the labels of each."""
    return {
        "pixel_values": torch.stack([each["pixel_values"] for each in samples]),
        "labels": [each["labels"] for each in samples],
    }


def to_center(item: ImageObject, size: Size) -> tuple[float, float, float, float]:
    """Return middle x and y, width and height of a box as shares of its image."""
    left, top, right, bottom = item.place
    width, height = size
    return (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height


def from_center(box: Sequence[float], size: Size) -> tuple[float, float, float, float]:
    """Return a box in pixels, clipped to its image, the inverse of `to_center`."""
    x, y, width, height = (share * side for share, side in zip(box, (*size, *size), strict=True))
    left, right = (min(max(edge, 0.0), float(size[0])) for edge in (x - width / 2, x + width / 2))
    top, bottom = (min(max(edge, 0.0), float(size[1])) for edge in (y - height / 2, y + height / 2))
    return left, top, right, bottom


class DetrDetector:
    """
    A trained DETR, beside a model that points.

    Args:
        folder: of `train_detr`.
        cache: of the encoder that it was trained on, filled as needed.
    """

    def __init__(self, folder: Path, cache: EncoderCache):
        self.model, self.cache = load_detr(folder), cache
        self.names = [self.model.config.id2label[number] for number in range(self.model.config.num_labels)]

    def detect(self, scenes: Sequence[Scene]) -> list[Found]:
        """Return the likeliest boxes with their classes, and each query's box with its likeliest class."""
        found = []
        for scene, scores, boxes in self.outputs(scenes):
            best = scores.flatten().topk(min(MOST_BOXES, scores.numel())).indices.tolist()
            classes = len(self.names)
            named = [self.box(scene, boxes, scores, each // classes, each % classes) for each in best]
            places = [self.box(scene, boxes, scores, n, int(each)) for n, each in enumerate(scores.argmax(-1))]
            found.append(Found(named, places))
        return found

    def find(self, scenes: Sequence[Scene], rows: Sequence[ChatRow]) -> list[list[ImageObject]]:
        """Return the likeliest box of the thing of each prompt, none of a thing without a class."""
        found: list[list[ImageObject]] = []
        for (scene, scores, boxes), row in zip(self.outputs(scenes), rows, strict=True):
            label = row.messages[-1]["content"][0]["objects"][0]["label"]
            number = self.names.index(label) if label in self.names else None
            best = [] if number is None else [(int(scores[:, number].argmax()), number)]
            found.append([self.box(scene, boxes, scores, *each) for each in best])
        return found

    def box(self, scene: Scene, boxes: torch.Tensor, scores: torch.Tensor, query: int, number: int) -> ImageObject:
        place = from_center(boxes[query].tolist(), scene.size)
        return ImageObject(self.names[number], place, float(scores[query, number]))

    @torch.no_grad()
    def outputs(self, scenes: Sequence[Scene]) -> list[tuple[Scene, torch.Tensor, torch.Tensor]]:
        """Return each scene with scores (Q, C) and boxes (Q, 4)."""
        self.cache.fill([question(scene.path, "") for scene in scenes], progress=False)
        found = []
        for start in show_progress(range(0, len(scenes), BATCH), desc="detecting"):
            part = scenes[start : start + BATCH]
            outputs = self.model(torch.stack([map_of(self.cache, scene.path) for scene in part]))
            found += list(zip(part, outputs.logits.sigmoid(), outputs.pred_boxes, strict=True))
        return found
