#!/usr/bin/env bash
# accelerate: `launch --cpu --num_processes 2` starts one process and does not say so.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import subprocess
from importlib.metadata import version
from pathlib import Path

print(f"versions: accelerate {version('accelerate')}, torch {version('torch')}")
Path("count.py").write_text(
    "from accelerate import PartialState\n"
    "state = PartialState(cpu=True)\n"
    "print(f'process {state.process_index} of {state.num_processes}')\n"
)
OPTIONS = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


def run(command):
    """Run a command; return what it prints, in sorted lines, and its warnings."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines()), done.stderr


print("guess: accelerate launch --cpu --num_processes 2 starts two processes, as torchrun --nproc_per_node 2 does")
launched, said = run(f"venv/bin/accelerate launch {OPTIONS} count.py")
two, _ = run("venv/bin/torchrun --nproc_per_node 2 count.py")
print(f"seen: accelerate launch: {launched}, and {len(said.splitlines())} lines of warnings; torchrun: {two}")
assert launched == ["process 0 of 1"] and not said
assert two == ["process 0 of 2", "process 1 of 2"]
EOF
