"""Tiny chats with a processor and a model for them: what the tests of training share.

trainer = mm_trainer(chat_model(), tmp_path, train_dataset=ChatDataset(CHATS))
"""

from functools import cache

import torch
from transformers import set_seed

from modeling_mm.data import ChatDataset
from modeling_mm.training import MMTrainer, MMTrainingArguments
from tests.fakes.processor_parts import make, picture, sound
from tests.fakes.tiny import gpt2, joined, open_gates, vit, whisper

COLORS = ("red", "green", "blue", "white")
# One step of plain gradient descent over all of `CHATS`, so that every figure can be computed by hand.
DEFAULTS = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 3,
    "learning_rate": 0.05,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "generation_max_new_tokens": 6,
    "seed": 0,
}


def chat(question, answer: str, task: str | None = None, color: str | None = None, hears: bool = False) -> dict:
    content = [{"type": "image", "image": picture(color)}] if color else []
    content += [{"type": "audio", "audio": sound()[0], "sampling_rate": sound()[1]}] if hears else []
    user = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    return {"messages": [user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}], "task": task}


# Answers of 1 to 17 tokens: a mean over micro-batches is not the mean over the words.
CHATS = [
    chat("What do you see?", "red", "color", color="red"),
    chat("What do you see?", "A green square.", "color", color="green"),
    chat("hello", "hello there, you are brief", "talk"),
    chat("What do you hear?", "a cat, a dog and a bird", "sound", hears=True),
    chat("Look and listen.", "a bird", "sound", color="blue", hears=True),
    chat("hello there", "a", "talk"),
    chat("You see", "a dog", None, color="white"),
    chat("You are", "brief.", None),
]


@cache
def processor():
    return make()


def chat_model(**fields):
    """A fresh tiny model for `processor()`, whose gates are open, so that what it sees and hears matters."""
    text = gpt2(vocab_size=len(processor().tokenizer), n_positions=128)
    parts = {"vision": vit(image_size=8, patch_size=4), "audio": whisper(max_source_positions=50)}
    return open_gates(joined(text, **parts, tokenizer=processor(), **fields))


def arguments(folder, **fields) -> MMTrainingArguments:
    return MMTrainingArguments(str(folder), **{**DEFAULTS, **fields})


def mm_trainer(
    model, folder, train=CHATS, evaluate=CHATS, callbacks=None, trainer_class=MMTrainer, more=None, **fields
):
    """An MMTrainer over chats; `fields` are training arguments, `more` arguments of the trainer."""
    set_seed(0)
    more = {"processing_class": processor(), **(more or {})}
    return trainer_class(
        model,
        arguments(folder, **fields),
        train_dataset=ChatDataset(train) if isinstance(train, list) else train,
        eval_dataset=ChatDataset(evaluate) if isinstance(evaluate, list) else evaluate,
        callbacks=callbacks,
        **more,
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that are other than before."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
