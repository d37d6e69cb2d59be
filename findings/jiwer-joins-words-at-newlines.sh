#!/usr/bin/env bash
# jiwer: only the space of ASCII separates words.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet jiwer==4.0.0
venv/bin/python - <<'EOF'
from importlib.metadata import version

import jiwer

print(f"versions: jiwer {version('jiwer')}")
truth = "one two three"

print("guess: any white space separates words, so that each of these answers has an error rate of 0")
for answer in ("one\ntwo three", "one\u00a0two three", "one\u3000two three"):
    rate = jiwer.wer(truth, answer)
    print(f"seen: {answer!r} has {rate:.2f}")
    assert round(rate, 2) == 0.67
EOF
