#!/usr/bin/env bash
# accelerate: `launch --cpu --num_processes 2` starts one process and does not say so.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 accelerate==1.15.0
cat > count.py <<'EOF'
from accelerate import PartialState

state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}")
EOF
launch="venv/bin/accelerate launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
$launch count.py > launched.txt 2> said.txt
venv/bin/torchrun --nproc_per_node 2 count.py > torchrun.txt 2> /dev/null
venv/bin/python - <<'EOF'
from importlib.metadata import version
from pathlib import Path

print(f"versions: accelerate {version('accelerate')}, torch {version('torch')}")
print("guess: accelerate launch --cpu --num_processes 2 starts two processes, as torchrun --nproc_per_node 2 does")
launched, said, two = (Path(name).read_text().splitlines() for name in ("launched.txt", "said.txt", "torchrun.txt"))
print(f"seen: accelerate launch: {launched}, and {len(said)} lines of warnings; torchrun: {sorted(two)}")
assert launched == ["process 0 of 1"] and not said
assert sorted(two) == ["process 0 of 2", "process 1 of 2"]
EOF
