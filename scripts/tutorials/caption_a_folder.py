# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Fine-tune a captioner on a folder of images and a CSV
#
#     python scripts/tutorials/caption_a_folder.py          # a minute on two CPU cores
#
# Input: a folder with `captions.csv` (columns `file` and `caption`) and the images that it names. The example makes
# one from the images in this repository, with their English names.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import csv
import json
import os
import tempfile
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

import modeling_mm  # noqa: F401  (registers the model with the Auto classes)
from modeling_mm.data import ChatDataset
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import ChatCollator

STEPS = int(os.environ.get("TUTORIAL_STEPS", "40"))
SAMPLE = Path("processing/corpora/sample")
set_seed(0)

# %% [markdown]
# ## The folder
# Replace this cell by `folder = Path("my/folder")`.

# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.DictWriter(file, ["file", "caption"])
    table.writeheader()
    for line in (SAMPLE / "images.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        image = str((SAMPLE / item["file"]).resolve())
        table.writerow({"file": image, "caption": item["caption"]})

# %% [markdown]
# ## From a table to chats
# A training example is a conversation: the user shows an image and asks, the assistant answers. Media are paths,
# relative to `folder`; they are read when a batch needs them.

# %%
with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
examples = [
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "path": row["file"]}, {"type": "text", "text": "What is this?"}],
            },
            {"role": "assistant", "content": row["caption"]},
        ]
    }
    for row in rows
]
held_out, training = examples[::8], [example for i, example in enumerate(examples) if i % 8]

# %% [markdown]
# ## Train
# The released model is Whisper, which has learned to see: what is Whisper's is frozen, and so is the vision encoder.
# What sees learns on. Any joint model serves as a start; the class method `from_text_vision_audio_pretrained` of
# `MMForConditionalGeneration` makes one from three ids.

# %%
processor = AutoProcessor.from_pretrained("model_cards/mm-whisper-tiny")
model = AutoModelForImageTextToText.from_pretrained("model_cards/mm-whisper-tiny", dtype="float32")
prompts = [row.prompt for row in ChatDataset(held_out, folder)]
before = generate_answers(model, processor, prompts)
arguments = TrainingArguments(
    scratch.name + "/checkpoints",
    max_steps=STEPS,
    per_device_train_batch_size=16,
    learning_rate=2e-4,
    lr_scheduler_type="cosine",
    report_to=[],
    save_strategy="no",
)
Trainer(model, arguments, train_dataset=ChatDataset(training, folder), data_collator=ChatCollator(processor)).train()

# %% [markdown]
# ## Images that it was not trained on

# %%
after = generate_answers(model, processor, prompts)
for example, first, second in list(zip(held_out, before, after, strict=True))[:6]:
    print(f"{example['messages'][1]['content']:40} | before: {first:24} | after: {second}")
truths = [example["messages"][1]["content"] for example in held_out]
old, new = (sum(map(str.__eq__, answers, truths)) for answers in (before, after))
print(f"{new} of {len(after)} captions of held-out images are exact, {old} before.")

# %% [markdown]
# ## Save
# The folder loads with `AutoModelForImageTextToText.from_pretrained`, in `pipeline("image-text-to-text", folder)`, and
# goes to the Hub with `modeling-mm push`.

# %%
output = Path(os.environ.get("TUTORIAL_OUTPUT", "outputs/tutorials")) / "captioner"
model.save_pretrained(output)
processor.save_pretrained(output)
print(f"Saved to {output}.")
