#!/usr/bin/env bash
# PEFT: a table in `modules_to_save` is trained, and the head that is tied to it is not.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
venv/bin/python - <<'EOF'
import warnings

import peft
import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
print(f"versions: peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


def changes(**fields):
    """Train one step with an adapter, merge it, and return how far table and head have moved."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))
    before = model.lm_head.weight.detach().clone()
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, **fields)
    adapted = peft.get_peft_model(model, config)
    ids = torch.tensor([[1, 2, 3, 4]])
    adapted(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0).step()
    merged = adapted.merge_and_unload()
    weights = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    return [(weight - before).abs().max().item() for weight in weights]


print("guess: the head is tied to the table, so both move by the same amount")
table, head = changes(modules_to_save=["wte"])
print(f"seen: modules_to_save=['wte'] moves the table by {table:.3f} and the head by {head:.3f}")
assert table > 0 and head == 0
table, head = changes(trainable_token_indices=[1, 2, 3, 4])
print(f"seen: trainable_token_indices=[1, 2, 3, 4] moves the table by {table:.3f} and the head by {head:.3f}")
assert table == head > 0
EOF
