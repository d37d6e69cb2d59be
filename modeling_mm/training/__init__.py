# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Training: trainer, collators, augmentation, encoder cache, freezing, LoRA, alignment and callbacks."""

from ..batching import IGNORED
from .alignment import AlignmentOptions, NamedMedium, align, named_media
from .arguments import MMTrainingArguments
from .audio_augmentation import AudioAugmentation
from .augmentation import Augmentation, ModalityDropout
from .callbacks import (
    LossProgressCallback,
    ProcessCountCallback,
    SetEpochCallback,
    ThawCallback,
    TimerCallback,
)
from .checkpoints import last_whole_checkpoint
from .code_cache import CodeCache
from .collators import (
    CachedClassificationCollator,
    CachedCollator,
    ChatCollator,
    ClassificationCollator,
    accuracy,
    encode_conversation,
)
from .encoder_cache import EncoderCache, fingerprint
from .freezing import PARTS, part_of, parts_of
from .image_augmentation import ImageAugmentation
from .lora import MODULES_TO_SAVE, TARGET_MODULES, LoraOptions, add_lora
from .matching import CachedRetrievalCollator, RetrievalCollator
from .pretraining import Masking, PretrainingCollator
from .sampling import MediaLengthGroupedSampler, media_size
from .state_store import StateStore
from .trainer import MMTrainer

__all__ = [
    "IGNORED",
    "MODULES_TO_SAVE",
    "PARTS",
    "TARGET_MODULES",
    "AlignmentOptions",
    "AudioAugmentation",
    "Augmentation",
    "CachedClassificationCollator",
    "CachedCollator",
    "CachedRetrievalCollator",
    "ChatCollator",
    "ClassificationCollator",
    "CodeCache",
    "EncoderCache",
    "ImageAugmentation",
    "LoraOptions",
    "LossProgressCallback",
    "MMTrainer",
    "MMTrainingArguments",
    "Masking",
    "MediaLengthGroupedSampler",
    "ModalityDropout",
    "NamedMedium",
    "PretrainingCollator",
    "ProcessCountCallback",
    "RetrievalCollator",
    "SetEpochCallback",
    "StateStore",
    "ThawCallback",
    "TimerCallback",
    "accuracy",
    "add_lora",
    "align",
    "encode_conversation",
    "fingerprint",
    "last_whole_checkpoint",
    "media_size",
    "named_media",
    "part_of",
    "parts_of",
]
