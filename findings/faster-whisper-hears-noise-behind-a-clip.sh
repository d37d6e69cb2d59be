#!/usr/bin/env bash
# faster-whisper: what stands behind a clip of less than 30 s is not the silence that Whisper was trained on.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 transformers==5.23.0 faster-whisper==1.2.1
venv/bin/python - <<'EOF'
from importlib.metadata import version

import numpy
from faster_whisper.audio import pad_or_trim
from faster_whisper.feature_extractor import FeatureExtractor
from transformers import WhisperFeatureExtractor

print(f"versions: faster-whisper {version('faster-whisper')}, transformers {version('transformers')}")

RATE, SECONDS, FRAMES_A_SECOND, WINDOW = 16_000, 3, 100, 3_000
BINS_A_CLEAN_FRAME = 4  # the last frames of a clip also hear what is behind it
times = numpy.arange(SECONDS * RATE) / RATE
samples = (0.3 * numpy.sin(2 * numpy.pi * 440 * times) * numpy.sin(2 * numpy.pi * times)).astype(numpy.float32)

stock = WhisperFeatureExtractor()(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
# As `WhisperModel.transcribe` makes the input of the encoder: features of the clip, less the last, then padded.
theirs = pad_or_trim(FeatureExtractor()(samples)[..., :-1])
assert stock.shape == theirs.shape == (80, WINDOW)

print("guess: both give the encoder the same features of a 3 s clip, in the clip and behind it")
end = SECONDS * FRAMES_A_SECOND
inside = numpy.abs(stock - theirs)[:, : end - BINS_A_CLEAN_FRAME].max()
behind = slice(end + BINS_A_CLEAN_FRAME, WINDOW)
silence, padding = stock[:, behind], theirs[:, behind]
decades = 4 * float(padding.mean() - silence.mean())  # a unit of a feature is four powers of ten
print(f"seen: inside the clip they differ by {inside:.0e} at most")
print(
    f"seen: behind it transformers gives {silence.min():.2f} to {silence.max():.2f}, faster-whisper {padding.min():.2f} to "
    f"{padding.max():.2f}, in {1 - end / WINDOW:.0%} of the frames: {decades:.1f} powers of ten louder"
)
assert inside < 1e-3
assert padding.min() == padding.max() == 0.0 and silence.max() < -0.3 and silence.min() == silence.max()
EOF
