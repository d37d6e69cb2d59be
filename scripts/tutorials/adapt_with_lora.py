# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Adapt with LoRA
#
#     python scripts/tutorials/adapt_with_lora.py           # a minute on two CPU cores
#
# Low-rank adapters train a few percent of the weights, so that the state of the optimizer fits on a small GPU and the
# result is a small file. `add_lora` chooses the modules; PEFT does the rest.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import os
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

import modeling_mm  # noqa: F401  (registers the model with the Auto classes)
from modeling_mm.data import ChatDataset, load_chats
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import ChatCollator, add_lora

STEPS = int(os.environ.get("TUTORIAL_STEPS", "60"))
BASE = "model_cards/mm-whisper-tiny"
output = Path(os.environ.get("TUTORIAL_OUTPUT", "outputs/tutorials")) / "adapter"
set_seed(0)

# %% [markdown]
# ## Wrap and train
# Adapters sit on the projections of the decoder and of the cross-attention; the connectors are trained in full.

# %%
processor = AutoProcessor.from_pretrained(BASE)
model = add_lora(AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32), {"r": 8, "alpha": 16})
model.print_trainable_parameters()
chats = ChatDataset([row for row in load_chats("processing/corpora/sample") if row.task == "image/name"])
arguments = TrainingArguments(
    "outputs/tutorials/checkpoints",
    max_steps=STEPS,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    report_to=[],
    save_strategy="no",
)
Trainer(model, arguments, train_dataset=chats, data_collator=ChatCollator(processor)).train()
model.save_pretrained(str(output))
size, whole = (sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (output, Path(BASE)))
print(f"The adapter takes {size / 1e6:.1f} MB, the model {whole / 1e6:.1f} MB.")

# %% [markdown]
# ## Load the adapter on a fresh base, and merge it
# After merging it is an ordinary joint model with the same logits.

# %%
prompts = [chats[i].prompt for i in range(8)]
answers = generate_answers(model, processor, prompts)
fresh = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)
merged = PeftModel.from_pretrained(fresh, output).merge_and_unload()
assert generate_answers(merged, processor, prompts) == answers
for i, answer in enumerate(answers):
    print(f"{chats[i].id:28} truth: {chats[i].answer:24} | answer: {answer}")
