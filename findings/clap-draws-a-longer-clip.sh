#!/usr/bin/env bash
# transformers: CLAP's feature extractor declares one of several short clips to be long, by a random draw.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import numpy as np
import torch
import transformers
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
rate = 48_000
clips = [np.random.default_rng(seed).uniform(-0.5, 0.5, rate).astype(np.float32) for seed in range(2)]  # 1 s each
sizes = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16}
torch.manual_seed(0)
model = ClapAudioModel(ClapAudioConfig(enable_fusion=True, **sizes)).eval()
extractor = ClapFeatureExtractor()  # the defaults, as laion/clap-htsat-fused has them


def call(seed):
    """Return which clips are called long, and the states of the first one."""
    np.random.seed(seed)
    inputs = extractor(clips, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        return inputs["is_longer"].flatten().tolist(), model(**inputs).last_hidden_state[0]


print("guess: clips of one second are never longer than the window of ten, and have the same states at every call")
calls = [call(seed) for seed in range(8)]
long = [marked for marked, _ in calls]
moved = max((states - calls[0][1]).abs().max().item() for _, states in calls)
print(f"seen: is_longer of eight calls: {long}; the states of the first clip move by {moved:.2f}")
assert all(sum(marked) == 1 for marked in long) and len({tuple(marked) for marked in long}) == 2
assert moved > 1e-2
EOF
