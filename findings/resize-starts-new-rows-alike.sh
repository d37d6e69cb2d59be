#!/usr/bin/env bash
# transformers: `resize_token_embeddings` starts all new tokens at nearly one vector.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import torch
import transformers

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")


def cosines(rows):
    """Return the cosines of all pairs of two different rows."""
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)]


torch.manual_seed(0)
sizes = {"vocab_size": 100, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))

print("guess: ten new rows are drawn as the old ones were, and differ as much")
table = model.resize_token_embeddings(110).weight.detach()
old, new = cosines(table[:100]), cosines(table[100:])
print(f"seen: two old rows have a cosine of at most {old.max():.3f}, two new rows of at least {new.min():.5f}")
assert old.max() < 0.9 and new.min() > 0.999
EOF
