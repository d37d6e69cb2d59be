"""Pretraining of a small decoder on text."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.workshop.from_scratch import BLOCK, pretrain_decoder
from tests.fakes.processor_parts import make

WORDS = ("a cat", "a dog", "a bird and a cat", "red")


def decoder(vocab_size: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=BLOCK, n_embd=16, n_layer=1, n_head=2))


def learn(model, tokenizer, folder, **arguments):
    pretrain_decoder(
        model,
        tokenizer,
        WORDS * 200,
        str(folder),
        max_steps=60,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )


def test_a_decoder_learns_to_answer_and_to_end(tmp_path):
    tokenizer = make().tokenizer
    model = decoder(len(tokenizer) - 5)  # the role tokens were added to the tokenizer after it was made
    learn(model, tokenizer, tmp_path)
    assert model.config.vocab_size == len(tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    row = torch.tensor([[start, *tokenizer("a cat", add_special_tokens=False)["input_ids"], end, start]])
    with torch.no_grad():
        chances = model(row).logits.softmax(-1)[0]  # (L, V)
    assert chances[-3, end] > 0.1  # after "a cat" comes the end, or the end of a word that goes on
    assert chances[-2, start] > 0.2  # and then the next answer


def test_the_same_texts_give_the_same_weights(tmp_path):
    tokenizer = make().tokenizer
    first, second = decoder(len(tokenizer)), decoder(len(tokenizer))
    learn(first, tokenizer, tmp_path / "one")
    learn(second, tokenizer, tmp_path / "two")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
