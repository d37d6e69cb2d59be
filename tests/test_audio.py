"""Audio of every kind becomes windows of mono samples at the encoder's rate, or a ValueError that says why not."""

import base64
import io

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from modeling_mm import audio, audio_files
from modeling_mm.audio import (
    check_rate,
    count_frames,
    cut_into_windows,
    decode_audio,
    extract_features,
    is_audio,
    load_audio,
    mix_down,
    resample,
    samples_of_frames,
    scale_to_unit,
    window_length,
)

RATE = 16_000


def tone(seconds: float, rate: int = RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_every_source_gives_the_same_sound(tmp_path):
    samples = tone(0.1)
    data = encode(samples, subtype="FLOAT")
    path = tmp_path / "a.wav"
    path.write_bytes(data)

    class Decoder:  # as torchcodec's
        def get_all_samples(self):
            return type("Samples", (), {"data": torch.tensor(samples)[None], "sample_rate": RATE})

    sources = {
        "Path": path,
        "str": str(path),
        "bytes": data,
        "data URL": "data:audio/wav;base64," + base64.b64encode(data).decode(),
        "datasets bytes": {"bytes": data, "path": None},
        "datasets path": {"bytes": None, "path": str(path)},
        "array": samples,
        "tensor": torch.tensor(samples),
        "list": samples.tolist(),
        "array and rate": (samples, RATE),
        "rate and array": (RATE, samples),
        "decoded dict": {"array": samples, "sampling_rate": RATE, "path": None},
        "dict without rate": {"array": samples},
        "decoder": Decoder(),
        "stereo": (np.stack([samples, samples]), RATE),
        "frames first": (np.stack([samples, samples], axis=1), RATE),
        "float64": samples.astype(np.float64),
    }
    for name, source in sources.items():
        loaded = load_audio(source, RATE)
        assert loaded.dtype == np.float32, name
        np.testing.assert_allclose(loaded, samples, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_and_rates(kind):
    """8 kHz stereo in any format comes out as the same 440 Hz at 16 kHz, in length and in pitch."""
    stereo = np.stack([tone(1, 8000), np.zeros(8000, np.float32)], axis=1)
    loaded = load_audio(encode(stereo, 8000, kind), RATE)
    assert abs(len(loaded) - RATE) < 0.15 * RATE  # MP3 adds its delay
    spectrum = np.abs(np.fft.rfft(loaded[2000:10000] * np.hanning(8000)))
    assert np.argmax(spectrum) == 220  # bins of 2 Hz
    assert np.abs(loaded[4000:12000]).max() == pytest.approx(0.25, abs=0.03)  # half of the left channel


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_length_and_waveform(rate):
    loaded = load_audio((tone(1, rate), rate), RATE)
    assert len(loaded) == RATE
    np.testing.assert_allclose(loaded[500:-500], tone(1)[500:-500], atol=5e-3)


def test_a_file_of_one_stereo_frame_is_one_sample():
    assert load_audio(encode(np.array([[0.5, 0.0]]), subtype="FLOAT"), RATE).tolist() == [0.25]


def test_rate_of_bare_arrays():
    assert len(load_audio(tone(1, 8000), RATE, array_rate=8000)) == RATE
    assert len(load_audio((tone(1, 8000), 8000), RATE, array_rate=44_100)) == RATE  # its own rate counts


def test_one_sample_survives_resampling():
    assert len(resample(np.ones(1, np.float32), 48_000, 8000)) == 1


@pytest.mark.parametrize(
    "dtype, values", [("int16", [-32768, 0, 16384]), ("int32", [-(2**31), 0, 2**30]), ("uint8", [0, 128, 192])]
)
def test_integers_are_scaled(dtype, values):
    assert scale_to_unit(np.array(values, dtype)).tolist() == [-1, 0, 0.5]


PCM = np.round(tone(0.1) * 32767).astype(np.int16)
EIGHT_BITS = np.round(tone(0.1) * 127 + 128).astype(np.uint8)


@pytest.mark.parametrize(
    "samples",
    [
        PCM.tolist(),
        np.stack([PCM, PCM]).tolist(),
        PCM.astype(np.int32),
        PCM.astype(np.int64),
        torch.tensor(PCM, dtype=torch.int32),
        torch.tensor(PCM, dtype=torch.int64),
        PCM.astype(np.int32) << 16,
        np.round(tone(0.1) * (2**23 - 1)).astype(np.int32) << 8,
        PCM.astype(np.int64) << 16,
        (PCM.astype(np.int32) + 2**15).astype(np.uint16),
        PCM.astype(np.int64) + 2**15,
        (PCM.astype(np.int64) + 2**15) << 16,
        EIGHT_BITS,
        EIGHT_BITS.tolist(),
        EIGHT_BITS.astype(np.uint16),
        torch.tensor(EIGHT_BITS).int(),
    ],
    ids=lambda samples: f"{type(samples).__name__}-{getattr(samples, 'dtype', '')}",
)
def test_integers_in_a_wider_type_are_as_loud_as_in_their_own(samples):
    """JSON, pydub and `frombuffer` hand over 16-bit samples as lists, int32 and int64."""
    np.testing.assert_allclose(load_audio((samples, RATE), RATE), tone(0.1), atol=0.01)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "uint32"])
