#!/usr/bin/env bash
# transformers: an override of the config given to from_pretrained also lands in the generation config, and is saved there.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
venv/bin/python - <<'EOF'
import json
from pathlib import Path

import transformers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print(f"versions: transformers {transformers.__version__}")
sizes = {"vocab_size": 10, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def saved_keys(folder):
    """What the generation config holds after loading with a dropout for fine-tuning, and saving again."""
    model.save_pretrained(folder)
    loaded = GPT2LMHeadModel.from_pretrained(folder, attn_pdrop=0.3)
    assert loaded.config.attn_pdrop == 0.3
    loaded.save_pretrained(f"{folder}-again")
    return json.loads(Path(f"{folder}-again", "generation_config.json").read_text())


print("guess: attn_pdrop=0.3 changes the model's config, and generation_config.json is as before")
derived = saved_keys("derived")
model.generation_config = GenerationConfig(max_length=5, eos_token_id=2)
of_its_own = saved_keys("written")
print(f"seen: generation settings derived from the model's config: attn_pdrop is {derived.get('attn_pdrop')}")
print(f"seen: generation settings that somebody wrote: attn_pdrop is {of_its_own.get('attn_pdrop')}")
assert "attn_pdrop" not in derived
assert of_its_own["attn_pdrop"] == 0.3
EOF
