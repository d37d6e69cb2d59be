#!/usr/bin/env bash
# transformers: Whisper's basic normalizer cuts words of Hindi to pieces.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet transformers==5.23.0 jiwer==4.0.0
venv/bin/python - <<'EOF'
from importlib.metadata import version

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

print(f"versions: transformers {version('transformers')}, jiwer {version('jiwer')}")
normalize = BasicTextNormalizer()
truth, answer = "कल मेला है", "कल माला है"  # "tomorrow is a fair" and "tomorrow is a garland"

print("guess: case and punctuation go, and one wrong word of three is an error rate of 1/3")
words, pieces = truth.split(), normalize(truth).split()
before, after = jiwer.wer(truth, answer), jiwer.wer(normalize(truth), normalize(answer))
print(f"seen: {words} becomes {pieces}; the error rate falls from {before:.3f} to {after:.3f}")
assert len(words) == 3 and not set(words[1:]) & set(pieces) and before > 0.3 and after == 0
EOF