def test_zeros_of_any_type_are_silence(dtype):
    assert not load_audio((np.zeros(10, dtype), RATE), RATE).any()


@pytest.mark.parametrize(
    "samples",
    [
        np.round(tone(0.1) * (2**23 - 1)).astype(np.int32),  # 24 bits, or a quiet 32
        PCM.view(np.uint16),  # signed samples read as unsigned
        PCM.astype(np.int64) << 32,
        np.arange(2000, dtype=np.uint16),
    ],
)
def test_integers_of_an_unclear_range_are_refused(samples):
    with pytest.raises(ValueError, match=r"samples from -?\d+ to \d+ can be of more than one range; divide"):
        load_audio((samples, RATE), RATE)


def test_mix_down_is_the_mean():
    assert mix_down(np.array([[1, 2, 3], [3, 4, 5]], np.float32)).tolist() == [2, 3, 4]
    assert mix_down(np.array([[1, 3], [2, 4], [3, 5]], np.float32)).tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros(0), "the audio holds no samples"),
        (encode(np.zeros(0, np.float32)), "the audio holds no samples"),
        (np.array([0, np.nan, np.inf, 1]), "2 of 4 samples are NaN or infinite.*nan_to_num"),
        (np.zeros((40, 40)), r"expected samples of shape \(length,\) .* got \(40, 40\)"),
        (np.zeros((1, 2, 3)), r"got \(1, 2, 3\)"),
        (np.array(["a"]), "expected samples of an integer or float type"),
        (b"this is no sound", "expected audio, got 16 bytes that cannot be decoded.*convert the file to WAV"),
        (b"", "expected audio, got 0 bytes"),
        ("gone.wav", "'gone.wav': expected an existing file"),
        ((np.zeros(5), 0), "expected a positive sampling rate in Hz, got 0"),
        ((np.zeros(5), -8000), "got -8000"),
        ((np.zeros(5), float("nan")), "got nan"),
        ({"array": np.zeros(5), "sampling_rate": "16k"}, "got '16k'"),
        (None, r"expected a path, a URL, bytes, a 1-D array.*; got an object of type NoneType"),
        ({"text": 1}, "holds neither `bytes` nor a `path`"),
    ],
)
def test_what_is_no_sound(source, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source, RATE)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_truncated_files(kind):
    data = encode(np.random.default_rng(0).uniform(-1, 1, RATE), kind=kind)
    for length in (len(data) // 2, 30):
        with pytest.raises(ValueError, match=r"cut short|cannot be decoded"):
            decode_audio(data[:length])


def test_streamed_wav_without_a_length_is_read():
    data = encode(tone(0.1))
    samples, _ = decode_audio(data[:4] + b"\xff\xff\xff\xff" + data[8:])
    assert len(samples) == 1600


def test_check_rate_refuses_truth_values():
    with pytest.raises(ValueError, match="got True"):
        check_rate(True)


def test_is_audio():
    sound = np.zeros(3)
    values = ["a.wav", b"", {}, sound, (sound, RATE), (RATE, sound), [0.0, 1.0], [sound], [(sound, RATE)], (), []]
    assert [is_audio(value) for value in values] == [True] * 7 + [False] * 4


@pytest.mark.parametrize("length, expected", [(1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])])
def test_windows_lose_nothing(length, expected):
    samples = np.arange(length)
    windows = cut_into_windows(samples, 10)
    assert list(map(len, windows)) == expected
    assert np.concatenate(windows).tolist() == samples.tolist()


@pytest.mark.parametrize("frames", [1, 2, 1024])
def test_samples_of_frames_is_the_inverse(frames):
    assert count_frames(samples_of_frames(frames, RATE), RATE) == frames
    assert count_frames(samples_of_frames(frames, RATE) - 1, RATE) == frames - 1


def test_window_lengths():
    assert window_length(WhisperFeatureExtractor(chunk_length=5)) == 5 * RATE
    assert window_length(Wav2Vec2FeatureExtractor()) == 30 * RATE
    assert window_length(Wav2Vec2FeatureExtractor(), seconds=2.5) == 40_000
    assert window_length(ASTFeatureExtractor(max_length=100)) == 99 * 160 + 400


