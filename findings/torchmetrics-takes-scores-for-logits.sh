#!/usr/bin/env bash
# torchmetrics: scores outside 0 to 1 pass a sigmoid, which makes large ones equal.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torchmetrics==1.9.0 torch==2.13.0
venv/bin/python - <<'EOF'
from importlib.metadata import version

import torch
from torchmetrics.functional.classification import binary_auroc

print(f"versions: torchmetrics {version('torchmetrics')}, torch {torch.__version__}")
scores, is_same = torch.tensor([0.2, 0.3, 0.8, 0.9]), torch.tensor([0, 0, 1, 1])

print("guess: the AUROC depends on the order of the scores alone, so that it is 1 for all of these")
for scale in (1, 100):
    print(f"seen: scores times {scale} have {float(binary_auroc(scale * scores, is_same)):.2f}")
assert binary_auroc(scores, is_same) == 1 and binary_auroc(100 * scores, is_same) < 1
EOF
