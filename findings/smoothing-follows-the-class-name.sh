#!/usr/bin/env bash
# transformers: Trainer smooths the labels of a causal model by the next tokens only if the class's name is in a table.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print(f"versions: transformers {transformers.__version__}, torch {torch.__version__}")


class Config(GPT2Config):
    model_type = "renamed"


class RenamedLMHeadModel(GPT2LMHeadModel):
    config_class = Config


transformers.AutoConfig.register("renamed", Config)
AutoModelForCausalLM.register(Config, RenamedLMHeadModel)
sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
plain = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
with torch.no_grad():  # the tied head then says the current token again, so that the two losses lie far apart
    plain.transformer.wte.weight.mul_(100)
renamed = RenamedLMHeadModel(Config(**sizes)).eval()
renamed.load_state_dict(plain.state_dict())
ids = torch.arange(10)[None]


def loss(model):
    arguments = TrainingArguments("out", label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments)
    return trainer.compute_loss(model, {"input_ids": ids, "labels": ids.clone()}).item()


print("guess: a registered subclass with the same weights has the same smoothed loss")
found = {type(model).__name__: loss(model) for model in (plain, renamed)}
print("seen: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
assert abs(found["GPT2LMHeadModel"] - found["RenamedLMHeadModel"]) > 0.5
EOF
