# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Media of the corpora as tensors, and the training of a codec by the stock `Trainer`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_mm import MMCodec, MMCodecConfig
from modeling_mm.audio import load_audio

from .corpus import read_rows

SIZE = 64  # pixels a side
IMAGES = "images"
SPEECH = ("studio-speech",)
RATE = 16000
CODES = 40  # of a piece of speech in training: 0.8 s
CHECKPOINTS, VOCODER_CHECKPOINTS = "checkpoints", "checkpoints-vocoder"


def codec_config(modality: str, bottleneck: str) -> MMCodecConfig:
    """
    Return the config of the codec of images or of speech that the corpora train.

    A code of an image stands for 8 by 8 pixels and is one of 4,096; a code of speech for 20 ms, one of about 1,000.
    """
    sizes: dict[str, Any] = {"hidden_sizes": [16, 96, 128], "strides": [4, 2], "image_size": SIZE, "num_res_blocks": 1}
    sizes |= {"fsq_levels": [8, 8, 8, 8], "codebook_size": 4096}
    if modality == "audio":
        sizes = {"hidden_sizes": [128, 192], "strides": [2], "kernel_size": 5, "sampling_rate": RATE}
        sizes |= {"fsq_levels": [8, 5, 5, 5], "codebook_size": 1024, "latent_channels": 16}
    warmup = {"kl_warmup_steps": 500} if bottleneck == "kl" else {}
    return MMCodecConfig(modality=modality, bottleneck=bottleneck, **sizes, **warmup)


class ImageRows(Dataset):
    """Images (3, 64, 64) from 0 to 1 of a split of the corpus of images, kept as bytes."""

    def __init__(self, corpora: Path, split: str, limit: int | None = None) -> None:
        folder = corpora / IMAGES
        names = [row["file_name"] for row in read_rows(folder, split)][:limit]
        self.pixels = torch.stack([read_image(corpora / IMAGES / name) for name in names])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"media": self.pixels[index].float() / 255}


def read_image(path: Path) -> torch.Tensor:
    """Return an image as bytes, (3, 64, 64)."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


class SpeechPieces(Dataset):
    """Pieces of speech (samples,) of equal length of a split of the corpora of speech, kept as 16-bit samples."""

    def __init__(self, corpora: Path, split: str, samples: int, limit: int | None = None) -> None:
        paths = [corpora / name / row["file_name"] for name in SPEECH for row in read_rows(corpora / name, split)]
        waves = [read_wave(path) for path in sorted(paths)[:: -(-len(paths) // limit) if limit else 1]]
        pieces = [wave[start : start + samples] for wave in waves for start in range(0, len(wave), samples)]
        padded = [np.pad(piece, (0, samples - len(piece))) for piece in pieces]
        self.samples = torch.from_numpy(np.stack(padded) * 32767).to(torch.int16)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"media": self.samples[index].float() / 32767}


def read_wave(path: Path) -> np.ndarray:
    """Return the samples of a recording at 16 kHz, float32."""
    return load_audio(str(path), RATE)


def media_of(model: MMCodec, corpora: Path, split: str, limit: int | None) -> Dataset:
    """Return the media of a split that a codec reads."""
    if model.config.modality == "image":
        return ImageRows(corpora, split, limit)
    return SpeechPieces(corpora, split, CODES * model.hop_length, limit)


def train_codec(arguments: Namespace) -> str:
    """
    Train a codec, or resume from the last checkpoint, and save it in `arguments.folder`.

    The codes of speech are learned first, on spectrograms; then the vocoder alone, on what the codec makes of them.

    Returns:
        a line with the losses on the validation split.
    """
    set_seed(arguments.seed)
    model = MMCodec(codec_config(arguments.modality, arguments.bottleneck))
    stft_weight = model.config.stft_weight
    model.config.stft_weight = 0.0
    model, loss = train_stage(model, arguments, CHECKPOINTS, arguments.steps)
    said = f"{arguments.folder}: validation loss {loss:.4f} after {arguments.steps} steps"
    model.config.stft_weight = stft_weight
    if model.vocoder is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("vocoder."))
        set_seed(arguments.seed)
        model, loss = train_stage(model, arguments, VOCODER_CHECKPOINTS, arguments.vocoder_steps)
        said += f", {loss:.4f} with waves after {arguments.vocoder_steps} steps of the vocoder"
    model.save_pretrained(arguments.folder)
    return said


def train_stage(model: MMCodec, arguments: Namespace, name: str, steps: int) -> tuple[MMCodec, float]:
    """Train what learns for so many steps, or resume in the folder `name`; return the model and its held-out loss."""
    checkpoints = arguments.folder / name
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    is_finished = last is not None and int(last.rpartition("-")[2]) >= steps  # else one more step
    if is_finished:
        model = MMCodec.from_pretrained(last)
    settings = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 10),
        weight_decay=0.0,
        bf16=arguments.bf16,
        use_cpu=not torch.accelerator.is_available(),  # Trainer wants to be told so for bfloat16
        save_steps=max(1, steps // 10),
        save_total_limit=1,
        logging_steps=max(1, steps // 30),
        label_names=["media"],
        prediction_loss_only=True,
        report_to=[],
        seed=arguments.seed,
        dataloader_pin_memory=False,
    )
    train = media_of(model, arguments.corpora, "train", arguments.limit)
    held_out = media_of(model, arguments.corpora, "validation", arguments.limit)
    trainer = Trainer(model, settings, train_dataset=train, eval_dataset=held_out)
    if not is_finished:
        trainer.train(resume_from_checkpoint=last)
    return model, trainer.evaluate()["eval_loss"]
