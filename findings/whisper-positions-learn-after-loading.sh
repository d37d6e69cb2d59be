#!/usr/bin/env bash
# transformers: the table of sines that Whisper's class freezes is trainable in every model that was loaded.
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
from transformers import WhisperConfig, WhisperForConditionalGeneration

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")
heads = {f"{half}_attention_heads": 2 for half in ("encoder", "decoder")}
layers = {f"{half}_layers": 1 for half in ("encoder", "decoder")}
lengths = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20, "vocab_size": 60}
tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
made = WhisperForConditionalGeneration(WhisperConfig(d_model=16, **heads, **layers, **lengths, **tokens))
made.save_pretrained("model")
loaded = WhisperForConditionalGeneration.from_pretrained("model").train()

print("guess: the encoder's positions, which its class freezes, stay as they are when a loaded model is trained")
tables = [model.model.encoder.embed_positions.weight for model in (made, loaded)]
before = tables[1].detach().clone()
optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-3)
loaded(input_features=torch.randn(1, 8, 20), labels=torch.tensor([[5, 6, 7]])).loss.backward()
optimizer.step()
moved = (tables[1] - before).abs().max().item()
print(f"seen: requires_grad is {tables[0].requires_grad} as made and {tables[1].requires_grad} as loaded; ", end="")
print(f"one step of AdamW moves the loaded table by {moved:.0e}")
assert not tables[0].requires_grad and tables[1].requires_grad and moved > 5e-4
EOF
