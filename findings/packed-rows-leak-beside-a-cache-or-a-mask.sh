#!/usr/bin/env bash
# transformers: position_ids that start again keep packed samples apart only without a cache and without any attention mask.
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
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
print(f"versions: torch {torch.__version__}, transformers {transformers.__version__}")
torch.manual_seed(0)
llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
dropouts = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
models = (
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, **dropouts)),
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **llama)),
)
first, second = torch.randint(0, 50, (1, 5)), torch.randint(0, 50, (1, 6))
packed = torch.cat([first, second], dim=1)
positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]])
ways = {
    "as it is": {},
    "use_cache=False": {"use_cache": False},
    "use_cache=False, a mask of ones": {"use_cache": False, "attention_mask": torch.ones_like(packed)},
}
print("guess: the second sample's logits are those that it has alone, or the call is refused")
for model in models:
    for mode in (model.eval, model.train):
        mode()
        with torch.no_grad():
            alone = model(second).logits
            moved = {
                way: (model(packed, position_ids=positions, **options).logits[:, 5:] - alone).abs().max().item()
                for way, options in ways.items()
            }
        print(f"seen: {type(model).__name__}, {mode.__name__}: " + ", ".join(f"{k}: {v:.1g}" for k, v in moved.items()))
        assert moved["use_cache=False"] < 1e-5, "apart"
        assert min(moved["as it is"], moved["use_cache=False, a mask of ones"]) > 1e-2, "the second reads the first"
EOF
