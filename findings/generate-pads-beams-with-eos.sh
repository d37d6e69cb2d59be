#!/usr/bin/env bash
# transformers: beam search replaces `pad_token_id=0` by the end token; greedy search keeps it.
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
END = 11
sizes = {"vocab_size": 12, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=END, eos_token_id=END, **sizes)).eval()
prompts = torch.arange(1, 9).view(4, 2)
options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 8, "do_sample": False}


def fillers(num_beams):
    """Return the set of tokens behind the first end token, over many random models."""
    found = set()
    for seed in range(40):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        rows = model.generate(prompts, num_beams=num_beams, pad_token_id=0, eos_token_id=END, **options)
        for row in rows.tolist():
            found |= set(row[row.index(END) + 1 :]) if END in row else set()
    return found


print("guess: with pad_token_id=0, rows that ended early are filled with 0, with and without beams")
greedy, beams = fillers(1), fillers(2)
print(f"seen: greedy rows are filled with {greedy}, rows of 2 beams with {beams}; the end token is {END}")
assert greedy == {0} and beams == {END}
EOF
