"""Texts that the tokenizer and the decoder learn, and the decoder's shape."""

import argparse
import json
from pathlib import Path

import torch

from scripts.workshop.component_folder import all_texts, answer_texts, small_decoder


def write_chats(folder: Path, name: str, *pairs: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for question, answer in pairs:
        asked = [{"type": "image", "path": "a.png"}, {"type": "text", "text": question}]
        said = [{"type": "text", "text": answer}]
        lines.append(
            json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
        )
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_texts_are_those_of_the_training_examples(tmp_path):
    write_chats(tmp_path / "train", "caption", ("What is it?", "a cat"), ("¿Qué es?", "un gato"))
    write_chats(tmp_path / "train", "verify_name", ("Is it a cat?", "yes"))
    write_chats(tmp_path / "test_hand", "caption", ("What is it?", "a dog"))
    assert list(answer_texts(tmp_path / "train")) == ["a cat", "un gato", "yes"]
    assert list(all_texts(tmp_path / "train")) == [
        *("What is it?", "a cat", "¿Qué es?", "un gato"),
        *("Is it a cat?", "yes"),
    ]


def test_the_decoder_has_the_requested_shape_and_is_reproducible():
    asked = argparse.Namespace(
        vocabulary=50, positions=16, width=8, layers=3, heads=2, dropout=0.25, initializer_range=0.05
    )
    first, second = small_decoder(asked), small_decoder(asked)
    shape = first.config
    assert (shape.vocab_size, shape.n_positions, shape.n_embd, shape.n_layer, shape.n_head) == (50, 16, 8, 3, 2)
    assert shape.resid_pdrop == shape.embd_pdrop == 0.25 and shape.bos_token_id is None
    assert torch.equal(first.transformer.wte.weight, second.transformer.wte.weight)
    assert 0.04 < first.transformer.wte.weight.std().item() < 0.06
