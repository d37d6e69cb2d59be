"""spectrograms.py: log-mel and back to waves."""

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from modeling_mm.spectrograms import (
    CENTER,
    SPREAD,
    griffin_lim,
    log_mel,
    multi_resolution_stft_loss,
    spectrum,
    to_waves,
)
from tests.fakes.own_codecs import own_config

CONFIG = own_config("audio", sampling_rate=8000, num_mel_bins=40, fft_size=256, hop_length=64)


def tones(seconds: float = 1.0) -> torch.Tensor:
    time = torch.arange(int(8000 * seconds) // 64 * 64) / 8000
    return torch.stack([0.3 * torch.sin(2 * math.pi * pitch * time) for pitch in (440.0, 1250.0)])


def test_log_mel_is_that_of_transformers():
    waves = tones() + 0.01 * torch.randn(2, len(tones()[0]))
    filters = mel_filter_bank(129, 40, 0.0, 4000.0, 8000, norm="slaney", mel_scale="slaney")
    expected = spectrogram(
        waves[0].numpy(), window_function(256, "hann"), 256, 64, power=1.0, pad_mode="constant", mel_filters=filters
    )
    found = log_mel(waves, CONFIG)[0] * SPREAD + CENTER
    frames = waves.shape[1] // 64
    assert found.shape == (40, frames)
    assert np.allclose(found.exp().numpy(), np.maximum(expected[:, :frames], 1e-5), rtol=1e-3, atol=1e-5)


def test_a_spectrum_becomes_the_wave_again():
    waves = tones()
    again = to_waves(spectrum(waves, 256, 64), 256, 64)
    assert again.shape == waves.shape
    assert torch.allclose(again[:, :-256], waves[:, :-256], atol=1e-5)


def test_griffin_lim_gives_waves_with_the_same_spectrogram():
    waves = tones()
    mel = log_mel(waves, CONFIG)
    again = griffin_lim(mel, CONFIG)
    assert again.shape == waves.shape
    assert torch.equal(again, griffin_lim(mel, CONFIG))
    assert torch.allclose(griffin_lim(mel[1:], CONFIG), again[1:], atol=1e-4)
    loud = mel > mel.amax() - 1
    assert (log_mel(again, CONFIG) - mel)[loud].abs().mean() < 0.1
    for wave, pitch in zip(again, (440.0, 1250.0), strict=True):
        strongest = torch.fft.rfft(wave).abs().argmax() / len(wave) * 8000
        assert strongest.item() == pytest.approx(pitch, rel=0.03)


def test_the_spectral_loss():
    waves = tones()
    assert multi_resolution_stft_loss(waves, waves, [128, 256]) == 0
    closer = multi_resolution_stft_loss(waves * 0.9, waves, [128, 256])
    assert 0 < closer < multi_resolution_stft_loss(waves.flip(0), waves, [128, 256])
    # Scaled by a half: convergence 0.5, and a distance of log 2 where the floor is not reached.
    noise = torch.randn(1, 8000)
    assert multi_resolution_stft_loss(noise / 2, noise, [128]).item() == pytest.approx(0.5 + math.log(2), rel=1e-3)


@pytest.mark.parametrize("samples", [64, 128])
def test_the_shortest_waves(samples):
    waves = torch.randn(1, samples) * 0.1
    mel = log_mel(waves, CONFIG)
    assert mel.shape == (1, 40, samples // 64)
    assert griffin_lim(mel, CONFIG).shape == (1, samples)
