"""shared_prefix.py: prompts behind a prefix that was read once get the tokens of whole prompts, batched or alone."""

import pytest
import torch

from tests.fakes.tiny import AUDIO, IMAGE, PAD, difference, inputs, joined, open_gates

PREFIX = [5, IMAGE, 6, 7, 8, AUDIO, 9, 4, 3, 2]
QUESTIONS = [[11, 12, 13], [14], [15, 16]]
LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.mark.parametrize(
    "fields",
    [{}, {"placeholders": "hidden"}, {"max_media_items": 4}, {"vision_cross_attention_layers": [0, 2]}],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_prompts_behind_a_shared_prefix_get_the_tokens_of_whole_prompts(fields):
    model = open_gates(joined(**fields))
    prefix = model.read_prefix(**without_mask(inputs([PREFIX])))
    batched = model.generate(**prefix.followed_by(**left_padded(QUESTIONS)), **LENGTH)
    for number, question in enumerate(QUESTIONS):
        whole = model.generate(**without_mask(inputs([PREFIX + question])), **LENGTH)
        assert batched[number, -6:].tolist() == whole[0, -6:].tolist()
        alone = model.generate(**prefix.followed_by(torch.tensor([question])), **LENGTH)
        assert alone[0, -6:].tolist() == whole[0, -6:].tolist()


def without_mask(batch: dict) -> dict:
    """Without padding the model makes the mask, with hidden placeholders, too."""
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def test_logits_behind_a_prefix_are_those_of_the_whole_prompt_and_media_matter():
    model = open_gates(joined())
    batch = inputs([PREFIX])
    with torch.no_grad():
        prefix = model.read_prefix(**batch)
        got = model(**prefix.followed_by(torch.tensor([QUESTIONS[0]])) | {"input_ids": torch.tensor([QUESTIONS[0]])})
        whole = model(**inputs([PREFIX + QUESTIONS[0]])).logits[:, len(PREFIX) :]
        assert difference(got.logits, whole) < 1e-5
        other = model.read_prefix(**{**batch, "pixel_values": batch["pixel_values"] + 1})
    texts = [model.generate(**each.followed_by(**left_padded(QUESTIONS)), **LENGTH) for each in (prefix, other)]
    assert not torch.equal(*texts)


def test_a_prefix_serves_again_and_its_media_are_kept_once():
    model = open_gates(joined())
    prefix = model.read_prefix(**inputs([PREFIX]))
    runs = [model.generate(**prefix.followed_by(**left_padded(QUESTIONS)), **LENGTH) for _ in range(2)]
    assert torch.equal(*runs) and prefix.cache.get_seq_length() == len(PREFIX)
    given = prefix.followed_by(**left_padded(QUESTIONS))["past_key_values"]
    for layer, (keys, _) in prefix.cache.cross_attention_cache.layers.items():
        assert given.cross_attention_cache.layers[layer][0].data_ptr() == keys.data_ptr()


def test_beams_continue_a_shared_prefix():
    model = open_gates(joined())
    prefix = model.read_prefix(**inputs([PREFIX]))
    beams = {**LENGTH, "num_beams": 2}
    got = model.generate(**prefix.followed_by(torch.tensor([QUESTIONS[0]]), expand_size=2), **beams)
    whole = model.generate(**inputs([PREFIX + QUESTIONS[0]]), **beams)
    assert got.tolist() == whole.tolist()


def test_wrong_inputs_are_refused():
    model = joined()
    with pytest.raises(ValueError, match=r"one row, got 2"):
        model.read_prefix(torch.ones(2, 3, dtype=torch.long))
    prefix = model.read_prefix(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got pixel_values.*read_prefix"):
        prefix.followed_by(torch.ones(1, 1, dtype=torch.long), pixel_values=torch.zeros(1))
    with pytest.raises(ValueError, match="have no token"):
        prefix.followed_by(torch.ones(1, 0, dtype=torch.long))
