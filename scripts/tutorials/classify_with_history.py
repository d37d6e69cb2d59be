# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Classify an image with its history
#
#     python scripts/tutorials/classify_with_history.py     # a minute on two CPU cores
#
# `MMForSequenceClassification` reads an image (a radiograph, a product photo) together with a text (the patient's
# history, the description) and gives one label. The stock `Trainer` trains it. Here: icons with a short, partly
# telling note; the label is the category.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor, Trainer, TrainingArguments, set_seed

import modeling_mm  # noqa: F401  (registers the model with the Auto classes)

STEPS = int(os.environ.get("TUTORIAL_STEPS", "150"))
SAMPLE = Path("processing/corpora/sample")
NOTES = {"animal": "It was seen outdoors.", "plant": "It was seen outdoors.", "food": "It was found in a kitchen."}
set_seed(0)

# %% [markdown]
# ## Train, in under 30 lines

# %%
items = [json.loads(line) for line in (SAMPLE / "images.jsonl").read_text(encoding="utf-8").splitlines()]
labels = sorted({item["category"] for item in items})
processor = AutoProcessor.from_pretrained("model_cards/mm-whisper-tiny")
model = AutoModelForSequenceClassification.from_pretrained(
    "model_cards/mm-whisper-tiny",
    dtype=torch.float32,
    id2label=dict(enumerate(labels)),
)
model.model.language_model.requires_grad_(True)  # it is frozen in the released model, and has read no histories


def encode(item: dict, use_image: bool = True) -> dict[str, torch.Tensor]:
    history = NOTES.get(item["category"], "It is kept indoors.")
    image = {"images": str(SAMPLE / item["file"])} if use_image else {}
    inputs = processor(text=("<|image|>" if use_image else "") + history, return_tensors="pt", **image)
    label = torch.tensor(labels.index(item["category"]))
    return {"labels": label, **{name: tensor[0] for name, tensor in inputs.items()}}


training, held_out = [x for i, x in enumerate(items) if i % 4], items[::4]
# A third of the rows comes without the image, so that the model also answers when it is missing.
rows = [encode(item) for item in training] + [encode(item, use_image=False) for item in training[::2]]
arguments = TrainingArguments(
    "outputs/tutorials/checkpoints",
    max_steps=STEPS,
    per_device_train_batch_size=16,
    learning_rate=3e-4,
    report_to=[],
    save_strategy="no",
)
trainer = Trainer(model, arguments, train_dataset=rows, data_collator=processor.pad)
trainer.train()

# %% [markdown]
# ## Does the image help?
# The baselines: the most frequent label, and the same model with the image taken away.


# %%
def accuracy(use_image: bool) -> float:
    prediction = trainer.predict([encode(item, use_image) for item in held_out])
    return float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())


categories = [item["category"] for item in held_out]
majority = max(map(categories.count, labels)) / len(categories)
print(
    f"{len(held_out)} images that it was not trained on: accuracy {accuracy(True):.2f} with image and history, "
    f"{accuracy(False):.2f} with the history alone, {majority:.2f} for the most frequent label."
)
model.save_pretrained(Path(os.environ.get("TUTORIAL_OUTPUT", "outputs/tutorials")) / "classifier")
