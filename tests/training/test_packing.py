"""packing.py: packed rows give the loss and the gradients of padded ones, and examples see nothing of each other."""

import pytest
import torch

from modeling_mm.batching import pad_batch
from modeling_mm.training import ChatCollator
from modeling_mm.training.packing import first_fit, join_rows, pack_rows
from tests.fakes.tiny import AUDIO, FRAMES, IMAGE, MELS, PAD, draw, joined, open_gates
from tests.fakes.tiny_chats import CHATS, chat_model, mm_trainer, processor, weights

TEXTS = [[5, IMAGE, 6, 7], [8, 9], [AUDIO, 3, IMAGE, 4, 5], [7, IMAGE], [IMAGE, 2, AUDIO, IMAGE, 6], [4, IMAGE, 9, 3]]
INSIDE = {"cross_attention_placement": "inside", "cross_attention_gated": False, "cross_attention_feed_forward": False}


def example(number: int, ids: list[int], hidden: bool = False) -> dict[str, torch.Tensor]:
    tokens = torch.tensor(ids)
    is_placeholder = (tokens == IMAGE) | (tokens == AUDIO)
    row = {"input_ids": tokens, "labels": tokens.masked_fill(is_placeholder, -100)}
    row["attention_mask"] = torch.ones_like(tokens)
    if hidden:  # one in front reads no token, so that what it predicts has no meaning
        row["attention_mask"] = (~is_placeholder).long()
        row["labels"][1:][is_placeholder[:-1]] = -100
    if images := ids.count(IMAGE):
        row["pixel_values"] = draw(images, 3, 16, 16, seed=number)
    if windows := ids.count(AUDIO):
        row["input_features"] = draw(windows, MELS, FRAMES, seed=100 + number)
        row["feature_attention_mask"] = torch.ones(windows, FRAMES, dtype=torch.long)
    return row


def learned(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        INSIDE,
        {"vision_cross_attention_layers": [0, 2], "audio_cross_attention_layers": [1, 3]},
        {"max_media_items": 8},
        {"placeholders": "hidden"},
        {"text_position_encoding": "sinusoidal"},
    ],
    ids=lambda fields: "-".join(map(str, fields)) or "plain",
)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(fields, attention):
    if "vision_cross_attention_layers" in fields:
        fields = {**fields, "cross_attention_layers": None}
    model = open_gates(joined(**fields)).train()
    model.set_attn_implementation(attention)
    rows = [example(number, ids, "placeholders" in fields) for number, ids in enumerate(TEXTS)]
    packed = pad_batch(pack_rows(rows, 12), PAD)
    assert len(packed["input_ids"]) < len(rows)
    (loss, got), (expected, gradients) = (learned(model, batch) for batch in (packed, pad_batch(rows, PAD)))
    assert loss == pytest.approx(expected, abs=2e-5)
    assert got.keys() == gradients.keys()
    for name in got:
        torch.testing.assert_close(got[name], gradients[name], atol=2e-5, rtol=1e-3, msg=name)


def test_an_example_sees_nothing_of_those_it_is_packed_with():
    model = open_gates(joined())
    rows = [example(number, ids) for number, ids in enumerate(TEXTS[:3])]
    others = [example(number + 50, ids) for number, ids in enumerate(TEXTS[:3])]
    others[0]["input_ids"] = torch.tensor([1, IMAGE, 1, 1])
    with torch.no_grad():
        for kept in range(3):
            changed = [*others[:kept], rows[kept], *others[kept + 1 :]]
            start = sum(map(len, TEXTS[:kept]))
            mine = slice(start, start + len(TEXTS[kept]))
            logits = [model(**pad_batch([join_rows(group)], PAD)).logits[:, mine] for group in (rows, changed)]
            assert torch.equal(*logits)
            alone = model(**pad_batch([rows[kept]], PAD)).logits
            torch.testing.assert_close(logits[0], alone, atol=1e-5, rtol=1e-5)


def test_positions_start_again_and_the_first_token_of_an_example_has_no_target():
    row = join_rows([example(0, [5, IMAGE, 6]), example(1, [8, 9])])
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1]
    assert row["labels"].tolist() == [-100, -100, 6, -100, 9]
    hidden = join_rows([example(0, [5, IMAGE], hidden=True), example(1, [IMAGE, 8, 9], hidden=True)])
    assert hidden["position_ids"].tolist() == [0, 1, 0, 0, 1] and hidden["attention_mask"].tolist() == [1, 0, 0, 1, 1]


def test_the_longest_examples_are_placed_first():
    assert first_fit([3, 9, 4, 2, 20], 10) == [[4], [1], [2, 0, 3]]


def test_the_last_row_of_a_batch_may_hold_one_example():
    model = open_gates(joined())
    rows = [example(number, ids) for number, ids in enumerate(TEXTS[:3])]
    batch = pad_batch([join_rows(rows[:2]), join_rows(rows[2:])], PAD)
    with torch.no_grad():
        got = model(**batch).logits[1, : len(TEXTS[2])]
        torch.testing.assert_close(got, model(**pad_batch(rows[2:], PAD)).logits[0], atol=1e-5, rtol=1e-5)


def test_packed_rows_have_no_cache_and_no_bidirectional_mode():
    model = joined()
    batch = pad_batch([join_rows([example(0, TEXTS[0]), example(1, TEXTS[1])])], PAD)
    for options in ({"use_cache": True}, {"is_causal": False}):
        with pytest.raises(ValueError, match="packed examples"):
            model(**batch, **options)
    assert model(**batch).past_key_values is None


# ---- Collators and the trainer --------------------------------------------------------------------------------------


def test_a_collator_packs_in_training_alone():
    collate = ChatCollator(processor(), pack_length=60)
    batch = collate(CHATS)
    assert len(batch["input_ids"]) < len(CHATS) and "position_ids" in batch
    plain = collate.for_evaluation()(CHATS)
    assert len(plain["input_ids"]) == len(CHATS) and "position_ids" not in plain
    assert sorted(batch["labels"][batch["labels"] != -100]) == sorted(plain["labels"][plain["labels"] != -100])


def test_training_on_packed_rows_moves_the_weights_as_padded_ones_do(tmp_path):
    runs = [
        mm_trainer(chat_model(), tmp_path, more={"data_collator": ChatCollator(processor(), pack_length=length)})
        for length in (60, None)
    ]
    for run in runs:
        run.train()
    packed, padded = (run.state.log_history[0]["loss"] for run in runs)
    assert packed == pytest.approx(padded, rel=1e-5)
    for name, value in weights(runs[1].model).items():
        torch.testing.assert_close(weights(runs[0].model)[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_classes_are_not_packed():
    rows = [{"input_ids": torch.tensor([1, 2]), "labels": torch.tensor(1), "attention_mask": torch.ones(2)}]
    with pytest.raises(ValueError, match=r"^Row 0 has labels of shape \(\).*Leave pack_length out"):
        pack_rows(rows, 10)
