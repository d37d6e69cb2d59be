#!/usr/bin/env bash
# torch: on a CPU without AVX-512, autocast to bfloat16 or float16 makes matrix products tens of times slower, GPT-2's most.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import sys
import time
import warnings
from importlib.metadata import version

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

print(f"versions: torch {version('torch')}, transformers {version('transformers')}, {torch.backends.cpu.get_cpu_capability()}")
print("guess: without instructions for it, half precision costs a conversion more than float32: 2 to 3 times the time, or a warning")
if torch.backends.cpu.get_cpu_capability() != "AVX2":
    print("seen: nothing, as this is not a CPU with AVX2 alone")
    sys.exit(0)
torch.set_num_threads(1)
ROWS, INPUTS, OUTPUTS = 544, 384, 768
states = torch.randn(ROWS, INPUTS)
layers = {"Linear": nn.Linear(INPUTS, OUTPUTS), "GPT-2's Conv1D": Conv1D(OUTPUTS, INPUTS)}


def seconds(layer, dtype):
    """The least of three runs, after one that is not timed."""
    found = []
    for _ in range(4):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            start = time.perf_counter()
            layer(states)
            found.append(time.perf_counter() - start)
    return min(found[1:])


slower = {}
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for name, layer in layers.items():
        single = seconds(layer, None)
        for dtype in (torch.bfloat16, torch.float16):
            spent = seconds(layer, dtype)
            slower[name, dtype] = spent / single
            print(f"seen: {name}, {ROWS} rows times {INPUTS}x{OUTPUTS}: float32 {single * 1e3:.1f} ms, {dtype} {spent * 1e3:.1f} ms, {spent / single:.0f} times")
print(f"seen: {len(warned)} warnings")
assert not warned
assert min(slower.values()) > 4
assert all(factor > 20 for (name, _), factor in slower.items() if name != "Linear")
EOF
