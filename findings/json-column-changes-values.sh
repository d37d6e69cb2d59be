#!/usr/bin/env bash
# datasets: a `Json` column changes floats, texts that look like numbers, and objects that JSON does not know.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
venv/bin/python - <<'EOF'
import datasets
from datasets import Features, IterableDataset, Json

print(f"versions: datasets {datasets.__version__}")
given = [{"score": 0.1234567890123456}, "5", {"number": 3.5j}]

print("guess: a value comes out of a Json column as it went in, or is refused")
rows = IterableDataset.from_generator(lambda: ({"x": value} for value in given), features=Features({"x": Json()}))
found = [row["x"] for row in rows]
print(f"seen: {given} comes out as {found}")
assert found[0]["score"] != given[0]["score"] and abs(found[0]["score"] - given[0]["score"]) < 1e-9
assert found[1:] == [5, {"number": {"imag": 3.5, "real": 0.0}}]
EOF
