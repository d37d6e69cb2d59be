"""Tiny models with their processors, and inputs: what the tests of pipelines share."""

import numpy as np
from transformers import ViTImageProcessorPil, WhisperFeatureExtractor

from modeling_mm import MMForConditionalGeneration, MMProcessor
from tests.fakes.processor_parts import RATE, make_bpe, picture
from tests.fakes.tiny import MELS, gpt2, joined, open_gates

NEW_TOKENS = 5
GREEDY = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
COLORS = ("red", "green", "blue")


def noise(seconds: float = 0.7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def build(cls=MMForConditionalGeneration, **fields):
    """Model and processor of the same ids; windows of one second, 40 frames."""
    words = make_bpe()
    size = len(words)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1, n_fft=400, hop_length=400)
    processor = MMProcessor(ViTImageProcessorPil(size={"height": 16, "width": 16}), extractor, words)
    return open_gates(joined(gpt2(vocab_size=size, n_positions=256), cls=cls, **fields)), processor


def folder_of(task: str) -> str:
    """The saved model that serves a task, see the fixture `folders`."""
    if task.startswith("zero-shot"):
        return "retriever"
    return "classifier" if task.endswith("classification") else "model"


def chat(*parts) -> list[dict]:
    return [{"role": "user", "content": [part if isinstance(part, dict) else text(part) for part in parts]}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(color: str = "red") -> dict:
    return {"type": "image", "image": picture(color)}


def audio(seconds: float = 0.7, seed: int = 0) -> dict:
    return {"type": "audio", "audio": (noise(seconds, seed), RATE)}


def inputs_of(pipe, messages: list[dict]) -> dict:
    return pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def answer_of(pipe, messages: list[dict], **options) -> str:
    """What the model says when it is called directly."""
    inputs = inputs_of(pipe, messages)
    tokens = pipe.model.generate(**inputs, **{**GREEDY, **options})[0, inputs["input_ids"].shape[1] :]
    return pipe.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


# One of each kind, and how it is classified
CHATS = {
    "text": chat("What do you see?"),
    "image": chat(image(), "What do you see?"),
    "images": chat(image("red"), "and", image("blue"), "?"),
    "audio": chat(audio(), "hello"),
    "long audio": chat("hear", audio(2.3), "hello"),
    "both": [{"role": "system", "content": "You are brief."}, *chat(image(), audio(), "a bird?")],
}
CLASSIFIED = {
    "text": "a cat, a dog and a bird",
    "text in a dict": {"text": "hello there"},
    "picture": {"text": "a cat?", "images": [picture()]},
    "two pictures": {"text": "<|image|> a cat <|image|>", "images": [picture("red"), picture("blue")]},
    "sound": {"text": "hello", "audio": (noise(), RATE)},
    "both": {"text": "hello", "image": picture(), "audio": [(noise(1.4), RATE)]},
    "no text": {"images": picture()},
}
