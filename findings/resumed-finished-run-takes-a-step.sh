#!/usr/bin/env bash
# transformers: Trainer takes one more step of a run that is resumed from its last checkpoint, if that is within an epoch.
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

transformers.logging.set_verbosity_error()
print(f"versions: transformers {transformers.__version__}, accelerate {accelerate.__version__}")
STEPS, BATCH = 4, 2


def trained(folder, rows, checkpoint=None):
    """Train for four steps at a constant rate, or resume from a checkpoint, and return steps and weights."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    arguments = TrainingArguments(
        folder, max_steps=STEPS, save_steps=STEPS, per_device_train_batch_size=BATCH, lr_scheduler_type="constant",
        learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )
    data = [{"input_ids": torch.arange(4), "labels": torch.arange(4)} for _ in range(rows)]
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state.global_step, torch.cat([each.detach().flatten() for each in model.parameters()])


print("guess: a run of four steps that is resumed from checkpoint-4 stays at four steps, with its weights")
seen = {}
for name, rows in {"at the end of an epoch": STEPS * BATCH, "within an epoch": 2 * STEPS * BATCH}.items():
    folder = f"run-{rows}"
    first, before = trained(folder, rows)
    again, after = trained(folder, rows, f"{folder}/checkpoint-{STEPS}")
    seen[name] = again, (after - before).abs().max().item()
    print(f"seen: {name}: {first} steps, resumed {again}; a weight moved by {seen[name][1]:.2g}")
assert seen["at the end of an epoch"] == (STEPS, 0.0)
assert seen["within an epoch"][0] == STEPS + 1 and seen["within an epoch"][1] > 1e-3
EOF
