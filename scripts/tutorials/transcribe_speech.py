# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Transcribe speech
#
#     python scripts/tutorials/transcribe_speech.py         # a minute on two CPU cores
#
# Teach the released model, which hears as Whisper tiny.en does, how others write down short recordings, measure its
# word error rate, then use it through transformers' `automatic-speech-recognition` pipeline. The recordings are the
# telephone prompts in this repository.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import json
import os
from pathlib import Path

import jiwer
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, Trainer, TrainingArguments, pipeline, set_seed

import modeling_mm  # noqa: F401  (registers the model with the Auto classes)
from modeling_mm.data import ChatDataset
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import ChatCollator

STEPS = int(os.environ.get("TUTORIAL_STEPS", "60"))
SAMPLE = Path("processing/corpora/sample")
set_seed(0)

# %% [markdown]
# ## Recordings and transcripts as chats

# %%
lines = (SAMPLE / "audio.jsonl").read_text(encoding="utf-8").splitlines()
examples = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "path": item["file"]}]},
            {"role": "assistant", "content": item["transcript"]},
        ]
    }
    for item in map(json.loads, lines)
]

# %% [markdown]
# ## Train
# What the released model took over from Whisper is frozen, so that what it learns about images cannot spoil it. Here
# the decoder is to learn, so its blocks are opened; the encoder stays frozen.

# %%
processor = AutoProcessor.from_pretrained("model_cards/mm-whisper-tiny")
model = AutoModelForSpeechSeq2Seq.from_pretrained("model_cards/mm-whisper-tiny", dtype="float32")
model.model.language_model.h.requires_grad_(True)
dataset = ChatDataset(examples, SAMPLE)
references = [row.answer for row in dataset]
prompts = [row.prompt for row in dataset]


def word_error_rate() -> float:
    answers = generate_answers(model, processor, prompts)
    return jiwer.wer([text.lower() for text in references], [text.lower() for text in answers])


before = word_error_rate()
arguments = TrainingArguments(
    "outputs/tutorials/checkpoints",
    max_steps=STEPS,
    per_device_train_batch_size=8,
    learning_rate=5e-5,
    report_to=[],
    save_strategy="no",
)
Trainer(model, arguments, train_dataset=dataset, data_collator=ChatCollator(processor)).train()
print(
    f"Word error rate on {len(references)} recordings that it has now learned: {before:.2f} before, "
    f"{word_error_rate():.2f} after. Measure on recordings that it has not heard before you rely on a model."
)

# %% [markdown]
# ## Use the pipeline
# Audio longer than one window (30 s here) is transcribed window by window, as Whisper does.

# %%
output = Path(os.environ.get("TUTORIAL_OUTPUT", "outputs/tutorials")) / "speech"
model.save_pretrained(output)
processor.save_pretrained(output)
transcribe = pipeline("automatic-speech-recognition", str(output))
for name in ("one.flac", "november.flac"):
    print(name, transcribe(str(SAMPLE / "audio" / name)))
