"""audio_writing.py: samples as files of every format."""

import io

import numpy as np
import pytest
import soundfile

from modeling_mm.utils.audio_writing import encode_audio


@pytest.mark.parametrize("audio_format", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("rate", [16000, 17000])
def test_audio_is_encoded_and_clipped(audio_format, rate):
    wave = np.sin(np.arange(rate) * 2 * np.pi * 440 / rate).astype(np.float32)
    wave[: rate // 2] *= 3
    samples, found = soundfile.read(io.BytesIO(encode_audio(wave, rate, audio_format)))
    assert found == (22050 if (audio_format, rate) == ("mp3", 17000) else rate)
    assert abs(len(samples) / found - 1) < (0.2 if audio_format == "mp3" else 1e-9)
    middle = samples[found // 4 : -found // 4]
    tone = np.argmax(np.abs(np.fft.rfft(middle))) * found / len(middle)
    assert abs(tone - 440) < 3
    if audio_format != "mp3":
        assert np.abs(samples - wave.clip(-1, 1)).max() <= 1 / 2**15
