#!/usr/bin/env bash
# torch: on AMD's CPUs with AVX-512 a float32 Linear takes twice the time of another kernel that the same wheel carries.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 torch==2.13.0
venv/bin/python - <<'EOF'
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

print(f"versions: torch {version('torch')}, {torch.backends.cpu.get_cpu_capability()}")
print("guess: torch multiplies float32 matrices on a CPU by the quickest kernel that it has, for Linear as for GPT-2's Conv1D")
facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
if "AuthenticAMD" not in facts or torch.backends.cpu.get_cpu_capability() != "AVX512":
    print("seen: nothing, as this is no CPU of AMD with AVX-512")
    sys.exit(0)
torch.set_num_threads(len(os.sched_getaffinity(0)))
INPUTS, OUTPUTS = 768, 3072  # of GPT-2's feed-forward layers
COUNT, ROUNDS = 24, 9  # weights, so that no cache holds them all
weights = [torch.randn(OUTPUTS, INPUTS) for _ in range(COUNT)]
turned = [weight.t().contiguous() for weight in weights]  # as Conv1D has them
bias = torch.randn(OUTPUTS)
onednn = torch.ops.mkldnn._linear_pointwise.default
kernels = {
    "linear": (weights, lambda states, weight: torch.nn.functional.linear(states, weight, bias)),
    "addmm, as Conv1D": (turned, lambda states, weight: torch.addmm(bias, states, weight)),
    "oneDNN": (weights, lambda states, weight: onednn(states, weight, bias, "none", [], "")),
    "oneDNN, as Conv1D": (turned, lambda states, weight: onednn(states, weight.t(), bias, "none", [], "")),
}
slower = {}
with torch.inference_mode():
    for rows in (1, 8, 512):
        states, times = torch.randn(rows, INPUTS), {name: [] for name in kernels}
        for _ in range(ROUNDS):
            for name, (given, multiply) in kernels.items():
                start = time.perf_counter()
                for weight in given:
                    multiply(states, weight)
                times[name].append((time.perf_counter() - start) / COUNT)
        spent = {name: statistics.median(values) for name, values in times.items()}
        print(f"seen: {rows} rows times {INPUTS}x{OUTPUTS}: " + ", ".join(f"{n} {s * 1e6:.0f} us" for n, s in spent.items()))
        slower[rows] = min(spent["linear"] / spent["oneDNN"], spent["addmm, as Conv1D"] / spent["oneDNN, as Conv1D"])
        exact = states.double() @ weights[0].double().t() + bias.double()
        errors = [(kernels[n][1](states, kernels[n][0][0]).double() - exact).abs().max().item() for n in ("linear", "oneDNN")]
        print(f"seen: largest errors {errors[0]:.1e} and {errors[1]:.1e}")
        assert max(errors) < 1e-3
print("seen: times as long: " + ", ".join(f"{factor:.1f} for {rows} rows" for rows, factor in slower.items()))
assert slower[512] > 1.5 and min(slower.values()) > 1.15
EOF