def test_whisper_features_equal_its_extractor():
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    features, mask = extract_features(extractor, [tone(1), tone(0.5), tone(1)[:1]])
    assert features.shape == (3, 8, 100) and mask.shape == (3, 100)
    assert mask.sum(-1).tolist() == [100, 50, 1]
    expected = extractor([tone(1), tone(0.5)], sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(features[:2], expected)


def test_windows_are_extracted_a_few_at_a_time_with_the_features_of_all_at_once(monkeypatch):
    given = []

    class Noting(WhisperFeatureExtractor):
        def __call__(self, windows, **options):
            given.append(len(windows))
            return super().__call__(windows, **options)

    extractor, windows = Noting(feature_size=8, chunk_length=1), [tone(0.2 * (1 + n % 4)) for n in range(5)]
    features, mask = extract_features(extractor, windows)
    assert given == [2, 2, 1] and audio.WINDOWS_AT_ONCE == 2
    monkeypatch.setattr(audio, "WINDOWS_AT_ONCE", 5)
    whole, whole_mask = extract_features(extractor, windows)
    assert given[3:] == [5]
    torch.testing.assert_close(features, whole, atol=1e-6, rtol=0)
    assert torch.equal(mask, whole_mask) and features.shape == (5, 8, 100)


def test_raw_waves_are_padded_to_the_longest_and_not_further():
    features, mask = extract_features(Wav2Vec2FeatureExtractor(), [tone(0.5), tone(0.25)])
    assert features.shape == mask.shape == (2, 8000)
    assert mask.sum(-1).tolist() == [8000, 4000]
    assert features[1, 4000:].abs().max() == 0
    assert features[1, :4000].mean().abs() < 1e-5 and features[1, :4000].std() == pytest.approx(1, abs=1e-3)
    alone, _ = extract_features(Wav2Vec2FeatureExtractor(), [tone(0.25)])
    torch.testing.assert_close(features[1, :4000], alone[0])


def test_ast_frames_are_counted():
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=50)
    features, mask = extract_features(extractor, [tone(0.3), tone(1)[: samples_of_frames(50, RATE)]])
    assert features.shape == (2, 50, 16) and mask.sum(-1).tolist() == [count_frames(4800, RATE), 50] == [28, 50]
    assert (features[0, 28:] == features[0, 49]).all() and (features[0, 27] != features[0, 49]).any()


@pytest.mark.parametrize(
    "extractor", [Wav2Vec2FeatureExtractor(), ASTFeatureExtractor(num_mel_bins=16, max_length=50)], ids=["raw", "ast"]
)
def test_one_sample_counts_as_one_frame(extractor):
    features, mask = extract_features(extractor, [np.ones(1, np.float32)])
    assert torch.isfinite(features).all()
    assert mask.sum() == (1 if features.ndim == 3 else 400)


def test_other_extractors_need_a_mask():
    features, mask = extract_features(SeamlessM4TFeatureExtractor(), [tone(0.5), tone(0.25)])
    assert features.shape == (2, 160, mask.shape[1]) and mask.sum(-1)[0] > mask.sum(-1)[1] > 0

    class Maskless:
        model_input_names, sampling_rate = ["input_values"], RATE

        def __call__(self, windows, **kwargs):
            return {"input_values": np.stack(windows)}

    with pytest.raises(ValueError, match="Maskless returns no attention mask"):
        extract_features(Maskless(), [tone(0.5)])


def test_a_small_file_that_unpacks_into_too_much_is_refused(monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((1000, 8)), 8000, format="FLAC")
    monkeypatch.setattr(audio_files, "MAX_DECODED_SAMPLES", 7999)
    with pytest.raises(ValueError, match="1000 samples in 8 channels, more than the limit of 7999"):
        decode_audio(file.getvalue())


def test_audio_of_absurd_cost_is_refused_before_it_is_decoded_or_resampled(monkeypatch):
    def file(samples, rate):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(samples), rate, format="WAV")
        return buffer.getvalue()

    monkeypatch.setattr(audio.soxr, "resample", None)  # never called
    with pytest.raises(ValueError, match=r"sampling rate of at least 100 Hz, got 1, .* not in kHz"):
        load_audio(file(500, 1), RATE)
    with pytest.raises(ValueError, match=r"sampling rate of at most 1e\+06 Hz, got 8e\+08"):
        load_audio((np.zeros(500), 800_000_000), RATE)
    with pytest.raises(ValueError, match="got 16, at which nothing"):
        load_audio((np.zeros(500), 16), RATE)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(ValueError, match=r"the audio lasts 10 s, more than the limit of 9\.5 s"):
        decode_audio(file(80_000, 8000), max_seconds=9.5)
    monkeypatch.setattr(audio_files, "MAX_DECODED_SAMPLES", 79_999)
    with pytest.raises(ValueError, match="80000 samples in 1 channels, more than the limit of 79999"):
        load_audio((np.zeros(20_000), 4000), 16_000)


def test_low_rates_and_audio_of_the_longest_length_are_valid():
    assert len(load_audio((np.zeros(500), 100), RATE)) == 5 * RATE
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8000), 4000, format="WAV")
    assert len(load_audio(buffer.getvalue(), RATE, max_seconds=2)) == 2 * RATE


def test_integers_cast_to_float_are_refused():
    with pytest.raises(ValueError, match="got up to 30000; divide integer samples"):
        scale_to_unit(np.array([0.0, -30000.0]))
    assert scale_to_unit(np.array([1.5, -1.2])).tolist() == pytest.approx([1.5, -1.2])
