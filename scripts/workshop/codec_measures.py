# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures of a trained codec, and the sheet of what it makes of images."""

import math
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from modeling_mm import MMCodec, MMForConditionalGeneration, MMProcessor
from modeling_mm.codecs import load_codec
from modeling_mm.evaluation import generate_answers, score

from .codec_training import SPEECH, ImageRows, read_wave
from .corpus import read_rows
from .hearing import transcription

BATCH = 64
COLUMNS = 8  # of the sheet


def measure(arguments: Namespace) -> dict[str, float]:
    """Return the figures of the codec in `arguments.folder` by name."""
    model = MMCodec.from_pretrained(arguments.folder).eval()
    if model.config.modality == "audio":
        return speech_figures(arguments)
    pixels = ImageRows(arguments.corpora, arguments.split, arguments.limit).pixels.float() / 255
    return image_figures(model, pixels, arguments)


# ---- Images ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def image_figures(model: MMCodec, pixels: torch.Tensor, arguments: Namespace) -> dict[str, float]:
    """Return the figures of images (N, 3, H, W) from 0 to 1, and write the sheet."""
    latents = torch.cat([model.encode_latents(batch) for batch in pixels.split(BATCH)])
    decoded = torch.cat([model.decode_latents(batch) for batch in latents.split(BATCH)])
    figures = {"psnr_db": mean_psnr(decoded, pixels)}
    sheet(model, pixels, decoded, latents).save(arguments.folder / "images.png")
    if model.config.bottleneck != "kl":
        codes = torch.cat([model.encode_codes(batch) for batch in pixels.split(BATCH)])
        return figures | code_use(codes, model.config.codebook_size)
    torch.manual_seed(0)
    outputs = [(model(batch).elbo.item(), len(batch)) for batch in pixels.split(BATCH)]
    figures["elbo_nats_per_dimension"] = sum(elbo * rows for elbo, rows in outputs) / len(pixels)
    train = ImageRows(arguments.corpora, "train", arguments.limit).pixels.float() / 255
    dimensions = latents[0].numel()
    figures["pca_nats_per_dimension"] = pca_log_likelihood(train * 2 - 1, pixels * 2 - 1, dimensions)
    return figures


def mean_psnr(images: torch.Tensor, originals: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, averaged over images from 0 to 1."""
    errors = (images - originals).pow(2).flatten(1).mean(1).clamp(min=1e-10)
    return (-10 * errors.log10()).mean().item()


def code_use(codes: torch.Tensor, codebook_size: int) -> dict[str, float]:
    """Return the share of the codes that occur, and the perplexity of their frequencies."""
    counts = torch.bincount(codes.flatten(), minlength=codebook_size).double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return {"codes_used": (counts > 0).double().mean().item(), "perplexity": entropy.exp().item()}


def pca_log_likelihood(train: torch.Tensor, held_out: torch.Tensor, dimensions: int) -> float:
    """
    Return the mean log-likelihood of probabilistic PCA, the best linear VAE, in nats per dimension.

    Args:
        train: (N, ...) to fit
        held_out: (M, ...) to measure
        dimensions: of its latents; at most N - 1 are used
    """
    flat, new = train.flatten(1).double(), held_out.flatten(1).double()
    mean, size = flat.mean(0), flat.shape[1]
    _, values, basis = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = min(dimensions, len(flat) - 1, size - 1)
    variances = values.pow(2) / len(flat)
    noise = (variances[kept:].sum() / (size - kept)).clamp(min=1e-6)
    signal = variances[:kept].clamp(min=noise)
    inside = (new - mean) @ basis[:kept].T
    outside = (new - mean).pow(2).sum(1) - inside.pow(2).sum(1)
    distance = (inside.pow(2) / signal).sum(1) + outside / noise
    log_volume = signal.log().sum() + (size - kept) * noise.log()
    return (-0.5 * (distance + log_volume + size * math.log(2 * math.pi)) / size).mean().item()


@torch.no_grad()
def sheet(model: MMCodec, pixels: torch.Tensor, decoded: torch.Tensor, latents: torch.Tensor) -> Image.Image:
    """Return originals, reconstructions, the way from the first image to the second, and samples of the prior."""
    shares = torch.linspace(0, 1, COLUMNS).view(-1, *[1] * (latents.ndim - 1))
    rows = [pixels[:COLUMNS], decoded[:COLUMNS]]
    rows.append(model.decode_latents(latents[:1] * (1 - shares) + latents[1:2] * shares))
    if model.config.bottleneck == "kl":
        noise = torch.randn((COLUMNS, *latents.shape[1:]), generator=torch.Generator().manual_seed(0))
        rows.append(model.decode_latents(noise))
    height, width = pixels.shape[2:]
    canvas = np.full((len(rows) * height, COLUMNS * width, 3), 255, dtype=np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            place = (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            canvas[place] = (image * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(canvas)


# ---- Speech ---------------------------------------------------------------------------------------------------------


def speech_figures(arguments: Namespace) -> dict[str, float]:
    """Return the word error rate on decoded and on original recordings, and the use of codes."""
    codec = load_codec(arguments.folder)
    folders = [arguments.corpora / name for name in SPEECH if (arguments.corpora / name / arguments.split).is_dir()]
    rows = [(folder, row) for folder in folders for row in read_rows(folder, arguments.split)][: arguments.limit]
    codes, truths = [], [row["text"] for _, row in rows]
    with tempfile.TemporaryDirectory() as folder:
        originals = [str(corpus / row["file_name"]) for corpus, row in rows]
        decoded = [str(Path(folder) / f"{number}.wav") for number in range(len(rows))]
        for original, path in zip(originals, decoded, strict=True):
            codes.append(codec.encode(torch.from_numpy(read_wave(Path(original)))[None]))
            soundfile.write(path, codec.decode(codes[-1])[0].clamp(-1, 1).numpy(), codec.sampling_rate)
        errors = [word_error_rate(arguments.transcriber, paths, truths) for paths in (originals, decoded)]
    used = code_use(torch.cat([each.flatten() for each in codes]), codec.codebook_size)
    return {"codes_a_second": float(codec.rate or 0), "wer_original": errors[0], "wer_decoded": errors[1], **used}


def word_error_rate(transcriber: str, paths: list[str], truths: list[str]) -> float:
    """Return the word error rate of a model that hears recordings."""
    model = MMForConditionalGeneration.from_pretrained(transcriber)
    processor = MMProcessor.from_pretrained(transcriber)
    answers = generate_answers(model, processor, [transcription(path) for path in paths], 8, 100)
    return score("spoken_wer", answers, truths)
