#!/usr/bin/env bash
# transformers and accelerate: making TrainingArguments for a second run breaks the trainer of the first.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import accelerate
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (transformers, accelerate, torch))
print(f"versions: {versions}")
tokens = {"bos_token_id": 0, "eos_token_id": 0}
model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, **tokens))
rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4


def arguments(folder: str) -> TrainingArguments:
    return TrainingArguments(folder, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no")


print("guess: settings of a second run are an object; what exists already trains as before")
trainer = Trainer(model, arguments("first"), train_dataset=rows)
second = arguments("second")
try:
    trainer.train()
except AttributeError as error:
    seen = str(error)
else:
    seen = "trained"
print(f"seen: the first trainer, after the second TrainingArguments: {seen[:150]}")
assert seen != "trained"
Trainer(model, second, train_dataset=rows).train()
print("seen: a trainer made behind them trains")
EOF
