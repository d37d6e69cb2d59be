"""The collators: exact tensors from small rows, and errors that name the row; chats through the stock `Trainer`."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from modeling_mm import chat, placeholders
from modeling_mm.batching import IGNORED
from modeling_mm.data import ChatDataset, ChatRow, chat_row, load_chats, mix, turn_text
from modeling_mm.modalities import MODALITIES
from modeling_mm.training import (
    AudioAugmentation,
    Augmentation,
    ChatCollator,
    ImageAugmentation,
    ModalityDropout,
    PretrainingCollator,
    encode_conversation,
)
from scripts.workshop.from_scratch import small_model, small_processor
from scripts.workshop.sample import SAMPLE_FOLDER
from tests.fakes.sample_rows import AUDIO, IMAGES, sample_rows


def test_only_the_assistants_words_and_its_end_are_learned() -> None:
    processor = small_processor(["Look and listen.", "a cat", "zero", "And?", "nothing else"])
    content = [image_part(0), audio_part(0)]
    row = encode_conversation(
        processor,
        [
            {"role": "user", "content": [*content, {"type": "text", "text": "Look and listen."}]},
            {"role": "assistant", "content": "a cat, zero"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "nothing else"},
        ],
    )
    learned = row["labels"][row["labels"] != IGNORED]
    assert processor.decode(learned) == "a cat, zero<|end|>nothing else<|end|>"
    assert row["pixel_values"].shape == (1, 3, 64, 64)
    assert row["input_features"].shape == (1, 40, 150)
    assert {name: tensor.shape[0] for name, tensor in row.items() if tensor.ndim == 1 and "mask" not in name} == {
        "input_ids": len(row["labels"]),
        "labels": len(row["labels"]),
    }


def test_a_conversation_without_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        encode_conversation(small_processor(["Hello"]), [{"role": "user", "content": "Hello"}])


# ---- Chats ----------------------------------------------------------------------------------------------------------

QUESTION = "What is in the picture and what is said?"


def image_part(number: int) -> dict[str, str]:
    return {"type": "image", "path": str(SAMPLE_FOLDER / IMAGES[number]["file"])}


def audio_part(number: int) -> dict[str, str]:
    return {"type": "audio", "path": str(SAMPLE_FOLDER / AUDIO[number]["file"])}


def chats(count: int = 6) -> list[dict]:
    """Samples with an image, with audio, with both and with neither, in turn."""
    samples = []
    for number in range(count):
        parts = [image_part(number)] if number % 4 in (0, 2) else []
        parts += [audio_part(number)] if number % 4 in (1, 2) else []
        turns = [
            {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": f"{IMAGES[number]['caption']} {number}"},
        ]
        samples.append({"messages": turns, "id": str(number)})
    return samples


@pytest.fixture(scope="module")
def processor():
    return small_processor([QUESTION, "a cat"])


def test_chats_become_a_batch_with_every_modality_padded(processor) -> None:
    batch = ChatCollator(processor)(chats(4))
    assert batch["image_mask"].tolist() == [[True], [False], [True], [False]]
    assert (batch["feature_attention_mask"].sum((1, 2)) > 0).tolist() == [False, True, True, False]
    assert batch["pixel_values"].shape == (4, 1, 3, 64, 64) and batch["input_features"].shape == (4, 1, 40, 150)
    for number, labels in enumerate(batch["labels"]):
        name = IMAGES[number]["caption"]
        assert processor.decode(labels[labels != IGNORED]) == f"{name} {number}<|end|>"
    rows = [encode_conversation(processor, row.messages) for row in ChatDataset(chats(4))]
    expected = processor.pad(rows, padding_side="right")
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_sample_that_is_too_long_is_refused_by_its_name(processor) -> None:
    samples = chats(3)
    lengths = [len(encode_conversation(processor, row.messages)["input_ids"]) for row in ChatDataset(samples)]
    longest = max(lengths)
    assert lengths.index(longest) == 2 and lengths[0] < longest, "the one with an image and audio"
    ChatCollator(processor, most_tokens=longest)(samples)
    message = rf"^Row 2, sample '2': {longest} text tokens, but the decoder has {longest - 1} positions\. Shorten"
    for collate in (
        ChatCollator(processor, most_tokens=longest - 1),
        PretrainingCollator(processor, chats=ChatCollator(processor, most_tokens=longest - 1)),
    ):
        with pytest.raises(ValueError, match=message):
            collate(samples)
        with pytest.raises(ValueError, match=message):
            collate.for_evaluation()(samples)


@pytest.mark.parametrize("start", ["a sample", "a chat"])
def test_a_chat_is_normalized_split_and_counted_once(processor, monkeypatch, start) -> None:
    """Parts are normalized, rows given their media, and placeholders looked for once on the way to tensors."""
    calls = Counter()

    def count(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: calls.update([name]) or function(*given))

    for name in ("find_placeholders", "split_by_row"):
        count(placeholders, name)
    for module in (chat, chat_row):
        count(module, "normalize_part")
    sample = chats(3)[2]  # an image, audio and a text
    sample["messages"][1]["content"] = [{"type": "text", "text": "a cat"}]
    if start == "a sample":
        batch = ChatCollator(processor)([ChatDataset([sample])[0]])
    else:
        batch = processor.apply_chat_template(
            sample["messages"], tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
    assert {"pixel_values", "input_features"} <= set(batch)
    assert calls == {"normalize_part": 4, "find_placeholders": 1, "split_by_row": len(MODALITIES)}


def test_dicts_rows_and_trl_samples_are_taken_alike(processor) -> None:
    collate, sample = ChatCollator(processor), chats(1)[0]
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    trl = {
        "messages": [{"role": "user", "content": parts}, sample["messages"][1]],
        "images": [Image.open(image_part(0)["path"])],
    }
    batches = [collate([given]) for given in (sample, ChatDataset([sample])[0], trl)]
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batches[0])


def test_chats_are_padded_on_the_side_asked_for(processor) -> None:
    samples = chats(4)
    right, left = (ChatCollator(processor, padding_side=side)(samples)["attention_mask"] for side in ("right", "left"))
    assert not torch.equal(right, left) and torch.equal(right.flip(1), left)


def test_a_sample_that_cannot_be_read_is_named(processor) -> None:
    samples = chats(4)
    samples[2]["messages"][0]["content"][0]["path"] = "gone.png"
    with pytest.raises(ValueError, match=r"Row 2, sample '2': Row 0, item 0 of its images: 'gone\.png'"):
        ChatCollator(processor)(samples)
    with pytest.raises(ValueError, match="Row 0 is an empty dict: the Trainer has removed the columns"):
        ChatCollator(processor)([{}])


def loud() -> Augmentation:
    sound = AudioAugmentation(speed=0.2, noise=1.0, mask_time_prob=0.3)
    return Augmentation(ImageAugmentation(crop=0.5, color=0.5), sound)


def test_augmentation_changes_media_and_no_words(processor) -> None:
    samples = chats(4)
    plain, changed = ChatCollator(processor)(samples), ChatCollator(processor, loud())(samples)
    assert torch.equal(plain["input_ids"], changed["input_ids"]) and torch.equal(plain["labels"], changed["labels"])
    assert torch.equal(plain["image_mask"], changed["image_mask"])
    for row in (0, 2):
        assert not torch.equal(plain["pixel_values"][row], changed["pixel_values"][row])
    for row in (1, 2):
        assert not torch.equal(plain["input_features"][row], changed["input_features"][row])
    evaluated = ChatCollator(processor, loud(), ModalityDropout(image=1.0)).for_evaluation()(samples)
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)


@pytest.mark.parametrize(
    ("augmentation", "name"),
    [
        (Augmentation(ImageAugmentation(crop=0.5)), "pixel_values"),
        (Augmentation(ImageAugmentation(flip=1.0)), "pixel_values"),
        (Augmentation(ImageAugmentation(color=0.5)), "pixel_values"),
        (Augmentation(audio=AudioAugmentation(speed=0.2)), "input_features"),
        (Augmentation(audio=AudioAugmentation(noise=1.0)), "input_features"),
        (Augmentation(audio=AudioAugmentation(mask_time_prob=0.3)), "input_features"),
        (Augmentation(audio=AudioAugmentation(mask_feature_prob=0.3)), "input_features"),
    ],
)
def test_each_switch_reaches_its_tensor_alone(processor, augmentation, name: str) -> None:
    samples = chats(4)[2:3]
    plain, changed = ChatCollator(processor)(samples), ChatCollator(processor, augmentation)(samples)
    other = {"pixel_values": "input_features", "input_features": "pixel_values"}[name]
    assert not torch.equal(plain[name], changed[name]) and torch.equal(plain[other], changed[other])


def test_dropped_modalities_leave_with_their_placeholders(processor) -> None:
    samples = chats(4)
    batch = ChatCollator(processor, modality_dropout=ModalityDropout(image=1.0))(samples)
    assert batch["image_mask"].tolist() == [[True], [False], [False], [False]], "only where a sound remains"
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [1, 0, 0, 0]
    assert (batch["input_ids"] == processor.audio_token_id).sum(1).tolist() == [0, 1, 1, 0]


def test_the_same_with_workers_in_any_order_and_batch(processor) -> None:
    data = ChatDataset(chats(6))
    collate = ChatCollator(processor, loud(), ModalityDropout(image=0.5, seed=2))

    def pixels(order: list[int], **options) -> list[bytes]:
        loader = torch.utils.data.DataLoader(data, sampler=order, collate_fn=collate, **options)
        batches = [batch.get("pixel_values", torch.zeros(len(batch["labels"]), 1)) for batch in loader]
        rows = [row.numpy().tobytes() for batch in batches for row in batch]
        return [rows[order.index(number)] for number in (0, 2, 4)]

    alone = pixels(list(range(6)))
    np.random.seed(9)
    assert pixels([4, 2, 0, 1, 3, 5], num_workers=2) == alone
    data.set_epoch(1)
    assert all(one != other for one, other in zip(pixels(list(range(6))), alone, strict=True))


def test_a_collator_travels_to_workers_that_are_spawned(processor) -> None:
    collate = pickle.loads(pickle.dumps(ChatCollator(processor, loud())))
    expected = ChatCollator(processor, loud())(chats(2))
    assert torch.equal(collate(chats(2))["input_features"], expected["input_features"])


def run(model_processor, data, folder, **arguments):
    """The stock Trainer with its defaults, but for where it may not write, report or run."""
    model = small_model(model_processor)
    defaults = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(**defaults, save_strategy="no", logging_steps=1, **arguments),
        data_collator=ChatCollator(model_processor, loud()),
        train_dataset=data,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["dataset", "stream", "mixture"])
def test_the_stock_trainer_takes_chats_without_any_flag(processor, tmp_path, kind: str, workers: int) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in chats(16)))
    data = load_chats(tmp_path, streaming=kind == "stream")
    if kind == "mixture":
        data = mix([data, ChatDataset(chats(3))], [1, 1])
    trainer = run(processor, data, tmp_path, max_steps=2, dataloader_num_workers=workers)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.args.remove_unused_columns, "its default"
    assert trainer.state.global_step == 2 and len(losses) == 2 and all(np.isfinite(losses))


def test_the_stock_trainer_tells_the_data_its_epoch_and_evaluates(processor, tmp_path) -> None:
    class Remembering(ChatCollator):
        epochs: list[int] = []

        def encode(self, row: ChatRow):
            self.epochs.append(row.epoch)
            return super().encode(row)

    data = ChatDataset(chats(4))
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, num_train_epochs=3, save_strategy="no"
    )
    collate = Remembering(processor)
    trainer = Trainer(small_model(processor), arguments, collate, data, ChatDataset(chats(3)))
    trainer.train()
    assert collate.epochs == [0] * 4 + [1] * 4 + [2] * 4
    assert 0 < trainer.evaluate()["eval_loss"] < 20


def test_a_real_sample_of_everything_trains(tmp_path) -> None:
    rows = sample_rows()
    processor = small_processor(turn_text(turn) for row in rows for turn in row.messages)
    trainer = run(processor, ChatDataset(rows), tmp_path, max_steps=12, learning_rate=3e-3)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
