#!/usr/bin/env bash
# transformers: `generate` repeats the caller's own `encoder_outputs` for its beams.
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
torch.manual_seed(0)
small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
vision = transformers.ViTConfig(image_size=8, patch_size=4, **small)
sizes = {"vocab_size": 12, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
text = transformers.GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=2, **sizes)
config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
model = transformers.VisionEncoderDecoderModel(config).eval()
encoded = model.encoder(pixel_values=torch.rand(1, 3, 8, 8))
before = tuple(encoded.last_hidden_state.shape)

print("guess: one image that is encoded once can be passed to generate again and again")
prompt = torch.tensor([[1]])
model.generate(encoder_outputs=encoded, decoder_input_ids=prompt, decoder_start_token_id=1, num_beams=3, max_length=6)
after = tuple(encoded.last_hidden_state.shape)
print(f"seen: generate with 3 beams turns the caller's states {before} into {after}")
assert before == (1, 5, 16) and after == (3, 5, 16)
EOF
